"""A stack of dense layers, each one a unit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..models.triangle import Triangle

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "leaky_relu": nn.LeakyReLU, "triangle": Triangle}


class Dense(nn.Module):
    """Blocks of Linear, BatchNorm, activation and dropout, and a linear classifier; samples are flattened.

    Args:
        shape: of a sample.
        classes: how many there are.
        widths: neurons of each block.
        activation: ``"relu"``, ``"tanh"``, ``"leaky_relu"`` or ``"triangle"``.
        norm: with BatchNorm.
        dropout: share of outputs that are dropped; 0 leaves the layer out.
        bias: of all linear layers.

    >>> net = Dense((1, 8, 8), 10, (32, 16), norm=False)
    >>> [tuple(p.shape) for p in net.parameters()]
    [(32, 64), (32,), (16, 32), (16,), (10, 16), (10,)]
    """

    def __init__(
        self, shape: tuple[int, ...], classes: int, widths: Sequence[int], activation: str = "relu",
        norm: bool = True, dropout: float = 0.0, bias: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        sizes = [torch.Size(shape).numel(), *widths]
        self.flatten = nn.Flatten()
        self.blocks = nn.ModuleList()
        for i, o in zip(sizes[:-1], widths, strict=True):
            layers = [nn.Linear(i, o, bias), *([nn.BatchNorm1d(o)] if norm else []), ACTIVATIONS[activation]()]
            self.blocks.append(nn.Sequential(*layers, *([nn.Dropout(dropout)] if dropout else [])))
        self.classifier = nn.Linear(sizes[-1], classes, bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, ...]`` to ``[B, classes]``."""
        x = self.flatten(x)
        for block in self.blocks:
            x = block(x)
        return self.classifier(x)
