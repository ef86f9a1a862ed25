"""Which modules are due at which tick, for all time."""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm

from .blueprint import Blueprint, ModuleFacts

MOST_TICKS = 32
"""So many ticks of a period are shown."""


@dataclass(frozen=True)
class DueSet:
    """What one tick does; ticks with equal due sets do the same.

    Attributes:
        steps: modules that compute, in the order of the tick; sources only emit.
        emits: modules that emit, likewise.
        resets: modules whose state starts anew before they step.
        learns: gradient groups that learn, by name.
        updates: groups whose optimizers step.
    """

    steps: tuple[str, ...]
    emits: tuple[str, ...]
    resets: tuple[str, ...] = ()
    learns: tuple[str, ...] = ()
    updates: tuple[str, ...] = ()


class Timetable:
    """Due sets of all ticks, counted from 0 in the rollout; after a period they repeat.

    Attributes:
        order: all modules in the order of a tick.
        period: the least common multiple of all emission periods.
    """

    def __init__(self, blueprint: Blueprint) -> None:
        self.paces = {m.name: m for m in blueprint.modules}
        self.sources = frozenset(blueprint.sources)
        self.order = tuple(self.paces)
        self.period = lcm(*(m.emit_every for m in blueprint.modules))

    def emits(self, name: str, tick: int) -> bool:
        """Does the module emit at that tick?"""
        return _since(self.paces[name], tick) == 0

    def steps(self, name: str, tick: int) -> bool:
        """Does it compute?"""
        return name not in self.sources and (not self.paces[name].rests or self.emits(name, tick))

    def at(self, tick: int) -> DueSet:
        """Who steps and emits at a tick; :class:`imprint.runtime.Cycle` knows of resets and learning too."""
        steps, emits = (tuple(n for n in self.order if due(n, tick)) for due in (self.steps, self.emits))
        return DueSet(steps, emits)

    def reset_period(self, name: str) -> int | None:
        """Ticks between two fresh starts of a module's state; None without any, or where they follow no number."""
        pace = self.paces[name]
        if not pace.reset_every:
            return None
        return pace.reset_every * (pace.emit_every if pace.rests else 1)

    def resets(self, name: str, tick: int) -> bool:
        """Does its state start anew before it steps? At the very first step it is new as it is."""
        pace, period = self.paces[name], self.reset_period(name)
        if period is None or not self.steps(name, tick):
            return False
        first = (pace.offset - 1) % pace.emit_every if pace.rests else 0
        return tick > first and (tick - first) % period == 0

    def last_emission(self, name: str, tick: int) -> int | None:
        """The last tick up to this one at which it emitted; None before its first emission."""
        then = tick - _since(self.paces[name], tick)
        return then if then >= 0 else None

    def last_step(self, name: str, tick: int) -> int | None:
        """The last tick up to this one at which it computed; None before the first."""
        if self.paces[name].rests:
            return self.last_emission(name, tick)
        return tick if tick >= 0 else None

    def line(self, name: str) -> str:
        """A mark a tick of one period: ``●`` it emits, ``·`` it only steps, a blank where it rests."""
        ticks = range(min(self.period, MOST_TICKS))
        marks = ("●" if self.emits(name, t) else "·" if self.steps(name, t) else " " for t in ticks)
        return "".join(marks) + ("…" if self.period > MOST_TICKS else "")

    def __repr__(self) -> str:
        width = max(map(len, self.order))
        return "\n".join(f"{name:<{width}}  {self.line(name)}".rstrip() for name in self.order)


def _since(pace: ModuleFacts, tick: int) -> int:
    """Ticks since the last end of a period, 0 at one."""
    return (tick + 1 - pace.offset) % pace.emit_every
