"""A rollout that learns: which groups run in which order, in chunks of which length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ..errors import StateError
from ..objectives import PortDrive, PortOutput, ShiftedInput
from ..propagators import Propagator
from ..propagators.probe import Probe
from .learner import Learner, Member
from .live import Inside, LiveGroup
from .order import components, tick_order
from .pair import ClassSignal
from .plain import run_components
from .rollout import Rollout
from .runner import Runner
from .signal import Signal
from .unit import GraphUnit

Drive = Callable[[Rollout], None]
"""Takes a rollout that is prepared through all its ticks."""
CHUNK = 64
"""Ticks a component runs before the next one does, where nothing else says so; bounds what a rollout holds."""


class Tally(Probe):
    """Mean loss of every group over the update periods of one rollout."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.periods: dict[str, int] = {}

    def clear(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Start anew; returns what there was."""
        before, self.sums, self.periods = (self.sums, self.periods), {}, {}
        return before

    def learned(self, prop: Propagator, x: Any, out: Any, y: Any, loss: Tensor) -> None:
        """Add up; nothing is read from the device."""
        loss = loss.detach()
        self.sums[prop.name] = self.sums[prop.name] + loss if prop.name in self.sums else loss

    def updated(self, prop: Propagator, grads: Any) -> None:
        """A period is over."""
        self.periods[prop.name] = self.periods.get(prop.name, 0) + 1

    def losses(self) -> dict[str, Tensor]:
        """By the groups' names."""
        return {name: total / max(self.periods.get(name, 0), 1) for name, total in self.sums.items()}


class Learning:
    """What a manager puts into a graph.

    Args:
        graph: the graph.
        learners: gradient groups that learn tick by tick.
        live: gradient groups under autograd over blocks.
        rest: modules that only run.
        block: ticks of a block, or None: the whole rollout.
        update: the update mode of all groups.
        signal: what travels beside the data, for rules that compare with it.

    Attributes:
        last: the last rollout that learned.
    """

    def __init__(
        self, graph: Any, learners: list[Learner], live: list[LiveGroup], rest: list[str], block: int | None,
        update: str | int, signal: ClassSignal | None = None,
    ) -> None:  # fmt: skip
        self.graph, self.learners, self.live, self.rest = graph, learners, live, rest
        self.block_ticks, self.update = block, update
        self.signal = signal
        self.groups: list[Learner | LiveGroup] = [*learners, *live]
        self.parts = self._parts()
        self.tally = Tally()
        self.last: Rollout | None = None

    def _parts(self) -> list[list[Any]]:
        """Runners by components; what a group's targets are read from comes before it where it can.

        Where a group's members stand on both sides of others in a tick, each runs at its own place.
        """
        owner: dict[str, Any] = {}
        for learner in self.learners:
            learner.members = {}
            owner |= dict.fromkeys(learner.names, learner)
        for group in self.live:
            owner |= {name: Inside(Runner(self.graph[name], self.graph.zero), True) for name in group.names}
        owner |= {name: Inside(Runner(self.graph[name], self.graph.zero), False) for name in self.rest}
        for part in components(self._places(owner), self._before(owner)):
            for learner in part if len(part) > 1 else []:
                if isinstance(learner, Learner) and len(learner.names) > 1:
                    learner.members = {n: Member(Runner(self.graph[n], self.graph.zero)) for n in learner.names}
                    owner |= learner.members
        order: list[Any] = tick_order(self._places(owner), self._before(owner))
        for learner in self.learners:
            if learner.members:
                last = max(order.index(member) for member in learner.members.values())
                order.insert(last + 1, learner)
        after: dict[Any, list[Any]] = {unit: [] for unit in order}
        for learner in self.learners:
            for member in learner.members.values():
                after[learner].append(member)
                after[member].append(learner)
        for edge in self.graph.all_edges:
            source, target = owner.get(edge.source.module.name), owner[edge.target.module.name]
            if source is not None and source is not target:
                after[target].append(source)
        for learner in self.learners:
            for name in sources_of_targets(learner.unit):
                if name in owner and owner[name] is not learner:
                    after[learner].append(owner[name])
        return components(order, after)

    def _places(self, owner: dict[str, Any]) -> list[Any]:
        """Who runs, in the order of the modules."""
        return list(dict.fromkeys(owner[n] for n in self.graph.order if n in owner))

    def _before(self, owner: dict[str, Any]) -> dict[Any, list[Any]]:
        """Who has to run before whom within a tick."""
        before: dict[Any, list[Any]] = {}
        for edge in self.graph.all_edges:
            source, target = owner.get(edge.source.module.name), owner[edge.target.module.name]
            if edge.delay == 0 and source is not None and source is not target:
                before.setdefault(target, []).append(source)
        return before

    def reach(self) -> dict[str, int]:
        """Ports that targets are read from keep their values until the last target of the group has come."""
        made: dict[str, int] = {}
        for learner in self.learners:
            lag = max([0, *(shift_of(term.target, streaming=True) for term in learner.unit.terms.values())])
            for name in sources_of_targets(learner.unit):
                for key in self.graph.sizes:
                    if key.split(".")[0] == name:
                        made[key] = max(made.get(key, 0), lag)
        return made

    def roll(self, run: Rollout, fresh: bool, drive: Drive | None = None) -> None:
        """Run and learn, by this engine or by `drive`.

        After an error weights are those of the last update, and what a stream had gathered stays.
        """
        if run.streaming and (self.update == "rollout" or self.live):
            raise StateError(
                "graph.step", "its manager learns over whole rollouts, and a stream has none",
                expected="credit=Instant() or ETrace() with update='tick' or a number of ticks",
                got=f"update={self.update!r}", fix="attach(graph, rule, update='tick'), or graph.rollout(batch)",
            )  # fmt: skip
        self._prepare(run)  # what is refused here is refused with nothing lost
        if fresh or (self.last is not None and self.graph.run.sequence is not self.last.sequence):
            self._forget()
        elif self.graph.run is not self.last:  # it goes on from a rollout that nobody learned from
            self._begin_anew(run)
        before = [(learner, learner.gathered()) for learner in self.learners]
        sums, periods = self.tally.clear()
        try:
            (drive or self.drive)(run)
        except BaseException:
            self._forget()
            for learner, gathered in before:
                learner.take_back(gathered)
            self.tally.sums, self.tally.periods = sums, periods
            raise
        self.last = run

    def drive(self, run: Rollout) -> None:
        """All ticks, block by block."""
        start, end = run.offset, run.offset + run.ticks
        while start < end:
            stop = min(self.block_end(start), end)
            self.block(run, start, stop)
            start = stop

    def block(self, run: Rollout, start: int, stop: int) -> None:
        """Run and learn from tick `start` to `stop`, between which no update of a block's weights lies."""
        run.begin(start, stop)
        if run.partner is not None:
            run.partner.begin(start, stop)
        run_components(run, self.parts, start, stop)
        for group in self.live:
            group.learn(run, start, stop)
        if stop == run.offset + run.ticks:
            for each in self.groups:
                each.finish(run)
        run.end(cut=True)
        if run.partner is not None:
            run.partner.end(cut=True)
        run.state_log.clear()
        if self.live:
            run.states = tree_map(lambda v: v.detach() if isinstance(v, Tensor) else v, run.states)

    def _prepare(self, run: Rollout) -> None:
        for group in self.groups:
            if self.tally not in group.prop.probes:
                group.prop.probes = [*group.prop.probes, self.tally]
        for part in self.parts:
            for learner in part:
                if isinstance(learner, Learner):
                    learner.lag, learner.late = wait_of(learner, part, run.streaming)
        for group in self.groups:
            group.prepare(run)
        if self.signal is not None:
            self._begin_signal(run)

    def _begin_anew(self, run: Rollout) -> None:
        for learner in self.learners:
            learner.begin_anew(torch.ones(run.rows, dtype=torch.bool, device=run.device))

    def block_end(self, start: int, most: int | None = None) -> int:
        """Where the block that begins at `start` ends: with its update period, or after so many ticks at `most`."""
        if self.live:
            return start + 10**9 if self.block_ticks is None else (start // self.block_ticks + 1) * self.block_ticks
        if isinstance(self.update, int):
            period_end = (start // self.update + 1) * self.update
            return min(period_end, start + (most or CHUNK))
        return start + (most or CHUNK)

    def _forget(self) -> None:
        for group in self.groups:
            group.reset()

    def reset(self, rows: Tensor | None = None) -> None:
        """Rows start anew: what waits for targets of theirs is forgotten."""
        if rows is None:
            self._forget()
            return
        for learner in self.learners:
            learner.forget(rows)

    def losses(self) -> dict[str, Tensor]:
        """Mean loss of every group over what it learned from in the last rollout."""
        return self.tally.losses()

    def _begin_signal(self, run: Rollout) -> None:
        """The signal's own rollout, beside that of the data; it continues where that does."""
        assert self.signal is not None
        batch = self.signal(self.graph.sources, run.ticks)
        made = Rollout(self.graph, batch, "last", run.offset, run.streaming)
        made.signalling = True
        past = None if self.graph.run is None or run.offset == 0 else self.graph.run.partner
        for key, signal in run.signals.items():
            made.signals[key] = Signal(made.zero(key), signal.reach)
        if past is not None:
            made.continues(past)
        run.partner = made


def names_of(target: Any) -> set[str]:
    """The module whose port a target is read from."""
    if isinstance(target, (PortDrive, PortOutput)):
        return {target.module.name}
    return {target.source.name} if isinstance(target, ShiftedInput) else set()


def sources_of_targets(unit: GraphUnit) -> set[str]:
    """Modules whose ports hold targets of a unit."""
    return set().union(*(names_of(term.target) for term in unit.terms.values() if term.target is not None))


def shift_of(target: Any, streaming: bool) -> int:
    """Ticks by which a target comes late; in a rollout those in the batch do not."""
    late = isinstance(target, PortOutput) or (streaming and isinstance(target, ShiftedInput))
    return max(target.shift, 0) if late else 0


def wait_of(learner: Learner, part: list[Any], streaming: bool) -> tuple[int, bool]:
    """Ticks by which the last of a group's targets comes late; and whether its holder runs later in the tick."""
    targets = [t.target for name, t in learner.unit.terms.items() if name not in learner.unit.own_targets]
    later = {name for other in part[part.index(learner) :] for name in other.names}
    lag = max([0, *(shift_of(target, streaming) for target in targets)])
    return lag, any(names_of(target) & later for target in targets)
