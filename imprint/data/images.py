"""Images as sequences: one row of pixels a tick."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import flaw


def as_rows(images: Tensor) -> Tensor:
    """Images as sequences of their rows, from top to bottom.

    Shape:
        ``[N, H, W]`` or ``[N, C, H, W]``, to ``[N, T = H, D = C * W]``; integers become float32.

    Raises:
        DataError: they have another number of dimensions.

    >>> as_rows(torch.arange(4, dtype=torch.uint8).view(1, 1, 2, 2))
    tensor([[[0., 1.],
             [2., 3.]]])
    """
    if images.dim() not in (3, 4):
        raise flaw(
            "as_rows", "these are no images", "[N, H, W] or [N, C, H, W]", list(images.shape), "add or join dimensions"
        )
    rows = images if images.dim() == 3 else images.transpose(1, 2).flatten(2)
    return rows if rows.is_floating_point() else rows.to(torch.float32)
