"""One block of ticks of a graph, learning included, as a function of fixed tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..etrace.deferred import deferred
from ..graph.learner import Learner
from ..graph.learning import Learning, Tally
from ..graph.rollout import Rollout
from ..graph.runner import facts_of
from ..monitors.metric import Metric
from ..propagators.probe import Probe
from .blockrun import BlockAgenda, BlockRun
from .carries import Carried, Carry
from .host import Device
from .store import Store, write_all


class Losses(Probe):
    """Adds the losses of every group up in the store, and counts updates."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.updates: dict[str, int] = {}
        self.sums: dict[str, Tensor] = {}

    def learned(self, prop: Any, x: Any, out: Any, y: Any, loss: Tensor) -> None:
        """Add up."""
        name = f"{prop.name}: loss"
        self.updates.setdefault(prop.name, 0)
        before = self.sums.get(name)
        self.sums[name] = (self.store.hold(name, loss.detach()) if before is None else before) + loss.detach()

    def updated(self, prop: Any, grads: Any) -> None:
        """A period is over."""
        self.updates[prop.name] = self.updates.get(prop.name, 0) + 1


class Body:
    """What a block does, and what it leaves for the host to do.

    Args:
        learning: the graph's groups.
        run: a rollout for which it stands.
        start, stop: the block within it.
        carried: what each group's credit carries before it.
        masked: rows end at ticks of their own.

    Attributes:
        after: what each group's credit carries after it.
        updates: by group that has a loss, how many.
        left: optimizers to be stepped afterwards, with the gradients that are kept for them.
        counts: what metrics count that is no tensor.
    """

    def __init__(
        self, learning: Learning, run: Rollout, start: int, stop: int, carried: dict[str, Carried], masked: bool,
        store: Store, carries: dict[str, Carry], device: Device, counter: Tensor, metrics: list[Metric],
    ) -> None:  # fmt: skip
        self.learning, self.run, self.start, self.stop = learning, run, start, stop
        self.carried, self.masked, self.store, self.carries = carried, masked, store, carries
        self.device, self.counter, self.metrics = device, counter, metrics
        self.after: dict[str, Carried] = {}
        self.updates: dict[str, int] = {}
        self.left: list[Any] = []
        self.sums: list[tuple[str, Tensor]] = []
        self.counts: list[tuple[Metric, Any, int, float]] = []
        self.summed: set[tuple[Metric, Any, int]] = set()

    def __call__(self, *_: Any) -> tuple[()]:
        """Run the block on the fixed tensors, and write what it leaves into them."""
        store, ticks = self.store, self.stop - self.start
        index = self.counter if ticks == 1 else self.counter + torch.arange(ticks, device=self.counter.device)
        run = BlockRun(self.run, store, index, self.start, self.stop, self.masked)
        runs = [run]
        if self.run.partner is not None:
            runs.append(BlockRun(self.run.partner, store, index, self.start, self.stop, False, "signal of "))
            run.partner = runs[1]
        self.device.begin()
        self.sums, self.counts = [], []
        losses = Losses(store)
        with self._substituted(run, index, losses), deferred() as self.device.premises:
            self.learning.block(run, self.start, self.stop)
            self.after = {name: carry.seen() for name, carry in self.carries.items()}
            pairs = [pair for carry in self.carries.values() for pair in carry.writes()]
        with torch.no_grad():
            pairs += [pair for each in runs for pair in each.writes()]
            pairs += [(store[name], v) for name, v in [*losses.sums.items(), *self.sums]]
            pairs += self.device.writes((self.counter + store["first tick"])[0])
            run.show()
            fixed = [*store.held.values(), *(v for c in self.carries.values() for v in c.tensors)]
            write_all(pairs, fixed)
            self.device.steps.hoist()
            self.counter.add_(ticks)
        self.updates, self.left = losses.updates, self.device.left
        return ()

    @contextmanager
    def _substituted(self, run: BlockRun, index: Tensor, losses: Losses) -> Iterator[None]:
        """The engine's groups with this block's targets, carries and steps."""
        groups = self.learning.groups
        kept = [(g, dict(vars(g)), g.prop, {k: vars(g.prop)[k] for k in PROP}) for g in groups]
        sums = [(m, m.sums) for m in self.metrics]
        try:
            for group in groups:
                prop, name = group.prop, group.prop.name
                group.agenda = BlockAgenda(group.agenda, name, self.store, index, self.start, self.stop)
                if isinstance(group, Learner):
                    facts = [facts_of(run, t, group.unit) for t in range(self.start, self.stop)]
                    numbers = index + self.store["first tick"]
                    group.facts = {f.tick: replace(f, tick=numbers[i]) for i, f in enumerate(facts)}
                prop.host = self.device
                prop.probes = [losses if isinstance(probe, Tally) else probe for probe in prop.probes]
                if name in self.carries:
                    self.carries[name].put(self.carried[name])
            for m in self.metrics:
                m.sums = {}
            yield
            for m in self.metrics:
                self._summed(m)
        finally:
            for group, attributes, prop, own in kept:
                vars(group).clear()
                vars(group).update(attributes)
                vars(prop).update(own)
            for m, before in sums:
                m.sums = before

    def _summed(self, metric: Metric) -> None:
        """What a metric has added in this block."""
        for key, pair in metric.sums.items():
            for i, v in enumerate(pair):
                if isinstance(v, Tensor):
                    name = sum_name(metric, key, i)
                    self.sums.append((name, self.store.hold(name, v) + v))
                    self.summed.add((metric, key, i))
                elif v:
                    self.counts.append((metric, key, i, v))


PROP = ("host", "probes", "carry", "ticks")


def sum_name(metric: Metric, key: Any, i: int) -> str:
    """Of what a metric has added up."""
    return f"monitor {metric.name}: {key}, {i}"
