"""The facts of one rollout, and its events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..graph.rollout import Rollout
from .blueprint import Blueprint, EdgeFacts, ModuleFacts
from .diary import Brought, learned_in
from .events import Event, PortOp, Read, Shape
from .learned import Group, Learned, groups_of
from .timetable import Timetable


@dataclass(frozen=True)
class Ran:
    """The facts of one rollout; no tensor among them.

    Attributes:
        first, ticks, rows: its first tick, how many there were, and its batch size.
        lengths: ticks of each row; None if all are full.
        learned: a manager's groups learned in it.
        resets: ticks at which a module's state started anew.
        stateless: modules without memory, which compute only where they emit.
        declared: what modules are asked for, as ``module.objective``.
        groups: how gradient groups learned; empty if none did.
        lessons: what they learned, by tick.
    """

    blueprint: Blueprint
    first: int
    ticks: int
    rows: int
    lengths: tuple[int, ...] | None
    learned: bool
    resets: Mapping[str, frozenset[int]]
    stateless: frozenset[str]
    declared: tuple[str, ...]
    groups: tuple[Group, ...]
    lessons: Mapping[int, tuple[Learned, ...]]

    @classmethod
    def of(cls, run: Rollout, before: Mapping[str, Brought] | None) -> Ran:
        """Of a rollout that is over, with what its groups brought into it; None if they did not learn."""
        graph, end = run.graph, run.offset + run.ticks
        protos = {name: module.proto for name, module in graph.modules_by_name.items() if module.proto is not None}
        resets = {}
        for name, proto in protos.items():
            own = graph.schedule.own_tick(name, run.offset)
            at = [t for t in range(run.offset, end) if graph.schedule.steps(name, t)]
            resets[name] = frozenset(t for i, t in enumerate(at) if proto.resets_at(own + i))
        lengths = None if run.lengths is None else tuple(run.lengths)
        stateless = frozenset(name for name, proto in protos.items() if not proto.recurrent)
        declared = tuple(
            f"{name}.{t.name}"
            for name, module in graph.modules_by_name.items()
            for t in (*module.objectives, *module.objectives.params)
        )
        groups = () if before is None else groups_of(run)
        lessons = {} if before is None else learned_in(run, before)
        return cls(
            Blueprint.of(graph), run.offset, run.ticks, run.rows, lengths, before is not None, resets, stateless,
            declared, groups, lessons,
        )  # fmt: skip

    def events(self, table: Timetable) -> Iterator[Event]:
        """In the order of a tick; the engine may take many ticks of one module at once, with equal numbers."""
        sizes = {f"{m.name}.{port}": size for m in self.blueprint.modules for port, size in m.outputs}
        sizes |= {f"{m.name}.{port}:drive": size for m in self.blueprint.modules for port, size in m.inputs}
        arriving: dict[str, list[EdgeFacts]] = {m.name: [] for m in self.blueprint.modules}
        for edge in self.blueprint.edges:
            arriving[edge.target.split(".")[0]].append(edge)
        ops = {m.name: tuple(self._ops(m, arriving[m.name], sizes)) for m in self.blueprint.modules}
        owner = {name: group.name for group in self.groups for name in group.modules}
        for t in range(self.first, self.first + self.ticks):
            live = self.rows if self.lengths is None else sum(t - self.first < n for n in self.lengths)
            lessons = {lesson.group: lesson for lesson in self.lessons.get(t, ())}
            for facts in self.blueprint.modules:
                name, emits = facts.name, table.emits(facts.name, t)
                lesson, source = lessons.get(owner.get(name, "")), name in self.blueprint.sources
                if not source and not table.steps(name, t):
                    if lesson is not None:
                        yield Event(t, name, 0, False, live, (), {}, (), lesson)
                    continue
                idle = source or (name in self.stateless and not emits)
                inner = 0 if idle else 1 if name in self.stateless else facts.inner_steps
                reads = tuple(
                    Read(e.name, e.source, _held(table, e, t), (self.rows, *_shape(sizes[e.source])))
                    for e in arriving[name]
                )
                emitted = {port: (self.rows, *_shape(size)) for port, size in facts.outputs} if emits else {}
                reset = t in self.resets.get(name, ())
                yield Event(t, name, inner, reset, live, reads, emitted, ops[name], lesson)

    def _ops(self, facts: ModuleFacts, arriving: list[EdgeFacts], sizes: Mapping[str, Any]) -> Iterator[PortOp]:
        """What a module does to what arrives, the same at every tick at which it steps."""
        combines = dict(facts.combines)
        for port, size in facts.inputs:
            edges = [e for e in arriving if e.target == f"{facts.name}.{port}"]
            for edge in edges:
                op = "identity" if edge.projection == "Identity" else "linear"
                width = sizes[edge.source] if op == "identity" else edge.width
                yield PortOp(op, (edge.name,), port, (self.rows, *_shape(width)))
            if len(edges) > 1:
                yield PortOp(combines[port], tuple(e.name for e in edges), port, (self.rows, *_shape(size)))
        if facts.join:
            widths = [_shape(size)[-1] for _, size in facts.inputs]
            width = sum(widths) if facts.join == "concat" else widths[0]
            shape = (self.rows, *_shape(facts.inputs[0][1])[:-1], width)
            yield PortOp(facts.join, tuple(port for port, _ in facts.inputs), "in", shape)


def _held(table: Timetable, edge: EdgeFacts, tick: int) -> int | None:
    """When the value that an edge reads was emitted; a drive is there whenever its module steps."""
    then = tick - edge.delay
    if then < 0:
        return None
    module = edge.source.split(".")[0]
    return table.last_step(module, then) if edge.source.endswith(":drive") else table.last_emission(module, then)


def _shape(size: Any) -> Shape:
    return (size,) if isinstance(size, int) else tuple(size)
