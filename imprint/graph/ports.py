"""Named places where signals enter and leave a module."""

from __future__ import annotations

import builtins
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, SupportsIndex

import torch
from torch import Tensor

from ..errors import ArgumentError, ShapeError
from ..protos.auto import Auto, AutoType, Size

if TYPE_CHECKING:
    from .module import Module

COMBINE = ("sum", "concat")
LAYOUTS = ("disjoint", "shared")


@dataclass(frozen=True)
class InPort:
    """Where edges arrive.

    Args:
        size: width of its drive; ``Auto`` is what its edges bring.
        combine: what several edges into it do, ``"sum"`` or ``"concat"``.
    """

    size: Size = Auto
    combine: str = "sum"

    def __post_init__(self) -> None:
        if self.combine not in COMBINE:
            raise ArgumentError(
                "InPort", "unknown combine=", expected=" | ".join(COMBINE), got=repr(self.combine), fix="combine='sum'"
            )
        check_size("InPort", self.size)


class InPortGroup:
    """Sub-ports of one input, ``in.<name>`` each, in the order they are given.

    Args:
        layout: ``"disjoint"``: each has a slice of its own (protos with one input get the concatenation);
            ``"shared"``: all have the same width and add up.
        ports: name and :class:`InPort` (or a size) of each.
    """

    def __init__(self, layout: str = "disjoint", **ports: InPort | Size) -> None:
        if layout not in LAYOUTS:
            raise ArgumentError(
                "InPortGroup", "unknown layout=", expected=" | ".join(LAYOUTS), got=repr(layout),
                fix="InPortGroup(layout='disjoint', deep=InPort(size=192), …)",
            )  # fmt: skip
        if not ports:
            raise ArgumentError("InPortGroup", "it has no sub-port", fix="InPortGroup(deep=InPort(size=192), …)")
        self.layout = layout
        self.ports = {k: v if isinstance(v, InPort) else InPort(v) for k, v in ports.items()}

    def __repr__(self) -> str:
        return f"InPortGroup({', '.join(f'{k}={v.size}' for k, v in self.ports.items())}, layout={self.layout!r})"


class Ports:
    """The default ports of a module: ``in`` (or a group of sub-ports) and ``out``.

    Args:
        in_default: width of ``in``, or an :class:`InPort`.
        out_default: width of ``out``: the first so many units of the deepest layer.
        in_: an :class:`InPortGroup` in place of one input.
    """

    def __init__(
        self, in_default: Size | InPort = Auto, out_default: Size = Auto, in_: InPortGroup | None = None
    ) -> None:
        if in_ is not None and not isinstance(in_, InPortGroup):
            raise ArgumentError(
                "Ports(in_=)", "not a group of ports", got=repr(in_), fix="InPortGroup(deep=InPort(size=192), …)"
            )
        if in_ is not None and in_default is not Auto:
            raise ArgumentError("Ports", "in_default= beside a group in_=", fix="give the sizes in the group")
        check_size("Ports(out_default=)", out_default)
        self.group, self.out = in_, out_default
        one = in_default if isinstance(in_default, InPort) else InPort(in_default)
        self.inputs = {"in": one} if in_ is None else {f"in.{k}": v for k, v in in_.ports.items()}

    def __repr__(self) -> str:
        one = self.inputs["in"].size if "in" in self.inputs else "none"
        return f"Ports(in={self.group or one}, out={self.out})"


