"""How often the highest score is the label's."""

from __future__ import annotations

import torch
from torch import Tensor

from .labels import Labels


def hits(scores: Tensor, y: Tensor, labels: Labels) -> tuple[Tensor, Tensor] | None:
    """``(right, labelled)``: labels whose class has the highest score, and labels that count; both on the device.

    Args:
        scores: ``[B, C]``, ``[B, E, C]`` or ``[B, C, E]``.
        y: labels ``[B]`` or ``[B, E]``, or probabilities ``[B, C]``, read as their likeliest class.
        labels: how `y` is read; what carries its ``ignore_index`` does not count.

    Returns:
        None where scores and targets are not of these shapes, and for values.

    >>> hits(torch.eye(3), torch.tensor([0, 2, -100]), Labels(3))
    (tensor(1), tensor(2))
    """
    if labels.num_classes is None or scores.dim() < 2:
        return None
    if labels.soft(y):
        wanted, valid = y.argmax(-1), torch.ones(y.shape[:-1], dtype=torch.bool, device=y.device)
    else:
        wanted, valid = y, y != labels.ignore_index
    if wanted.shape == scores.shape[:-1]:
        found = scores.argmax(-1)
    elif wanted.shape == scores.shape[:1] + scores.shape[2:]:
        found = scores.argmax(1)
    else:
        return None
    return ((found == wanted) & valid).sum(), valid.sum()
