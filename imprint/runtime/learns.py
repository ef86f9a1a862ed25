"""Blocks of rollouts that learn."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import NonFiniteError, StructureError
from ..graph import Graph
from ..graph.learner import Learner
from ..graph.rollout import Rollout
from ..monitors.metric import Metric
from ..propagators import Propagator
from ..propagators.host import EAGER
from .blocks import Blocks, Player, Run
from .body import Body, sum_name
from .capture import tried
from .carries import Carried, Carry
from .host import Device
from .keys import learns_at, mode_of
from .legal import check_learning
from .optimizers import Steps

Updates = dict[str, int]
MOST_LISTS = 64
"""Lists of blocks of whole rollouts that are kept."""


@dataclass
class Function:
    """A captured block that learns.

    Attributes:
        run: does it.
        after: what each group's credit carries after it.
        updates, counts, left, summed: see :class:`imprint.runtime.body.Body`.
    """

    run: Run
    after: dict[str, Carried]
    updates: Updates
    counts: list[Any]
    left: list[Any]
    summed: set[Any]


class Learns(Blocks):
    """Blocks of a graph with a manager.

    Args:
        graph: with its groups.
        player: makes what runs from what is captured, and runs it.
        slots: ticks whose inputs and targets are brought at once.
        block: most ticks of one block where weights rest for longer.
    """

    def __init__(self, graph: Graph, player: Player, slots: int, block: int) -> None:
        super().__init__(graph, player, slots)
        self.learning: Any = graph.learning
        self.block = 1 if self.learning.update == "tick" else block
        self.functions: dict[Hashable, Function] = {}
        self.lists: dict[Hashable, list[Function]] = {}
        props = [group.prop for group in self.learning.groups]
        optimizers = [o for own in graph.manager.optimizers.values() for o in own]  # of frozen groups too
        self.steps = Steps(optimizers, self.counter.device)
        self.baked = self.steps.key()
        self.carries = {prop.name: Carry(prop, self.store) for prop in props}
        self.device = Device(self.steps, self.store, list(self.carries), self.counter)

    def block_end(self, start: int) -> int:
        """With the update period, or after so many ticks."""
        return int(self.learning.block_end(start, self.block))

    def stale(self) -> list[str]:
        """What has changed of the optimizers."""
        return ["an optimizer, its settings or its state"] * (self.steps.key() != self.baked)

    def learn(self, run: Rollout) -> None:
        """All ticks of a rollout."""
        check_learning(self.learning)
        self.load(run)
        carried = self._load_learning(run)
        plan = list(self.chunks(run))
        todo = self._functions(run, plan, carried)
        self.bring(run)
        counts: list[Any] = []
        updates: Updates = {}
        place = 0
        for chunk, stops in plan:
            self.slots.fill(run, self.learning, chunk, stops[-1], run.lengths is not None)
            self.counter.zero_()
            self.first.fill_(chunk)
            waiting: list[Run] = []
            for function in todo[place : place + len(stops)]:
                waiting.append(function.run)
                if function.left:
                    self.player.play(waiting)
                    waiting = []
                for each in function.left:
                    self._step_left(*each)
                counts += function.counts
                for name, n in function.updates.items():
                    updates[name] = updates.get(name, 0) + n
            self.player.play(waiting)
            place += len(stops)
            parts: dict[str, list[Tensor]] = {}
            self.slots.empty(run, chunk, stops[-1], parts)
            for key, kept in run.kept.items():
                kept += parts[key]
            if self.counter.device.type == "cpu":  # elsewhere reading would wait
                self._check()
        self._check()
        self.give(run)
        self._give_learning(todo[-1].after, updates, counts)

    # -- what is captured

    def _functions(
        self, run: Rollout, plan: list[tuple[int, list[int]]], carried: dict[str, Carried]
    ) -> list[Function]:
        """One a block, in order: all are there before the first one runs."""
        masked = run.lengths is not None
        mode = mode_of(run, self.learning, masked)
        regular = all(due.valid is None for g in self.learning.groups for due in g.agenda.dues.values())
        key = (mode, run.offset, run.ticks, tuple(carried.values()))
        if regular and key in self.lists:
            return self.lists[key]
        made = self._listed(run, plan, carried, mode, masked)
        if regular and len(self.lists) < MOST_LISTS:
            self.lists[key] = made
        return made

    def _listed(
        self, run: Rollout, plan: list[tuple[int, list[int]]], carried: dict[str, Carried], mode: Hashable, masked: bool
    ) -> list[Function]:
        made = []
        for chunk, stops in plan:
            for start, stop in zip([chunk, *stops], stops, strict=False):
                if any(carry.untold for carry in self.carries.values()):
                    carried = self._traced(run, start, stop, carried, masked)
                ticks = tuple((self.facts.at(t), learns_at(self.learning, t)) for t in range(start, stop))
                key = (mode, ticks, tuple(carried.values()))
                if key not in self.functions:
                    self.slots.fill(run, self.learning, chunk, stops[-1], masked)
                    self.counter.fill_(start - chunk)
                    self.functions[key] = self._capture(run, start, stop, carried, masked)
                made.append(self.functions[key])
                carried = self.functions[key].after
        return made

    def _body(self, run: Rollout, start: int, stop: int, carried: dict[str, Carried], masked: bool) -> Body:
        return Body(
            self.learning, run, start, stop, carried, masked, self.store, self.carries, self.device, self.counter,
            self.metrics,
        )  # fmt: skip

    def _traced(
        self, run: Rollout, start: int, stop: int, carried: dict[str, Carried], masked: bool
    ) -> dict[str, Carried]:
        """The same, where traces come to be in the first block already there, and zero."""
        self.slots.fill(run, self.learning, start, stop, masked)
        tried(self._body(run, start, stop, carried, masked), self.fixed)
        self.steps.load()
        return {name: carry.load() for name, carry in self.carries.items()}

    def _capture(self, run: Rollout, start: int, stop: int, carried: dict[str, Carried], masked: bool) -> Function:
        body = self._body(run, start, stop, carried, masked)
        ready = self.make(body, f"ticks {start} to {stop - 1}" if stop - start > 1 else f"tick {start}")
        return Function(ready, body.after, body.updates, body.counts, body.left, body.summed)

    @property
    def metrics(self) -> list[Metric]:
        """Of all groups, each once."""
        found = {id(p): p for g in self.learning.groups for p in g.prop.probes if isinstance(p, Metric)}
        return list(found.values())

    def fixed(self) -> Iterable[tuple[str, Tensor]]:
        """Optimizer state, traces and what objectives own, too."""
        yield from super().fixed()
        for group in self.learning.groups:
            prop, members = group.prop, getattr(group.unit, "unit", group.unit).members
            yield from prop.params.items()
            yield from members.named_parameters()
            yield from members.named_buffers()
            yield from ((f"{prop.name}: trace {i}", v) for i, v in enumerate(self.carries[prop.name].tensors))
        yield from ((f"optimizer state {i}", v) for i, v in enumerate(self.steps.tensors()))

    # -- before and after

    def _load_learning(self, run: Rollout) -> dict[str, Carried]:
        self.steps.load()
        self.device.reset()
        for name, v in self.store.held.items():
            if name.endswith(": loss") or name.startswith("monitor "):
                v.zero_()
        carried = {name: carry.load() for name, carry in self.carries.items()}
        for learner in self.learning.learners:
            if learner.begun is not None:
                self.carries[learner.prop.name].reset(learner.begun)
                learner.begun = None
        return carried

    def _give_learning(self, carried: dict[str, Carried], updates: Updates, counts: list[Any]) -> None:
        for name, carry in self.carries.items():
            carry.give(carried[name])
        self.steps.store()
        tally = self.learning.tally
        for name in self.carries:
            if name in updates and f"{name}: loss" in self.store:
                tally.sums[name] = self.store[f"{name}: loss"].clone()
                tally.periods[name] = updates.get(name, 0)
        for group in self.learning.groups:
            if isinstance(group, Learner):
                group.stepped = bool(updates.get(group.prop.name))
        self._metrics(counts)

    def _metrics(self, counts: list[Any]) -> None:
        """What the metrics added up, on the device and besides."""
        summed = {each for function in self.functions.values() for each in function.summed}
        found: dict[Any, list[Any]] = {}
        for metric, key, i in summed:
            found.setdefault((metric, key), [0.0, 0.0])[i] = self.store[sum_name(metric, key, i)].clone()
        for metric, key, i, n in counts:
            pair = found.setdefault((metric, key), [0.0, 0.0])
            pair[i] = pair[i] + n
        for (metric, (unit, column)), (total, things) in found.items():
            metric.add(unit, total, things, column)

    def _check(self) -> None:
        """A loss that was not finite, named with its group and tick; weights are those of before it."""
        if bool(self.store["going"]):
            return
        self.steps.store()
        failed = self.store["failed at"].tolist()
        if max(map(max, failed)) < 0:
            raise StructureError(
                f"one of the hidden groups {'; '.join(sorted(self.device.doubtful))}",
                "its recurrence was one number in every sample, and is not here", expected="units alike",
                fix="credit=ETrace() on a batch as it is met in running",
            )  # fmt: skip
        kind, name, tick = min(
            ((kind, name, t) for kind in range(2) for name, t in zip(self.device.names, failed[kind], strict=True)
             if t >= 0), key=lambda each: each[2]
        )  # fmt: skip
        try:
            not_a_number = torch.tensor(float("nan"))
            prop = next(g.prop for g in self.learning.groups if g.prop.name == name)
            (EAGER.check if kind == 0 else EAGER.check_norm)(prop, not_a_number)
        except NonFiniteError as error:
            error.where += f", tick {tick}"
            raise

    def _step_left(self, optimizer: Any, grads: dict[str, Tensor], prop: Propagator) -> None:
        """An optimizer that is no maths steps by itself."""
        if not bool(self.store["going"]):
            return
        EAGER.step_all([optimizer], {prop.params[k]: g for k, g in grads.items()})
        for group in self.learning.groups:
            if group.prop is prop:
                for module in group.unit.modules.values():
                    module.project_()
