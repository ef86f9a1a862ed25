"""What the ticks of a graph do, resets and learning included, until all of it repeats."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import lcm

from .blueprint import IRREGULAR
from .learned import Group
from .timetable import DueSet, Timetable

MOST = 4096
"""So many ticks of a hyper-period are looked at."""


class Cycle:
    """Due sets over a hyper-period, by the schedule alone: whether there are targets is up to each batch.

    Learning that belongs to no tick, because it comes with the end of a rollout or of a row, is in none of them.

    Args:
        table: who steps and emits.
        groups: how groups learn; those that are frozen do not.

    Attributes:
        reasons: every period that is part of it, with who has it.
        length: their least common multiple.
    """

    def __init__(self, table: Timetable, groups: Iterable[Group] = ()) -> None:
        self.table, self.groups = table, [group for group in groups if group.optimizers]
        self.reasons: dict[int, list[str]] = {}
        for name, pace in table.paces.items():
            self._because(pace.emit_every, f"{name} emits")
        for name in table.paces:
            self._because(table.reset_period(name) or 1, f"{name} starts anew")
        for update in {group.update for group in self.groups}:
            self._because(update if isinstance(update, int) else 1, "update")
        for block in {group.block for group in self.groups}:
            self._because(block or 1, "credit")
        self.length = lcm(*self.reasons)
        self.irregular = [name for name, pace in table.paces.items() if pace.reset_every == IRREGULAR]

    def _because(self, period: int, who: str) -> None:
        if period > 1:
            self.reasons.setdefault(period, []).append(who)

    def at(self, tick: int) -> DueSet:
        """What a tick does that has as many before it as matter: at the very first ones states are new as they are."""
        back = self.length * (1 + max((group.lag for group in self.groups), default=0) // self.length)
        t = tick + back
        due, table = self.table.at(tick), self.table
        return replace(
            due,
            resets=tuple(name for name in due.steps if table.resets(name, t)),
            learns=tuple(group.name for group in self.groups if self._learns(group, t - group.lag)),
            updates=tuple(group.name for group in self.groups if self._updates(group, t - group.lag)),
        )

    def sets(self) -> dict[DueSet, list[int]]:
        """The distinct ones, each with its ticks among the first :data:`MOST` of a hyper-period."""
        made: dict[DueSet, list[int]] = {}
        for tick in range(min(self.length, MOST)):
            made.setdefault(self.at(tick), []).append(tick)
        return made

    def _learns(self, group: Group, tick: int) -> bool:
        """Is a sample of that tick learned from, or a block of ticks that ends with it?"""
        if group.block is None:
            return False
        block = range(tick // group.block * group.block, tick + 1)
        if len(block) < group.block:
            return False
        return self._teaches(group, tick) and any(self._judged(group, t, False) for t in block)

    def _updates(self, group: Group, tick: int) -> bool:
        """Does an update period end with that tick, and was there something to learn from in it?"""
        period = _period(group)
        return period is not None and (tick + 1) % period == 0 and self._teaches(group, tick)

    def _teaches(self, group: Group, tick: int) -> bool:
        """Is there data in the update period of that tick? Regularisers alone teach nothing."""
        period = _period(group)
        if period is None:
            return any(asked.data for asked in group.asked)
        first = tick // period * period
        return any(self._judged(group, t, True) for t in range(first, first + period))

    def _judged(self, group: Group, tick: int, data: bool) -> bool:
        """Does any objective (any with data) look at an emission of that tick? Those of last emissions do so later."""
        table = self.table
        return any(a.at == "all" and (a.data or not data) and table.emits(a.module, tick) for a in group.asked)


def _period(group: Group) -> int | None:
    """Ticks between two updates; None: a whole rollout."""
    return None if group.update == "rollout" else 1 if group.update == "tick" else int(group.update)
