"""What happened in a rollout, tick by tick and module by module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..graph.rollout import Rollout
from .blueprint import Blueprint
from .timetable import Timetable

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Read:
    """An edge brought a value.

    Attributes:
        edge, port: names of the edge and of what it read.
        tick: when that was emitted; None for the zeros that a port holds before its first emission.
        shape: of what was read, with its rows.
    """

    edge: str
    port: str
    tick: int | None
    shape: Shape


@dataclass(frozen=True)
class Event:
    """A module ran at a tick.

    Attributes:
        tick: from 0 in the rollout, or in those that it continues.
        module: its name.
        inner_steps: how often its proto stepped; 0 of sources, and of protos without memory where they do not emit.
        reset: its state started anew before.
        rows: how many rows the tick belonged to; those that had ended keep what they had.
        reads: what arrived, in the order of the edges.
        emitted: shape of what each output port emitted; empty if nothing was.
    """

    tick: int
    module: str
    inner_steps: int
    reset: bool
    rows: int
    reads: tuple[Read, ...]
    emitted: Mapping[str, Shape]

    def __repr__(self) -> str:
        does = [f"{self.inner_steps} step{'s' * (self.inner_steps > 1)}"] * bool(self.inner_steps)
        does += ["reset"] * self.reset
        does += [f"reads {r.port}@{'-' if r.tick is None else r.tick} {list(r.shape)}" for r in self.reads]
        does += [f"emits {port} {list(shape)}" for port, shape in self.emitted.items()]
        return f"Event({self.tick} {self.module}: {', '.join(does)})"


@dataclass(frozen=True)
class Ran:
    """The facts of one rollout; no tensor among them.

    Attributes:
        first, ticks, rows: its first tick, how many there were, and its batch size.
        lengths: ticks of each row; None if all are full.
        learned: a manager's groups learned in it.
        resets: ticks at which a module's state started anew.
        stateless: modules without memory, which compute only where they emit.
    """

    blueprint: Blueprint
    first: int
    ticks: int
    rows: int
    lengths: tuple[int, ...] | None
    learned: bool
    resets: Mapping[str, frozenset[int]]
    stateless: frozenset[str]

    @classmethod
    def of(cls, run: Rollout, learned: bool) -> Ran:
        """Of a rollout that is over."""
        graph, end = run.graph, run.offset + run.ticks
        protos = {name: module.proto for name, module in graph.modules_by_name.items() if module.proto is not None}
        resets = {}
        for name, proto in protos.items():
            own = graph.schedule.own_tick(name, run.offset)
            at = [t for t in range(run.offset, end) if graph.schedule.steps(name, t)]
            resets[name] = frozenset(t for i, t in enumerate(at) if proto.resets_at(own + i))
        lengths = None if run.lengths is None else tuple(run.lengths)
        stateless = frozenset(name for name, proto in protos.items() if not proto.recurrent)
        return cls(Blueprint.of(graph), run.offset, run.ticks, run.rows, lengths, learned, resets, stateless)

    def events(self, table: Timetable) -> Iterator[Event]:
        """In the order of a tick; the engine may take many ticks of one module at once, with equal numbers."""
        sizes = {f"{m.name}.{port}": size for m in self.blueprint.modules for port, size in m.outputs}
        sizes |= {f"{m.name}.{port}:drive": size for m in self.blueprint.modules for port, size in m.inputs}
        arriving: dict[str, list[Any]] = {m.name: [] for m in self.blueprint.modules}
        for edge in self.blueprint.edges:
            arriving[edge.target.split(".")[0]].append(edge)
        for t in range(self.first, self.first + self.ticks):
            live = self.rows if self.lengths is None else sum(t - self.first < n for n in self.lengths)
            for facts in self.blueprint.modules:
                name, emits = facts.name, table.emits(facts.name, t)
                source = name in self.blueprint.sources
                if not source and not table.steps(name, t):
                    continue
                idle = source or (name in self.stateless and not emits)
                inner = 0 if idle else 1 if name in self.stateless else facts.inner_steps
                reads = tuple(
                    Read(e.name, e.source, _held(table, e, t), (self.rows, *_shape(sizes[e.source])))
                    for e in arriving[name]
                )
                emitted = {port: (self.rows, *_shape(size)) for port, size in facts.outputs} if emits else {}
                yield Event(t, name, inner, t in self.resets.get(name, ()), live, reads, emitted)


def _held(table: Timetable, edge: Any, tick: int) -> int | None:
    """When the value that an edge reads was emitted; a drive is there whenever its module steps."""
    then = tick - edge.delay
    if then < 0:
        return None
    module = edge.source.split(".")[0]
    return table.last_step(module, then) if edge.source.endswith(":drive") else table.last_emission(module, then)


def _shape(size: Any) -> Shape:
    return (size,) if isinstance(size, int) else tuple(size)