@dataclass(frozen=True)
class Nodes:
    """Units of one layer of a proto; make it with :meth:`of`."""

    layer: int = -1
    slice: builtins.slice | None = None
    indices: tuple[int, ...] | None = None

    @classmethod
    def of(cls, layer: int = -1, slice: builtins.slice | None = None, indices: Iterable[int] | None = None) -> Nodes:
        """Units of `layer` (from 0, negative ones from the end) by one of a slice or indices.

        >>> Nodes.of(layer=1, indices=range(0, 6, 2)).indices
        (0, 2, 4)
        """
        if (slice is None) == (indices is None):
            raise ArgumentError(
                "Nodes.of", "give exactly one of slice= and indices=", fix="Nodes.of(slice=slice(0, 192))"
            )
        chosen = tuple(indices) if isinstance(indices, Iterable) and not isinstance(indices, str) else indices
        for name, value, fits, example in (
            ("layer", layer, _whole(layer), "-1"),
            ("slice", slice, slice is None or _is_slice(slice), "slice(0, 192)"),
            ("indices", chosen, chosen is None or (isinstance(chosen, tuple) and all(map(_whole, chosen))), "[0, 2]"),
        ):
            if not fits:
                raise ArgumentError("Nodes.of", f"{name}= names no units", got=repr(value), fix=f"{name}={example}")
        return cls(layer, slice, None if chosen is None else tuple(int(i) for i in chosen))

    def resolve(self, where: str, layer_dims: list[int]) -> tuple[int, builtins.slice | Tensor, int]:
        """``(layer, index, width)`` in layers of these widths.

        Raises:
            ShapeError: no such layer, or units outside it.
        """
        deepest = len(layer_dims) - 1
        if not -len(layer_dims) <= self.layer <= deepest:
            raise ShapeError(
                where, f"its module has no layer {self.layer}",
                expected=f"layers 0..{deepest}, −1 is the deepest", got=self.layer, fix="Nodes.of(layer=-1, …)",
            )  # fmt: skip
        layer = self.layer % len(layer_dims)
        size = layer_dims[layer]
        if self.slice is not None:
            width, ends = len(range(*self.slice.indices(size))), (self.slice.start, self.slice.stop)
            if width == 0 or any(end is not None and not -size <= end <= size for end in ends):
                raise ShapeError(
                    where, "its slice leaves the layer", expected=f"within 0..{size}", got=self.slice,
                    fix="a shorter slice, or a wider layer",
                )  # fmt: skip
            return layer, self.slice, width
        assert self.indices is not None
        if not self.indices or min(self.indices) < -size or max(self.indices) >= size:
            raise ShapeError(
                where, "its indices leave the layer", expected=f"within 0..{size - 1}", got=self.indices,
                fix="units that are there, or a wider layer",
            )  # fmt: skip
        return layer, torch.tensor(self.indices), len(self.indices)


@dataclass(frozen=True, eq=False)
class PortRef:
    """One port of one module: what ``module["out"]`` returns and ``graph.connect`` takes.

    Attributes:
        kind: ``"in"``, ``"out"``, or ``"drive"``: what arrives at an input port, read like an output.
    """

    module: Module
    name: str
    kind: str

    @property
    def drive(self) -> PortRef:
        """The input drive of this port as a signal that edges can carry on."""
        if self.kind != "in":
            raise ArgumentError(
                f"port {self.key}", "only input ports have a drive", got=self.kind, fix="module['in'].drive"
            )
        return PortRef(self.module, self.name, "drive")

    @property
    def key(self) -> str:
        """``module.port``; of a drive ``module.port:drive``."""
        return f"{self.module.name}.{self.name}" + (":drive" if self.kind == "drive" else "")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PortRef) and self.module is other.module and self.key == other.key

    def __hash__(self) -> int:
        return hash((id(self.module), self.key))

    def __repr__(self) -> str:
        return f"PortRef({self.key})"


def check_size(where: str, size: object) -> None:
    """Refuse what is neither Auto nor a positive width."""
    if isinstance(size, AutoType) or (isinstance(size, int) and not isinstance(size, bool) and size > 0):
        return
    raise ArgumentError(
        where, "not a size", expected="a positive int or imprint.Auto", got=repr(size), fix="imprint.Auto"
    )


def _is_slice(value: object) -> bool:
    if not isinstance(value, builtins.slice):
        return False
    ends = (value.start, value.stop)
    return all(end is None or _whole(end) for end in ends) and (value.step is None or value.step >= 1)


def _whole(value: object) -> bool:
    return isinstance(value, SupportsIndex) and not isinstance(value, bool)
