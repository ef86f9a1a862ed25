"""Fewer features for a local head."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor


def pool_sizes(shape: tuple[int, int, int], limit: int) -> tuple[int, int]:
    """Kernel of the average pooling that brings C·H·W to at most `limit`: doubled in H and W in turn.

    Reference: Nokland & Eidnes, Training Neural Networks with Local Error Signals (2019), section 3.
    Differs from the paper: a last, partly covered window is averaged over what it covers.

    >>> pool_sizes((128, 8, 8), 4096)
    (2, 1)
    """
    channels, height, width = shape
    size = [1, 1]
    turn = 0
    while channels * math.ceil(height / size[0]) * math.ceil(width / size[1]) > limit and (
        size[0] < height or size[1] < width
    ):
        size[turn] *= 2
        turn = 1 - turn
    return min(size[0], height), min(size[1], width)


def pool_features(h: Tensor, limit: int = 4096, channels_last: bool = False) -> Tensor:
    """Features of a local head, ``[B, D]``.

    Maps ``[B, C, H, W]`` are average-pooled until C·H·W is at most `limit`; series ``[B, C, L]`` likewise;
    tokens ``[B, S, E]`` (`channels_last`) are averaged over S; anything else is flattened.

    >>> import torch
    >>> pool_features(torch.ones(2, 128, 8, 8)).shape
    torch.Size([2, 4096])
    """
    if channels_last and h.dim() > 2:
        return h.flatten(1, -2).mean(1)
    if h.dim() == 3:
        h = h[:, :, None]
    if h.dim() == 4:
        size = pool_sizes((h.shape[1], h.shape[2], h.shape[3]), limit)
        if size != (1, 1):
            h = F.avg_pool2d(h, size, ceil_mode=True)
    return h.flatten(1)


def pooled_width(shape: tuple[int, ...], limit: int = 4096, channels_last: bool = False) -> int:
    """Width of :func:`pool_features` for one sample of this shape.

    >>> pooled_width((128, 8, 8)), pooled_width((65, 32), channels_last=True)
    (4096, 32)
    """
    if channels_last and len(shape) > 1:
        return shape[-1]
    if len(shape) == 2:
        shape = (shape[0], 1, shape[1])
    if len(shape) == 3:
        size = pool_sizes((shape[0], shape[1], shape[2]), limit)
        return shape[0] * math.ceil(shape[1] / size[0]) * math.ceil(shape[2] / size[1])
    return math.prod(shape)
