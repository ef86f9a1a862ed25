"""The samples of one task: a training and a test split, checked once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError
from .checks import check_finite, check_labels, check_lengths, flaw, valid_ticks


@dataclass(frozen=True, repr=False, eq=False)
class Data:
    r"""A training and a test split of one task; what does not fit together is refused here, once.

    Args:
        x_train: training samples ``[N, ...]``: images ``[N, C, H, W]``, sequences ``[N, T, D]``.
        y_train: their labels. Integers are classes in ``0 .. num_classes - 1``, or -100 for "no label"; floating
            numbers are class probabilities when `num_classes` is given, else targets of a regression.
        x_test: test samples ``[M, ...]``.
        y_test: their labels.
        num_classes: how many classes there are; 0 for a regression.
        name: how errors and tables call it.
        length_train: valid steps of every training sequence, ``[N]``; what lies behind them is padding.
        length_test: the same for the test sequences, ``[M]``.

    Raises:
        DataError: an empty split, samples and labels of different number, samples of different shape, labels or
            lengths outside their range, NaN or infinite values.

    >>> x, y = torch.arange(8.0).view(4, 2), torch.tensor([0, 1, 0, 1])
    >>> data = Data(x, y, x[:2], y[:2], num_classes=2, name="toy")
    >>> data
    Data 'toy': 4 training and 2 test samples of shape (2,), 2 classes
    >>> data.moments()
    (3.5, 2.29128784747792)
    >>> data.normalized().x_test[0]
    tensor([-1.5275, -1.0911])
    """

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    num_classes: int
    name: str = "data"
    length_train: Tensor | None = None
    length_test: Tensor | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.num_classes, int) or self.num_classes < 0:
            raise self._error("num_classes is not a count", "an integer >= 0, 0 for a regression", self.num_classes)
        self._check("train", self.x_train, self.y_train, self.length_train)
        self._check("test", self.x_test, self.y_test, self.length_test)
        if (self.length_train is None) != (self.length_test is None):
            raise self._error("only one split has lengths", "train/length and test/length, or neither")
        first = 1 if self.length_train is None else 2  # padding may differ
        if self.x_train.shape[first:] != self.x_test.shape[first:]:
            shapes = f"{self.shape} in train, {tuple(self.x_test.shape[1:])} in test"
            raise self._error("the two splits hold samples of different shape", "one shape", shapes)

    def __repr__(self) -> str:
        kind = f"{self.num_classes} classes" if self.num_classes else "regression"
        counts = f"{len(self.x_train)} training and {len(self.x_test)} test samples"
        return f"Data {self.name!r}: {counts} of shape {self.shape}, {kind}"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one training sample."""
        return tuple(self.x_train.shape[1:])

    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation over all values of the training samples, padding left out."""
        x = self.x_train
        if self.length_train is not None:
            x = x[_valid(x, self.length_train)]
        mean = x.sum(dtype=torch.float64).item() / x.numel()
        return mean, ((x - mean).square().sum(dtype=torch.float64).item() / x.numel()) ** 0.5

    def normalized(self) -> Data:
        r"""Both splits as :math:`(x - \mu) / \sigma`, with :meth:`moments` of the *training* split; padding becomes 0.

        Raises:
            DataError: all training values are the same.
        """
        mean, std = self.moments()
        if std == 0:
            raise self._error("the training samples do not vary", "at least two different values", f"{mean} everywhere")

        def scale(x: Tensor, length: Tensor | None) -> Tensor:
            x = (x - mean) / std
            return (
                x if length is None else x.masked_fill_(~_valid(x, length).view(*x.shape[:2], *[1] * (x.dim() - 2)), 0)
            )

        return replace(
            self, x_train=scale(self.x_train, self.length_train), x_test=scale(self.x_test, self.length_test)
        )

    def to(self, device: torch.device | str) -> Data:
        """The same data on another device."""
        tensors: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **tensors)

    def _error(self, what: str, expected: object, got: object = None, fix: object = None) -> DataError:
        return flaw(repr(self.name), what, expected, got, fix)

    def _check(self, split: str, x: Tensor, y: Tensor, length: Tensor | None) -> None:
        """Refuse a split that does not hold together."""
        if x.dim() < 2 or x.numel() == 0:
            raise self._error(f"{split}/x holds no samples", "[N, ...] with N >= 1", list(x.shape))
        if y.dim() == 0 or len(y) != len(x):
            raise self._error(f"{split}/x and {split}/y differ in number", f"{len(x)} labels", f"shape {list(y.shape)}")
        where = repr(self.name)
        check_finite(where, f"{split}/x", x)
        check_labels(where, f"{split}/y", y, self.num_classes)
        if length is not None:
            check_lengths(where, f"{split}/length", length, *x.shape[:2])


def _valid(x: Tensor, length: Tensor) -> Tensor:
    """``[N, T]``: which steps are no padding."""
    return valid_ticks(x.shape[1], length.to(x.device))
