"""Class numbers and one-hot rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ArgumentError, LabelError

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def check_labels(labels: Tensor, num_classes: int, where: str = "labels") -> None:
    """Refuse what is not a batch of class numbers 0 … `num_classes` − 1.

    The range is looked at on the CPU only: reading another device would stall it, and torch asserts there by itself.

    Raises:
        LabelError: not a tensor, not integers, not one a sample, or out of range.
        ArgumentError: `num_classes` is not a positive integer.

    >>> check_labels(torch.tensor([0, 2]), 3)
    """
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise ArgumentError(
            where, "num_classes must be a positive integer", got=repr(num_classes), fix="num_classes=10"
        )
    if not isinstance(labels, Tensor) or labels.dtype not in INTEGERS:
        got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise LabelError(
            where, "labels are not integers", expected="an int64 tensor [batch]", got=got,
            fix="y.long() for numbers, y.argmax(1) for one-hot rows",
        )  # fmt: skip
    if labels.dim() != 1:
        raise LabelError(
            where, "not one label a sample", expected="(batch,)", got=tuple(labels.shape), fix="y.flatten()"
        )
    if labels.device.type == "cpu" and len(labels):
        low, high = (int(v) for v in torch.aminmax(labels))
        if low < 0 or high >= num_classes:
            raise LabelError(
                where, "a label is out of range", expected=f"0..{num_classes - 1}", got=low if low < 0 else high,
                fix="check the labels, or raise num_classes",
            )  # fmt: skip


def onehot(labels: Tensor, num_classes: int, dtype: torch.dtype | None = None) -> Tensor:
    """One row a label: 1 in the label's column, 0 elsewhere.

    Args:
        labels: class numbers.
        num_classes: number of columns.
        dtype: of the result; torch's default one if None.

    Shape: labels ``[B]``; result ``[B, num_classes]``.

    Raises:
        LabelError: see :func:`check_labels`.

    >>> onehot(torch.tensor([1, 0]), 3)
    tensor([[0., 1., 0.],
            [1., 0., 0.]])
    """
    check_labels(labels, num_classes, "onehot")
    return F.one_hot(labels.long(), num_classes).to(dtype or torch.get_default_dtype())


def class_numbers(labels: Tensor, num_classes: int, where: str = "labels") -> Tensor:
    """Class numbers of integer labels or of one-hot (or soft) rows.

    Shape: labels ``[B]`` or ``[B, num_classes]``; result ``[B]`` int64.

    >>> class_numbers(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), 2)
    tensor([1, 0])
    """
    if isinstance(labels, Tensor) and labels.dim() == 2 and labels.shape[1] == num_classes and num_classes > 1:
        return labels.argmax(1)
    check_labels(labels, num_classes, where)
    return labels.long()
