"""The nets that benchmarks and the comparison share."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def conv_block(cin: int, cout: int, pool: bool = False) -> nn.Sequential:
    layers = [nn.Conv2d(cin, cout, 3, padding=1, bias=False), nn.BatchNorm2d(cout), nn.LeakyReLU(0.01)]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))


class VGG8b(nn.Module):
    """conv 3x3 with 128, 256, pool, 256, 512, pool, 512, pool, 512, pool channels, then 1024, then classes."""

    def __init__(self, width: float = 0.5, channels: int = 3, size: int = 32, classes: int = 10) -> None:
        super().__init__()
        c = [channels, *(int(width * n) for n in (128, 256, 256, 512, 512, 512))]
        pools = (False, True, False, True, True, True)
        self.features = nn.ModuleList(conv_block(c[i], c[i + 1], pool) for i, pool in enumerate(pools))
        hidden = int(width * 1024)
        flat = c[-1] * (size // 16) ** 2
        self.hidden = nn.Sequential(
            nn.Flatten(), nn.Linear(flat, hidden, bias=False), nn.BatchNorm1d(hidden), nn.LeakyReLU(0.01)
        )
        self.classifier = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.features:
            x = block(x)
        return self.classifier(self.hidden(x))


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
