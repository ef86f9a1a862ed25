"""Inputs and targets of a stretch of ticks, at fixed addresses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from ..graph.learning import Learning
from ..graph.rollout import Rollout, both
from .blockrun import ring_name, state_leaves, state_name, target_name
from .store import Store


class Slots:
    """Fills what blocks read at the present tick, and empties what they show.

    Args:
        store: where slots and rings are.
        ticks: how many a slot has.
    """

    def __init__(self, store: Store, ticks: int) -> None:
        self.store, self.ticks = store, ticks

    def fill(self, run: Rollout, learning: Learning | None, start: int, stop: int, masked: bool) -> None:
        """Ticks `start` to `stop` of a rollout."""
        for prefix, each in zip(("", "signal of "), both(run), strict=False):
            for name in each.sources:
                self._put(f"{prefix}{name}", each.shown(name, start, stop))
        if masked:
            assert run._valid is not None
            self._put("valid", run._valid[start - run.offset : stop - run.offset])
        for group in learning.groups if learning is not None else []:
            self._targets(run, group, start, stop)

    def _targets(self, run: Rollout, group: object, start: int, stop: int) -> None:
        agenda, name = group.agenda, group.prop.name  # type: ignore[attr-defined]
        for term, due in agenda.dues.items():
            first = sum(t < start for t in due.ticks)
            ticks = [t - start for t in due.ticks[first:] if t < stop]
            if not ticks:
                continue
            slot, part = target_name(name, term), slice(first, first + len(ticks))
            if due.y is not None:
                self._put(f"{slot}, y", due.y[part], ticks)
            if due.valid is not None:
                self._put(f"{slot}, valid", due.valid[part], ticks)
            share = agenda.shares[term]
            if not isinstance(share, float):
                self._put(f"{slot}, share", share[part], ticks)
            elif share != 1.0:
                self._hold(f"{slot}, share", torch.empty((), dtype=run.dtype, device=run.device)).fill_(share)
        if agenda.penalties:
            sizes = [float(agenda.sizes[agenda.period(t)]) for t in range(start, stop)]
            self._put(f"{name}, size", torch.tensor(sizes, dtype=run.dtype, device=run.device).clamp_min(1))

    def _hold(self, name: str, like: Tensor) -> Tensor:
        """A slot for values like this one."""
        return self.store.hold(name, like.new_empty(()).expand(self.ticks, *like.shape))

    def _put(self, name: str, values: Tensor, at: list[int] | None = None) -> None:
        """Values ``[n, …]`` at the first ticks, or at these."""
        slot = self._hold(name, values[0])
        if at is None or len(at) == 0 or at[-1] - at[0] + 1 == len(at):
            first = at[0] if at else 0
            slot[first : first + len(values)].copy_(values)
        else:
            slot.index_copy_(0, torch.tensor(at, device=slot.device), values.contiguous())

    def rings(self, run: Rollout) -> None:
        """Room for what is kept."""
        for name, like, _ in shown(run):
            self._hold(ring_name(name), like)

    def want(self, run: Rollout, start: int, stop: int, wanted: Mapping[str, Tensor | None]) -> None:
        """What is wanted of emissions, at the ticks at which they were made."""
        for name, like, due in shown(run):
            before = sum(map(due, range(run.offset, start)))
            at = [t - start for t in range(start, stop) if due(t)]
            stack, slot = wanted.get(name), self._hold(f"wanted of {ring_name(name)}", like)
            if stack is None:
                slot.zero_()
            elif at:
                self._put(f"wanted of {ring_name(name)}", stack[before : before + len(at)], at)

    def empty(self, run: Rollout, start: int, stop: int, parts: dict[str, list[Tensor]]) -> None:
        """What was emitted at these ticks goes to `parts`."""
        for name, _, due in shown(run):
            at = [t - start for t in range(start, stop) if due(t)]
            ring = self.store[ring_name(name)]
            whole = len(at) == stop - start
            stack = ring[: len(at)].clone() if whole else ring[torch.tensor(at, dtype=torch.int64, device=ring.device)]
            parts.setdefault(name, []).append(stack)


def shown(run: Rollout) -> Iterator[tuple[str, Tensor, Callable[[int], bool]]]:
    """What is kept of a rollout: its name, what one of it is like, and whether there is one at a tick."""
    for key in run.kept:
        name, _, drive = key.partition(":")
        module = name.split(".")[0]
        yield key, run.signals[key].before, partial(run.schedule.steps if drive else run.schedule.emits, module)
    for module in run.watched:
        for path, v in state_leaves(run.states[module]):
            yield state_name(f"{module}: ", path), v, partial(run.schedule.emits, module)
