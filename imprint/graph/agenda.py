"""What a gradient group has to learn at each tick of one rollout."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from .due import Due, make_due
from .evaluate import shares_of
from .rollout import Rollout
from .unit import GraphUnit


class Agenda:
    """Targets by tick, each with its share of the mean over its update period.

    A period in which no data objective has a valid pair has nothing to learn: regularisers alone move nothing.

    Args:
        run: the rollout.
        unit: the group, with its terms.
        update: ``"tick"``, a number of ticks, or ``"rollout"``.
    """

    def __init__(self, run: Rollout, unit: GraphUnit, update: str | int) -> None:
        self.first, self.last, self.streaming = run.offset, run.offset + run.ticks - 1, run.streaming
        self.own = unit.own_targets
        self.update, self.batch, self.penalties = update, run.batch, bool(unit.penalties)
        self.dues: dict[str, Due] = {}
        self.at: dict[int, list[tuple[str, int]]] = {}
        self.shares: dict[str, Any] = {}
        for name, term in unit.terms.items():
            due = self.dues[name] = make_due(run, unit.modules[name.split(".")[0]], name, term)
            self.shares[name] = self._shares(run, due)
            for e, t in enumerate(due.ticks):
                if due.alive[e]:
                    self.at.setdefault(t, []).append((name, e))
        data = {self.period(t) for t, due in self.at.items() if any(self.dues[name].term.data for name, _ in due)}
        self.at = {t: due for t, due in sorted(self.at.items()) if self.period(t) in data}
        self.sizes = Counter(self.period(t) for t in self.at)
        if self.streaming and self.update != "tick":
            self.sizes = Counter({0: len(self._scheduled(run, *(due.module.name for due in self.dues.values())))})

    def _shares(self, run: Rollout, due: Due) -> Any:
        if not self.streaming or self.update == "tick":
            return shares_of(due, [self.period(t) for t in due.ticks])
        return 1.0 / max(len(self._scheduled(run, due.module.name)), 1)

    def _scheduled(self, run: Rollout, *modules: str) -> set[int]:
        """Emission ticks of the whole present period: in a stream what is ahead is unknown but for the schedule."""
        first = self.first - self.first % int(self.update)
        return {t for name in modules for t in run.schedule.emission_ticks(name, first, first + int(self.update))}

    def period(self, t: int) -> int:
        """Number of the update period that tick `t` is in."""
        if self.update == "rollout":
            return 0
        return t - self.first if self.update == "tick" else t // int(self.update) - self.first // int(self.update)

    def ends_period(self, t: int) -> bool:
        """Is tick `t` the last of its update period? The last of a rollout always is."""
        if self.update == "tick" or (t == self.last and not self.streaming):
            return True
        return self.update != "rollout" and (t + 1) % int(self.update) == 0

    def targets(self, t: int) -> dict[str, Any] | None:
        """What the terms need at tick `t`; None if nothing is due. Targets held by ports are read by `complete`."""
        if t not in self.at:
            return None
        made: dict[str, Any] = {}
        for name, e in self.at[t]:
            due, share = self.dues[name], self.shares[name]
            made[name] = {
                "y": None if due.y is None else due.y[e],
                "read": None if name in self.own else due.read,
                "batch": self.batch, "valid": None if due.valid is None or due.whole[e] else due.valid[e],
                "share": share if isinstance(share, float) else share[e], "complete": due.valid is None,
            }  # fmt: skip
        if self.penalties:
            made["penalty"] = 1.0 / self.sizes[self.period(t)]
        return made

    @staticmethod
    def complete(run: Rollout, t: int, y: dict[str, Any] | None) -> dict[str, Any] | None:
        """Read the targets of tick `t` that other ports hold now."""
        if y is None:
            return None
        return {
            name: {**due, "y": due["read"](run, t)} if isinstance(due, dict) and due["read"] else due
            for name, due in y.items()
        }

    def rows(self, run: Rollout, ticks: list[int]) -> dict[str, Any]:
        """The targets of many ticks of one module as those of one tick with their rows one after another, ``[E·B]``."""
        made: dict[str, Any] = {}
        counting = {name for t in ticks for name, _ in self.at[t]}
        for name, due in self.dues.items():
            if name not in counting:
                continue
            at = [due.ticks.index(t) for t in ticks]
            share = self.shares[name]
            y = None if due.y is None else due.y[at].flatten(0, 1)
            made[name] = {
                "y": torch.cat([due.read(run, t) for t in ticks]) if due.read is not None else y,
                "valid": None if due.valid is None else due.valid[at].flatten(), "batch": self.batch, "read": None,
                "share": share * len(at) if isinstance(share, float) else share[at].sum(),
                "complete": due.valid is None,
            }  # fmt: skip
        if self.penalties:
            made["penalty"] = len(ticks) / self.sizes[self.period(ticks[0])]
        return made
