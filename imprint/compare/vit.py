"""A small vision transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import ArgumentError, ShapeError


def patch_size(size: int) -> int:
    """Side of a patch: the largest that divides `size` and leaves at least 7 × 7 patches, or 4 × 4 of small images.

    Raises:
        ShapeError: none divides it.

    >>> patch_size(28), patch_size(32), patch_size(8)
    (4, 4, 2)
    """
    for patch in range(max(2, size // 7), 1, -1):
        if size % patch == 0:
            return patch
    raise ShapeError(
        "net 'vit'", "the images cannot be cut into patches", expected="a height that is no prime number",
        got=f"{size} x {size}", fix="pad them",
    )  # fmt: skip


class Stem(nn.Module):
    """Patches to tokens, positions added."""

    def __init__(self, channels: int, size: int, width: int) -> None:
        super().__init__()
        patch = patch_size(size)
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.positions = nn.Parameter(torch.randn(1, (size // patch) ** 2, width) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, S, E]``."""
        return self.patches(x).flatten(2).transpose(1, 2) + self.positions


class ViT(nn.Module):
    """Stem, `depth` pre-norm transformer blocks of 4 heads, classifier on the mean token.

    Raises:
        ArgumentError: the width cannot be shared by the heads.
        ShapeError: the images cannot be cut into patches.

    Reference: Dosovitskiy et al., An Image is Worth 16x16 Words (2021), section 3.1.
    Differs from the paper: the mean of all tokens in place of a class token; no dropout.
    """

    def __init__(self, shape: tuple[int, ...], classes: int, width: int = 64, depth: int = 4) -> None:
        super().__init__()
        if width % 4:
            raise ArgumentError(
                "net 'vit'", "its width is shared by 4 heads", expected="a multiple of 4", got=width, fix="width=64"
            )
        self.stem = Stem(shape[0], shape[1], width)
        block = lambda: nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.ModuleList(block() for _ in range(depth))
        self.classifier = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, classes]``."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.classifier(x.mean(1))
