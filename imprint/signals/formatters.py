"""Formatters: what is done to the context before a generator sees it."""

from __future__ import annotations

from torch import Tensor, nn

from ..errors import ArgumentError
from ..functional import signals as F

Pair = tuple[Tensor, Tensor | None]


class Formatter(nn.Module):
    """Changes the context of a pair ``(h0, t0)``: subclass it and write ``forward(input) -> (h0, t0)``.

    The context is None when there is none to learn from; pass that on.
    """


class LabelNumberToOnehot(Formatter):
    """Class numbers to one-hot rows, in the dtype of the data.

    Args:
        num_classes: number of columns.

    Shape: context ``[B]`` integers to ``[B, num_classes]``.

    Raises:
        LabelError: labels are not integers, not one a sample, or out of range.

    >>> import torch
    >>> LabelNumberToOnehot(3)((torch.zeros(2, 5), torch.tensor([2, 0])))[1]
    tensor([[0., 0., 1.],
            [1., 0., 0.]])
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
            raise ArgumentError(
                "LabelNumberToOnehot",
                "num_classes must be a positive integer",
                got=repr(num_classes),
                fix="num_classes=10",
            )
        self.num_classes = num_classes

    def forward(self, input: Pair) -> Pair:
        """``(h0, one-hot rows)``."""
        h0, t0 = input
        return h0, F.label_number_to_onehot(t0, self.num_classes, h0.dtype if h0.is_floating_point() else None)

    def extra_repr(self) -> str:
        """The number of classes."""
        return str(self.num_classes)


class DistinctBatchLabelsOnehot(Formatter):
    """K context rows, one a class, in place of one a sample.

    The context stream then costs K rows however large the batch; losses need :func:`imprint.loss.v1_input_label_direct`
    or ``rows="class"``.

    Shape: context ``[B, K]`` to ``[K, K]``.

    Raises:
        LabelError: the context has no column a class.

    >>> import torch
    >>> DistinctBatchLabelsOnehot()((torch.zeros(5, 2), torch.zeros(5, 2)))[1]
    tensor([[1., 0.],
            [0., 1.]])
    """

    def forward(self, input: Pair) -> Pair:
        """``(h0, unit matrix)``."""
        h0, t0 = input
        return h0, F.distinct_batch_labels_onehot(t0)


class DistinctBatchLabels(Formatter):
    """The class numbers 0 … K − 1, one context row a class.

    Shape: context ``[B, K]`` to ``[K]``, floating.

    Raises:
        LabelError: the context has no column a class.

    >>> import torch
    >>> DistinctBatchLabels()((torch.zeros(5, 2), torch.zeros(5, 3)))[1]
    tensor([0., 1., 2.])
    """

    def forward(self, input: Pair) -> Pair:
        """``(h0, class numbers)``."""
        h0, t0 = input
        return h0, F.distinct_batch_labels(t0)


class LabelVectorToNumber(Formatter):
    """One-hot rows to class numbers.

    Shape: context ``[B, K]`` to ``[B, 1]``, floating.

    Raises:
        LabelError: the context has no column a class.

    >>> import torch
    >>> LabelVectorToNumber()((torch.zeros(2, 5), torch.eye(2)))[1]
    tensor([[0.],
            [1.]])
    """

    def forward(self, input: Pair) -> Pair:
        """``(h0, class numbers)``."""
        h0, t0 = input
        return h0, F.label_vector_to_number(t0)
