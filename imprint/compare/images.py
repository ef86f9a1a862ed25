"""Convolutional nets for images."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def conv_block(i: int, o: int, pool: bool = False) -> nn.Sequential:
    """A 3 × 3 convolution, BatchNorm, LeakyReLU, and max pooling over 2 × 2."""
    layers = [nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.LeakyReLU(0.01)]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))


class CNN(nn.Module):
    """`depth` convolutions of `width`, 2 · `width`, 4 · `width`, … channels, pooled while the map is 4 or larger."""

    def __init__(self, shape: tuple[int, ...], classes: int, width: int = 32, depth: int = 3) -> None:
        super().__init__()
        channels, height, breadth = shape
        blocks = []
        for i in range(depth):
            pool = min(height, breadth) >= 4
            blocks.append(conv_block(channels, width * 2**i, pool))
            channels, height, breadth = width * 2**i, height // (1 + pool), breadth // (1 + pool)
        self.blocks = nn.ModuleList(blocks)
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(channels * height * breadth, classes))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, classes]``."""
        for block in self.blocks:
            x = block(x)
        return self.classifier(x)


class VGG8b(nn.Module):
    """conv 3x3 with 128, 256, pool, 256, 512, pool, 512, pool, 512, pool channels, then 1024, then classes.

    Args:
        width: factor of all these widths.
        channels: of the images.
        size: height and width of the images, 16 or more.
        classes: how many there are.

    Reference: Nokland & Eidnes, Training Neural Networks with Local Error Signals (2019), section 4.
    Differs from the paper: no dropout.
    """

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
        """``[B, C, H, W]`` to ``[B, classes]``."""
        for block in self.features:
            x = block(x)
        return self.classifier(self.hidden(x))


class Residual(nn.Module):
    """relu(x + f(x)), with a strided projection where the size changes."""

    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU(),
            nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o),
        )  # fmt: skip
        self.skip = nn.Identity() if i == o and stride == 1 else nn.Conv2d(i, o, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]``, halved in H and W by a stride of 2."""
        return torch.relu(self.skip(x) + self.body(x))


class ResNet(nn.Module):
    """A stem, three stages of `depth` residual blocks with `width`, 2 · `width`, 4 · `width` channels, mean over space.

    Reference: He et al., Deep Residual Learning for Image Recognition (2016), section 4.2.
    Differs from the paper: the shortcut that changes size is a convolution.
    """

    def __init__(self, shape: tuple[int, ...], classes: int, width: int = 16, depth: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(shape[0], width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        outputs = [width * 2**stage for stage in range(3) for _ in range(depth)]
        inputs = [width, *outputs[:-1]]
        self.blocks = nn.ModuleList(Residual(i, o, 1 if i == o else 2) for i, o in zip(inputs, outputs, strict=True))
        self.classifier = nn.Linear(outputs[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, classes]``."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.classifier(x.mean((2, 3)))
