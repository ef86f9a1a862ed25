"""Which context rows should a sample resemble?"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ArgumentError, LabelError
from .similarity import as_rows


def positives_max(q: Tensor, rounding: float = 64.0) -> Tensor:
    r"""Every row as similar as the most similar one: :math:`P_{ij} = 1[Q_{ij} = \max_j Q_{ij}]`.

    Equal means within `rounding` eps of the row's largest magnitude: a matrix product gives equal rows results that
    differ in the last bits, and strict equality would lose positives at odd batch sizes.

    Args:
        q: similarities.
        rounding: 0 where equal targets have exactly equal similarities.

    Shape: q ``[B, R]``; result ``[B, R]`` bool.

    >>> positives_max(torch.tensor([[1.0, 3.0, 3.0], [2.0, 0.0, 1.0]]))
    tensor([[False,  True,  True],
            [ True, False, False]])
    """
    tolerance = rounding * torch.finfo(q.dtype).eps * q.abs().amax(1, keepdim=True)
    return q >= q.amax(1, keepdim=True) - tolerance


def choose_one(positives: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One positive a row, each with the same chance.

    Args:
        positives: at least one a row.
        generator: source of randomness; torch's default one if None.

    Shape: positives ``[B, R]`` bool; result ``[B]`` int64.

    >>> choose_one(torch.tensor([[False, True], [True, False]]))
    tensor([1, 0])
    """
    noise = torch.rand(positives.shape, device=positives.device, generator=generator)
    return noise.masked_fill(~positives, -1.0).argmax(1)


def positives_random_max(q: Tensor, generator: torch.Generator | None = None) -> Tensor:
    r"""One of the most similar rows, :math:`\arg\max_j Q_{ij}`, ties broken at random.

    Shape: q ``[B, R]``; result ``[B]`` int64.

    >>> positives_random_max(torch.tensor([[0.0, 2.0, 1.0]]))
    tensor([1])
    """
    return choose_one(positives_max(q), generator)


def positives_topk(q: Tensor, k: int) -> Tensor:
    """The k most similar rows; all of them if there are fewer than k.

    Shape: q ``[B, R]``; result ``[B, R]`` bool.

    Raises:
        ArgumentError: k is not a positive integer.

    >>> positives_topk(torch.tensor([[0.0, 2.0, 1.0]]), 2), positives_topk(torch.tensor([[0.0, 1.0]]), 5)
    (tensor([[False,  True,  True]]), tensor([[True, True]]))
    """
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ArgumentError("positives_topk", "k must be a positive integer", got=repr(k), fix="k=5")
    rows = q.topk(min(k, q.shape[1]), dim=1).indices
    return torch.zeros_like(q, dtype=torch.bool).scatter_(1, rows, True)


def positives_labels(labels: Tensor, columns: Tensor | None = None) -> Tensor:
    """Rows of the same label. Unlike similarity of targets it is right after dropout and in small classes.

    Args:
        labels: class numbers, one-hot rows or values; equal ones are positives of each other.
        columns: the labels of the context rows; `labels` again if None.

    Shape: labels ``[B]`` or ``[B, K]``, columns ``[R]`` or ``[R, K]``; result ``[B, R]`` bool.

    Raises:
        LabelError: there are no labels.

    >>> positives_labels(torch.tensor([0, 1, 0]))
    tensor([[ True, False,  True],
            [False,  True, False],
            [ True, False,  True]])
    """
    if not isinstance(labels, Tensor):
        raise LabelError(
            "positives from labels", "there are no labels", expected="a tensor [batch]", got=type(labels).__name__,
            fix="pass the labels as the third of (h, t, labels), or positives='targets'",
        )  # fmt: skip
    rows, others = as_rows(labels), as_rows(labels if columns is None else columns)
    return (rows[:, None] == others[None]).all(2)
