"""Normalisation of a unit's input."""

from __future__ import annotations

from torch import Tensor


def rms_normalize(x: Tensor, eps: float = 1e-8) -> Tensor:
    r""":math:`\hat x = x / (\mathrm{rms}(x) + \epsilon)` over all features of a sample.

    >>> import torch
    >>> rms_normalize(torch.tensor([[3.0, 4.0, 0.0, 0.0]]))
    tensor([[1.2000, 1.6000, 0.0000, 0.0000]])
    """
    dims = tuple(range(1, x.dim()))
    return x / (x.square().mean(dims, keepdim=True).sqrt() + eps)
