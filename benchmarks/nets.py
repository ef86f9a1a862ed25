"""The nets of benchmarks; those that the comparison has, too, stand there."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from imprint.compare.images import VGG8b as VGG8b


class ResidualBlock(nn.Module):
    """x + W2 relu(W1 norm(x))."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.first, self.second = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.relu(self.first(self.norm(x))))


class ResidualMLP(nn.Module):
    """A stem and `depth` residual blocks."""

    def __init__(self, depth: int = 16, width: int = 512, inputs: int = 784, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(ResidualBlock(width, 2 * width) for _ in range(depth))
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.classifier(x)


class Encoder(nn.Module):
    """A transformer encoder over rows of features, post-norm, mean-pooled."""

    def __init__(
        self, depth: int = 12, width: int = 128, inputs: int = 32, tokens: int = 64, classes: int = 10
    ) -> None:
        super().__init__()
        self.stem = nn.Linear(inputs, width)
        layer = lambda: nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
        self.blocks = nn.ModuleList(layer() for _ in range(depth))
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.classifier(x.mean(1))
