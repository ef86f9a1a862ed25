"""One tick of a gradient group, as the compiler of traces takes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..credit import Params
from ..etrace.cell import Parts, random_like
from .facts import Facts

if TYPE_CHECKING:
    from .traced import UnitCells
    from .unit import GraphUnit


class UnitCell:
    """One tick of a group's traced modules at which given ones step, as the compiler of traces takes it."""

    def __init__(self, cells: UnitCells, facts: Facts, like: Parts, tensors: Params | None = None) -> None:
        self.cells, self.facts, self.like, self.tensors = cells, facts, like, tensors
        self.paths, self.copies = list(like), False
        self.model = cells.unit.members
        self.names = facts.steps & cells.traced
        owners = [o for n in facts.steps for o in (cells.unit.modules[n], *cells.unit.modules[n].incoming)]
        here = {id(p) for o in owners for p in o.parameters()}
        own = {k: p for k, p in cells.unit.own.items() if id(p) in here}
        self.params = own if tensors is None else {k: tensors[k] for k in own}

    def parts(self, state: Parts) -> Parts:
        """They are told by path already."""
        return state

    def step(self, x: Any, parts: Parts) -> tuple[Parts, Any]:
        """The next states, and what ports emit."""
        if self.tensors is None:
            return self._step(x, parts)
        return self.model.lent(self.tensors, self._step, x, parts)

    def _step(self, x: Any, parts: Parts) -> tuple[Parts, Any]:
        cells, unit = self.cells, self.cells.unit
        rest = [n for n in self.facts.steps if n not in self.names and recurs(unit.modules[n])]
        protos: dict[str, Any] = dict.fromkeys(self.facts.steps, ())
        protos |= cells.states(parts, self.names) | cells.states(x["rest"], rest)
        tick = {"values": x["values"], "valid": None, "facts": self.facts}
        with unseen(unit):
            new = unit.cell(unit.own, {"proto": protos, "held": x["held"]}, tick)
        return cells.parts(new["made"], self.names), new["out"]

    def sample(self, x: Any, rows: int, random: torch.Generator) -> tuple[Any, Parts]:
        """Random inputs and states in float64, to prove things on."""
        return random_like(x, rows, random), random_like(self.like, rows, random)

    def double(self) -> UnitCell:
        """With copies of all weights in float64, to prove things on."""
        own = self.tensors or {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        tensors = {k: _double(v) for k, v in own.items()}
        return UnitCell(self.cells, self.facts, {k: _double(v) for k, v in self.like.items()}, tensors)


@contextmanager
def unseen(unit: GraphUnit) -> Iterator[None]:
    """Whoever looks on has seen this tick already."""
    owners: list[Any] = [*unit.modules.values(), *unit.edges.values()]
    taps = [owner.tap for owner in owners]
    for owner in owners:
        owner.tap = None
    try:
        yield
    finally:
        for owner, tap in zip(owners, taps, strict=True):
            owner.tap = tap


def _double(v: Tensor) -> Tensor:
    made = v.detach().double() if v.is_floating_point() else v.detach()
    return made.clone().requires_grad_(v.requires_grad)


def recurs(module: Any) -> bool:
    """Does it have a state?"""
    return bool(module.proto.recurrent)
