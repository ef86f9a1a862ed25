"""What a captured block takes for granted, so that equal blocks are captured once."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch

from ..graph.learning import Learning
from ..graph.rollout import Rollout
from ..graph.schedule import Schedule

TickFacts = tuple[Hashable, ...]


class Facts:
    """Python facts of one graph's ticks, each found once.

    Args:
        schedule: who steps and emits when.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.known: dict[int, TickFacts] = {}

    def at(self, t: int) -> TickFacts:
        """Who steps, emits and starts anew at tick `t`."""
        if t not in self.known:
            names = list(self.schedule.modules)
            steps = [n for n in names if self.schedule.modules[n].proto is not None and self.schedule.steps(n, t)]
            resets = [
                n
                for n in steps
                if self.schedule.modules[n].proto.resets_at(self.schedule.own_tick(n, t))  # type: ignore[union-attr]
            ]
            emits = [n for n in names if self.schedule.emits(n, t)]
            self.known[t] = (tuple(steps), tuple(emits), tuple(resets))
        return self.known[t]


def learns_at(learning: Learning, t: int) -> TickFacts:
    """Which terms are due at tick `t`, and whose period ends."""
    return tuple(
        (tuple(term for term, _ in group.agenda.at.get(t, ())), group.agenda.ends_period(t))
        for group in learning.groups
    )


def mode_of(run: Rollout, learning: Learning | None, masked: bool) -> Hashable:
    """What holds for a whole rollout."""
    flags: list[Any] = [tuple(run.kept), masked, tuple(m.training for m in run.graph.modules()), run.rows, run.dtype]
    flags += [torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()]
    for group in learning.groups if learning is not None else ():
        agenda, prop = group.agenda, group.prop
        terms = [
            (n, _shape(d.y), d.valid is None, d.read is None, _alike(agenda.shares[n])) for n, d in agenda.dues.items()
        ]
        flags.append((prop.name, bool(prop.optimizers), prop.grad_clip, tuple(terms)))
    return tuple(flags)


def _shape(y: Any) -> Hashable:
    return None if y is None else (tuple(y.shape[1:]), y.dtype)


def _alike(share: Any) -> Hashable:
    """A share that is 1 is left out of a block; another is read."""
    return share == 1.0 if isinstance(share, float) else share.dtype
