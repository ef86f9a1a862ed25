"""The nets of the comparison, and which of their modules are units."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from ..errors import ArgumentError, ShapeError, UnknownNameError, did_you_mean
from .dense import Dense
from .images import CNN, ResNet, VGG8b
from .vit import ViT

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Net:
    """A net that rules are compared on.

    Args:
        name: how tables and files call it.
        make: ``f(shape of a sample, classes, width, depth) -> nn.Module``.
        layers: a regex of the module paths that are units, matched in full; each is one module.
        width: by default; what it counts is up to `make`.
        depth: by default; None: the net has one depth only.
        smallest: least height and width of its images; 0 for nets that take samples of any shape.
        square: are its images as high as wide?
        channels_last: do units put out tokens ``[B, S, E]``?
    """

    name: str
    make: Callable[[Shape, int, int, int], nn.Module]
    layers: str
    width: int
    depth: int | None = None
    smallest: int = 0
    square: bool = False
    channels_last: bool = False

    def units(self, model: nn.Module) -> list[str]:
        """Paths of the units of a model of this net, in order."""
        return [name for name, _ in model.named_modules() if re.fullmatch(self.layers, name)]


def _mlp(shape: Shape, classes: int, width: int, depth: int) -> nn.Module:
    return Dense(shape, classes, [width] * depth)


def _vgg8b(shape: Shape, classes: int, width: int, depth: int) -> nn.Module:
    return VGG8b(width / 128, shape[0], shape[1], classes)


NETS = {
    net.name: net
    for net in (
        Net("mlp", _mlp, r"blocks\.\d+", 1024, 3),
        Net("cnn", CNN, r"blocks\.\d+", 32, 3, smallest=4),
        Net("vgg8b", _vgg8b, r"features\.\d+|hidden", 128, smallest=16, square=True),
        Net("resnet", ResNet, r"stem|blocks\.\d+", 16, 1, smallest=4),
        Net("vit", ViT, r"stem|blocks\.\d+", 64, 4, smallest=4, square=True, channels_last=True),
    )
}
"""By name; an own one takes part once it is added here."""


def find_net(net: str | Net) -> Net:
    """A net by its name.

    Raises:
        UnknownNameError: there is none; with near misses.

    >>> find_net("resnt")
    Traceback (most recent call last):
    imprint.errors.UnknownNameError: ...
    """
    if isinstance(net, Net):
        return net
    if net not in NETS:
        raise UnknownNameError("compare", f"unknown net {net!r}", fix=did_you_mean(net, NETS))
    return NETS[net]


def check_net(net: Net, shape: Shape, width: int | None = None, depth: int | None = None) -> tuple[int, int]:
    """Width and depth of the net, the defaults put in.

    Raises:
        ShapeError: it takes no samples of this shape.
        ArgumentError: a size is no count, or is not free.

    >>> check_net(NETS["mlp"], (1, 8, 8), width=64)
    (64, 3)
    """
    for name, value in (("width", width), ("depth", depth)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ArgumentError("compare", f"{name} counts from 1", expected="at least 1", got=value, fix=f"{name}=2")
    if depth is not None and net.depth is None:
        raise ArgumentError(
            f"net {net.name!r}", "it has one depth only", got=f"depth={depth}", fix="leave depth out, or another net"
        )
    if net.smallest and (len(shape) != 3 or min(shape[1:]) < net.smallest):
        raise ShapeError(
            f"net {net.name!r}", "it does not take these samples",
            expected=f"images [channels, height, width] of at least {net.smallest} x {net.smallest}", got=shape,
            fix="mlp takes samples of any shape" + (", cnn smaller images" if len(shape) == 3 else ""),
        )  # fmt: skip
    if net.square and shape[1] != shape[2]:
        raise ShapeError(
            f"net {net.name!r}", "it takes square images", expected=(shape[0], shape[1], shape[1]), got=shape,
            fix="pad them, or cnn or resnet",
        )  # fmt: skip
    return width or net.width, depth or net.depth or 0
