"""What the user's targets mean: class labels, soft labels or values; which rows count, and for how much."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ArgumentError, LabelError, ShapeError
from ..utils import is_number


@dataclass(frozen=True)
class Labels:
    """How targets are read, everywhere alike: by the task loss, local heads and context streams.

    Args:
        num_classes: number of classes; None for regression on floating targets, where the rest has no meaning.
        weight: ``[num_classes]``, the weight of each class in every mean.
        ignore_index: integer label of rows without a label; they count in no loss.
        label_smoothing: as in :func:`torch.nn.functional.cross_entropy`, in every cross entropy, contrasts among them.
            Similarity matching cannot tell smoothed labels from others; what has no distribution refuses it.

    Shape:
        targets: ``[B]`` or ``[B, E]`` integers; ``[B, num_classes]`` probabilities; ``[B, ...]`` values.

    Raises:
        ArgumentError: a number out of its range, or weights that are not one a class.

    >>> labels = Labels(3)
    >>> labels.onehot(torch.tensor([2, -100]))
    tensor([[0., 0., 1.],
            [0., 0., 0.]])
    """

    num_classes: int | None = None
    weight: Tensor | None = field(default=None, compare=False)
    ignore_index: int = -100
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        count, weight = self.num_classes, self.weight
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            raise ArgumentError(
                "Labels", "num_classes must be a whole number from 1, or None", got=repr(count), fix="num_classes=10"
            )
        if not is_number(self.label_smoothing) or not 0 <= self.label_smoothing <= 1:
            raise ArgumentError(
                "Labels",
                "label_smoothing is a share",
                expected="0..1",
                got=self.label_smoothing,
                fix="label_smoothing=0.1",
            )
        if isinstance(self.ignore_index, bool) or not isinstance(self.ignore_index, int):
            raise ArgumentError(
                "Labels", "ignore_index is no label", expected="an integer", got=repr(self.ignore_index),
                fix="ignore_index=-100",
            )  # fmt: skip
        if weight is not None and (not isinstance(weight, Tensor) or weight.dim() != 1 or bool((weight < 0).any())):
            raise ArgumentError(
                "Labels", "weight is not one number from 0 a class", expected="a tensor [num_classes]",
                got=weight.tolist() if isinstance(weight, Tensor) else repr(weight), fix="torch.tensor([...])",
            )  # fmt: skip

    def _check_values(self, where: str) -> None:
        """Refuse what has no meaning for values."""
        options = {"weight": self.weight is not None, "label_smoothing": bool(self.label_smoothing),
                   "ignore_index": self.ignore_index != -100}  # fmt: skip
        if named := [name for name, given in options.items() if given]:
            raise ArgumentError(
                where, f"they are values, for which Labels({'=, '.join(named)}=) has no meaning",
                expected="class labels", got="floating targets without num_classes",
                fix="num_classes= if they are probabilities of classes; a task_loss= of your own for weighted values",
            )  # fmt: skip

    def labelled(self, y: Tensor) -> Tensor:
        """How many rows have a label, at least one; a scalar tensor.

        >>> Labels(3).labelled(torch.tensor([2, -100, 1]))
        tensor(2)
        """
        if self.num_classes is None or self.soft(y):
            return torch.full((), max(1, len(y)), device=y.device)
        return self.valid(y).sum().clamp_min(1)

    def soft(self, y: Tensor) -> bool:
        """Are `y` probabilities over the classes?"""
        return self.num_classes is not None and y.is_floating_point()

    def check(self, y: Tensor, where: str = "the targets") -> None:
        """Refuse targets these labels cannot mean; ranges are read on the CPU only, where that stalls nothing.

        Raises:
            ShapeError, LabelError: the targets are empty, of another shape or kind, or out of range.
            ArgumentError: they are values, and class weights, smoothing or an ``ignore_index`` were asked for.
        """
        if y.dim() == 0 or len(y) == 0:
            raise ShapeError(
                where,
                "the batch is empty",
                expected="at least one row",
                got=tuple(y.shape),
                fix="leave empty batches out",
            )
        if self.num_classes is None:
            if not y.is_floating_point():
                raise LabelError(
                    where, "integer targets need a number of classes", got=y.dtype, fix="pass num_classes= to attach"
                )
            self._check_values(where)
        elif y.is_floating_point():
            if y.dim() != 2 or y.shape[1] != self.num_classes:
                raise ShapeError(
                    where, "soft labels have the wrong shape", expected=("batch", self.num_classes),
                    got=tuple(y.shape), fix="give probabilities [batch, classes] or integer labels [batch]",
                )  # fmt: skip
            if y.device.type == "cpu":
                _check_probabilities(y, where)
        elif y.dtype in (torch.bool, torch.complex64, torch.complex128):
            raise LabelError(where, "labels have the wrong dtype", expected="int64", got=y.dtype, fix="y.long()")
        elif y.device.type == "cpu":
            bad = y[((y < 0) | (y >= self.num_classes)) & (y != self.ignore_index)]
            if bad.numel():
                raise LabelError(
                    where, "a label is out of range",
                    expected=f"0..{self.num_classes - 1}, or {self.ignore_index} for none",
                    got=bad.flatten()[0].item(), fix="check the labels, or pass num_classes= to attach",
                )  # fmt: skip

    def valid(self, y: Tensor) -> Tensor:
        """``[B]`` bool: rows that have a label."""
        if y.is_floating_point():
            return torch.ones(len(y), dtype=torch.bool, device=y.device)
        return (y != self.ignore_index).flatten(1).any(1) if y.dim() > 1 else y != self.ignore_index

    def index(self, y: Tensor) -> Tensor:
        """``[B]`` int64 class of each row; unlabelled rows read 0 (mask them by :meth:`valid`)."""
        return y.argmax(-1) if self.soft(y) else y.long().masked_fill(y == self.ignore_index, 0)

    def smoothed(self, y: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        r""":math:`(1-\epsilon) Y + \epsilon / K`: what ``label_smoothing`` makes of :meth:`onehot`."""
        onehot = self.onehot(y, dtype)
        if not self.label_smoothing:
            return onehot
        return onehot * (1 - self.label_smoothing) + self.label_smoothing / onehot.shape[-1]

    def onehot(self, y: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """``[B, num_classes]``, or ``[B, E, num_classes]``; as soft labels are, or float32; zero without a label."""
        if self.soft(y):
            return y.to(dtype or y.dtype)
        assert self.num_classes is not None
        # by comparison: F.one_hot reads the labels on the host
        classes = torch.arange(self.num_classes, device=y.device)
        found = (self.index(y)[..., None] == classes) & (y != self.ignore_index)[..., None]
        return found.to(dtype or torch.float32)

    def share(self, y: Tensor, like: Tensor) -> Tensor:
        """``[B]``, the weight of each row: its class's, or 1; 0 without a label. In dtype and place of `like`."""
        valid = self.valid(y).to(like)
        if self.weight is None:
            return valid
        weight = self.weight.to(like)
        return valid * (y.to(like) @ weight if self.soft(y) else weight[self.index(y)])

    def mean(self, losses: Tensor, y: Tensor) -> Tensor:
        """Weighted mean of one loss a row over the rows that have a label; zero if none has."""
        share = self.share(y, losses)
        return (losses * share).sum() / share.sum().clamp_min(torch.finfo(losses.dtype).tiny)

    def cross_entropy(self, logits: Tensor, y: Tensor) -> Tensor:
        r""":math:`-\sum_k y_k \log\mathrm{softmax}(z)_k`, mean over labelled rows as torch has it, or zero.

        Shape: logits ``[B, C]``, labels ``[B]`` or ``[B, C]``; logits ``[B, E, C]``, ``[B, C, E]``, labels ``[B, E]``.
        """
        if not self.soft(y) and y.shape == logits.shape[:-1]:
            logits, y = logits.flatten(0, -2), y.flatten()
        elif y.shape != (logits.shape if self.soft(y) else logits.shape[:1] + logits.shape[2:]):
            raise ShapeError(
                "cross entropy", "labels and logits do not fit",
                expected="labels [B] or [B, C] with logits [B, C]; labels [B, E] with logits [B, E, C]",
                got=f"labels {tuple(y.shape)}, logits {tuple(logits.shape)}",
                fix="pass task_loss= if the model's output means something else",
            )  # fmt: skip
        if self.num_classes is not None and self.num_classes > logits.shape[-1 if logits.dim() == 2 else 1]:
            raise ShapeError(
                "cross entropy", "the output has fewer channels than there are classes",
                expected=self.num_classes, got=tuple(logits.shape), fix="widen the last layer or lower num_classes",
            )  # fmt: skip
        y = y.to(logits.dtype) if y.is_floating_point() else y.long()
        weight = None if self.weight is None else self.weight.to(logits)
        options: dict[str, Any] = {"weight": weight, "label_smoothing": self.label_smoothing, "reduction": "sum"}
        if self.soft(y):
            return F.cross_entropy(logits, y, **options) / (y.numel() / logits.shape[1])
        total = F.cross_entropy(logits, y, ignore_index=self.ignore_index, **options)
        count = (y != self.ignore_index).to(logits.dtype)
        if weight is not None:
            count = count * weight[y.masked_fill(y == self.ignore_index, 0)]
        return total / count.sum().clamp_min(torch.finfo(logits.dtype).tiny)


def _check_probabilities(y: Tensor, where: str) -> None:
    """Refuse scores, and several labels a sample; rows may sum to less than 1, as torch allows."""
    total = y.sum(1).max()
    if bool((y < 0).any()):
        raise LabelError(
            where, "a probability is negative", expected="probabilities of classes", got=float(y.min()),
            fix="scores.softmax(1) makes probabilities of scores",
        )  # fmt: skip
    if bool(total > 1.01):
        raise LabelError(
            where, "probabilities sum to more than 1", expected="at most 1 a sample", got=float(total),
            fix="several labels a sample are values: no num_classes=, and a task_loss= such as "
            "F.binary_cross_entropy_with_logits",
        )  # fmt: skip
