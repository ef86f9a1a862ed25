"""How gradient groups learn, and what one learned at a tick."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ..credit import Unrolled, Window
from ..graph.learner import Learner
from ..graph.live import LiveGroup
from ..graph.pair import PairUnit
from ..graph.rollout import Rollout
from ..graph.unit import GraphUnit


@dataclass(frozen=True)
class Learned:
    """A gradient group learned at a tick.

    Attributes:
        group: names of its modules, joined with ``+``.
        terms: what it learned from, as ``module.objective``, by the tick of the emissions that were judged: an earlier
            one where targets come late, or where credit looks at a block of ticks when that is over.
        updates: optimizer steps taken then; 0 while gradient is only gathered.
        moved: the modules whose weights those steps had a gradient for.
    """

    group: str
    terms: Mapping[int, tuple[str, ...]]
    updates: int
    moved: tuple[str, ...]

    def __repr__(self) -> str:
        words = [f"{name}@{t}" for t, names in self.terms.items() for name in names]
        does = [f"learns {', '.join(words)}"] * bool(words) + [f"updates {', '.join(self.moved)}"] * bool(self.updates)
        return f"Learned({self.group}: {'; '.join(does)})"


class Asked(NamedTuple):
    """An objective: its name, its module, at which of that one's emissions, and whether it can teach alone."""

    name: str
    module: str
    at: str
    data: bool


@dataclass(frozen=True)
class Group:
    """How a gradient group learns.

    Attributes:
        name: names of all its modules, joined with ``+``.
        modules: those of them that a data objective reaches.
        asked: its objectives.
        penalties: regularisers of parameters, once an update.
        credit: who is responsible, in words.
        update: ``"tick"``, a number of ticks, or ``"rollout"``.
        block: ticks after which it learns from all of them; None: when a rollout is over.
        lag: ticks by which the last of its targets comes late.
        optimizers: their types; none while it is frozen.
    """

    name: str
    modules: tuple[str, ...]
    asked: tuple[Asked, ...]
    penalties: tuple[str, ...]
    credit: str
    update: str | int
    block: int | None
    lag: int
    optimizers: tuple[str, ...]


def groups_of(run: Rollout) -> tuple[Group, ...]:
    """How the groups learned in `run`."""
    learning = run.graph.learning
    made = []
    for group in learning.groups:
        unit, prop, alone = unit_of(group), group.prop, isinstance(group, Learner)
        asked = tuple(Asked(k, k.split(".")[0], t.at, t.data) for k, t in unit.terms.items())
        window = Unrolled() if learning.block_ticks is None else Window(learning.block_ticks)
        made.append(
            Group(
                prop.name, reached_of(unit), asked, penalties_of(unit), repr(prop.credit if alone else window),
                learning.update, 1 if alone else learning.block_ticks, group.lag if alone else 0,
                tuple(dict.fromkeys(type(o).__name__ for o in prop.optimizers)),
            )
        )  # fmt: skip
    return tuple(made)


def unit_of(group: Learner | LiveGroup) -> GraphUnit:
    """Without the signal that may travel beside the data."""
    unit = group.unit
    return unit.unit if isinstance(unit, PairUnit) else unit


def reached_of(unit: GraphUnit) -> tuple[str, ...]:
    """Members that a data objective reaches."""
    return tuple(n for n in unit.modules if n in unit.reached)


def penalties_of(unit: GraphUnit) -> tuple[str, ...]:
    """Its regularisers of parameters, as ``module.name``."""
    return tuple(f"{m.name}.{p.name}" for m, p in unit.penalties)
