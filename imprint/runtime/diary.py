"""At which ticks of a rollout gradient groups learned, and whose weights moved then."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from ..credit import ETrace, Traces
from ..graph.learner import Learner
from ..graph.live import LiveGroup
from ..graph.rollout import Rollout
from ..graph.within import members_within
from .learned import Learned, penalties_of, reached_of, unit_of

Terms = dict[int, tuple[str, ...]]
Group = Learner | LiveGroup


class Brought(NamedTuple):
    """What a group brings into a rollout.

    Attributes:
        waiting: ``(tick, when its targets come, names of its terms)`` of what is still to be learned from.
        gathered: modules that it holds a gradient of.
        due: the next update has something to step with.
        traced: whose weights have traces, by the module whose states these are of.
        untaken: ticks that its traces have still to take in.
    """

    waiting: list[tuple[int, int, tuple[str, ...]]]
    gathered: set[str]
    due: bool
    traced: dict[str, set[str]]
    untaken: list[int]


def brought(run: Rollout) -> dict[str, Brought]:
    """By group, before `run` learns; only a stream brings anything."""
    learning = run.graph.learning
    goes_on = run.offset > 0 and (learning.last is None or run.sequence is learning.last.sequence)
    made = {}
    for learner in learning.learners if goes_on else []:
        waiting = [(s.tick, s.due, _names(s.y, learner)) for s in learner.waiting if s.due >= run.offset]
        carry, due = learner.prop.carry, learner.prop.ticks > 0
        untaken = [x["facts"].tick for _, x, _ in carry.waiting] if isinstance(carry, Traces) else []
        made[learner.prop.name] = Brought(waiting, _gathered(learner), due, _traced(learner), untaken)
    return made


def learned_in(run: Rollout, before: Mapping[str, Brought]) -> dict[int, tuple[Learned, ...]]:
    """By tick, after `run`: what each group learned from, and whether its weights moved."""
    learning = run.graph.learning
    made: dict[int, list[Learned]] = {}
    for group in learning.groups:
        if not group.prop.optimizers:
            continue
        diary = Diary(run, group, before.get(group.prop.name, Brought([], set(), False, {}, [])))
        diary.follow() if isinstance(group, Learner) else diary.follow_blocks(learning.block_end)
        for t, learned in diary.days():
            made.setdefault(t, []).append(learned)
    return {t: tuple(made[t]) for t in sorted(made)}


class Diary:
    """Goes through the ticks of one group as its propagator did."""

    def __init__(self, run: Rollout, group: Learner | LiveGroup, before: Brought) -> None:
        self.run, self.group, self.unit, self.waiting = run, group, unit_of(group), before.waiting
        self.first, self.last = run.offset, run.offset + run.ticks - 1
        self.penalties = penalties_of(self.unit)
        self.penalized = {m.name for m, _ in self.unit.penalties}
        self.reached = reached_of(self.unit)
        self.stepped = _stepped(group)
        cells = self.unit.cells.traced if isinstance(group.prop.credit, ETrace) else frozenset()
        self.traced = {name: {name} | before.traced.get(name, set()) for name in cells}
        self.gathered, self.due = set(before.gathered), before.due
        for t in before.untaken:
            self._advance(t)
        self.terms: dict[int, Terms] = {}
        self.updates: dict[int, int] = {}
        self.moved: dict[int, set[str]] = {}

    def follow(self) -> None:
        """Tick by tick; a sample whose targets come late is learned from when they have come."""
        lag, streaming = self.group.lag, self.run.streaming  # type: ignore[union-attr]
        samples = list(self.waiting)
        for t in range(self.first, self.last + 1):
            samples.append((t, t + lag, self._due(t)))
        for t, due, names in samples:
            if due > self.last and streaming:
                continue  # it waits on
            self._advance(t)
            self._learn(max(min(due, self.last), self.first), {t: names} if names else {}, t, t)

    def _advance(self, t: int) -> None:
        """Where a module steps, every weight that has ever led to its states has a trace that moves on."""
        schedule = self.run.schedule
        for name in [n for n in self.traced if schedule.steps(n, t)]:
            waiting = [name]
            while waiting:
                for edge in self.unit.modules[waiting.pop()].incoming:
                    source = edge.source.module.name
                    inside = edge.name in self.unit.inner and not edge.stop_grad and source not in self.traced
                    makes = schedule.steps if edge.source.kind == "drive" else schedule.emits
                    if inside and edge.delay == 0 and makes(source, t):
                        self.traced[name].add(source)
                        waiting.append(source)
            self.gathered |= self.traced[name]

    def follow_blocks(self, block_end: Callable[[int], int]) -> None:
        """Block by block: what comes before one is a constant."""
        start = self.first
        while start <= self.last:
            stop = min(block_end(start) - 1, self.last)
            self._learn(stop, {t: names for t in range(start, stop + 1) if (names := self._due(t))}, start, stop)
            start = stop + 1

    def _due(self, t: int) -> tuple[str, ...]:
        names = tuple(name for name, _ in self.group.agenda.at.get(t, ()))
        return names + self.penalties * bool(names)

    def _learn(self, at: int, terms: Terms, start: int, stop: int) -> None:
        if terms:
            losses = [(n.split(".")[0], t) for t, names in terms.items() for n in names if n in self.unit.terms]
            if len(self.reached) > 1:
                self.gathered |= members_within(self.run, self.unit, losses, start) | self.penalized
            else:
                self.gathered |= set(self.reached)
            self.due = True
            self.terms.setdefault(at, {}).update(terms)
        if self.due and self.group.agenda.ends_period(stop):
            moved = self.gathered & self.stepped
            if moved:
                self.updates[at] = self.updates.get(at, 0) + 1
                self.moved.setdefault(at, set()).update(moved)
            self.gathered, self.due = set(), False

    def days(self) -> Iterable[tuple[int, Learned]]:
        """Ticks at which something was learned or moved."""
        for t in sorted({*self.terms, *self.updates}):
            moved = tuple(n for n in self.reached if n in self.moved.get(t, ()))
            yield t, Learned(self.group.prop.name, self.terms.get(t, {}), self.updates.get(t, 0), moved)


def _owners(group: Group) -> dict[int, str]:
    """The module that each weight of a group is part of."""
    unit = unit_of(group)
    owners = {id(p): n for n, m in unit.modules.items() for o in (m, *m.incoming) for p in o.parameters()}
    return {id(p): name.split(".")[0] for name, t in unit.terms.items() for p in t.parameters()} | owners


def _stepped(group: Group) -> set[str]:
    """Modules of which an optimizer has weights."""
    held = {id(p) for o in group.prop.optimizers for each in o.param_groups for p in each["params"] if p.requires_grad}
    return {name for i, name in _owners(group).items() if i in held}


def _names(y: Any, learner: Learner) -> tuple[str, ...]:
    """Of the terms that a sample's targets are for."""
    names = tuple(name for name in y or () if name in learner.unit.terms)
    return names + penalties_of(unit_of(learner)) * bool(names)


def _gathered(learner: Learner) -> set[str]:
    """Modules whose gradient was gathered since the last update."""
    prop, owners = learner.prop, _owners(learner)
    grads: Any = prop.carry.grads if isinstance(prop.carry, Traces) else prop.carry or {}
    return {owners[id(prop.params[k])] for k in grads}


def _traced(learner: Learner) -> dict[str, set[str]]:
    """Whose weights have traces, by the module whose states these are of."""
    prop, owners = learner.prop, _owners(learner)
    made: dict[str, set[str]] = {}
    for kept in prop.carry.kept.values() if isinstance(prop.carry, Traces) else ():
        names = {owners[id(prop.params[path])] for path in kept.relation.path.split(" @ ") if path in prop.params}
        for path in kept.trace.group.hidden_paths:
            made.setdefault(path.split(".")[0], set()).update(names)
    return made
