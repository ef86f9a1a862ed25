"""The rectifier that keeps what is above the mean of its position."""

from __future__ import annotations

import torch
from torch import Tensor


def triangle(u: Tensor, power: float = 1.0, dim: int = 1) -> Tensor:
    r""":math:`\max(u - \mathrm{mean}_c\, u, 0)^p`, the mean over channels; its gradient is 0 where it is 0.

    The mean counts as a constant to the gradient.

    Args:
        u: ``[B, C, ...]``.
        power: p.
        dim: of the channels.

    Reference: Coates, Lee & Ng, An Analysis of Single-Layer Networks in Unsupervised Feature Learning (2011), for
    p = 1; Journe et al., Hebbian Deep Learning Without Feedback (2023), for other powers.
    Differs from the paper: nothing.

    >>> triangle(torch.tensor([[1.0, 2.0, 6.0]]), 2.0)
    tensor([[0., 0., 9.]])
    """
    above = u - u.detach().mean(dim, keepdim=True)
    positive = above > 0
    return torch.where(positive, torch.where(positive, above, 1.0) ** power, 0.0)
