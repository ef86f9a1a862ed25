"""What a recording says of a graph: its schedule, its due sets, its ports, and who learned from what."""

from __future__ import annotations

from collections.abc import Sequence

from ..graph.describe import size_text, table
from .cycle import MOST, Cycle
from .events import Event, PortOp
from .learned import Group
from .ran import Ran
from .timetable import DueSet, Timetable

SHOWN = 8
"""So many ticks of a due set are listed."""


def explained(rans: Sequence[Ran], events: Sequence[Event], schedule: Timetable) -> str:
    """The text of :meth:`imprint.runtime.Recording.explain`; of several rollouts, groups are those of the last."""
    cycle = Cycle(schedule, rans[-1].groups)
    parts = [_schedule(schedule), _hyper_period(cycle), _due_sets(cycle), _ports(events), _learning(rans)]
    return "\n\n".join(parts)


def _schedule(schedule: Timetable) -> str:
    count = plural(schedule.period, "tick")
    return f"schedule: repeats after {count} (● emits, · only steps)\n{_indented(repr(schedule))}"


def _hyper_period(cycle: Cycle) -> str:
    whys = [f"{period} ({', '.join(who)})" for period, who in sorted(cycle.reasons.items())]
    text = f"hyper-period: {plural(cycle.length, 'tick')}"
    text += f", the least common multiple of {', '.join(whys)}" * bool(whys)
    if any(cycle.table.reset_period(name) for name in cycle.table.order):
        text += "\n  a reset at tick 0 is one from the second hyper-period on: in the first, states are new as they are"
    if cycle.irregular:
        text += f"\n  not in it: resets of {', '.join(cycle.irregular)}, which follow a rule of the proto's own"
    return text


def _due_sets(cycle: Cycle) -> str:
    sets = cycle.sets()
    over = f"{plural(cycle.length, 'tick')}" + f", the first {MOST} looked at" * (cycle.length > MOST)
    head = f"due sets: {len(sets)} in {over}"
    rows: list[tuple[str, ...]] = [("count", "ticks", "due")]
    rows += [(str(len(ticks)), _ticks(ticks), _due(due)) for due, ticks in sets.items()]
    return f"{head}\n{_indented(table(rows, right=[0]))}"


def _due(due: DueSet) -> str:
    words = (("step", due.steps), ("emit", due.emits), ("reset", due.resets), ("learn", due.learns))
    said = [f"{verb} {', '.join(names)}" for verb, names in (*words, ("update", due.updates)) if names]
    return "; ".join(said) or "nothing"


def _ticks(ticks: list[int]) -> str:
    return ", ".join(map(str, ticks[:SHOWN])) + (", …" if len(ticks) > SHOWN else "")


def _ports(events: Sequence[Event]) -> str:
    """What modules do to what arrives, once each: it is the same at every tick at which they step."""
    made: dict[str, list[str]] = {}
    for event in events:
        if event.ops:
            made.setdefault(event.module, [_op(event.module, op) for op in event.ops])
    lines = [line for each in made.values() for line in each]
    return "port ops, at every tick at which a module steps:\n" + _indented("\n".join(lines))


def _op(module: str, op: PortOp) -> str:
    shape = op.shape[1] if len(op.shape) == 2 else op.shape[1:]
    return f"{module}.{op.into} = {op.op}({', '.join(op.of)}) {size_text(shape)}"


def _learning(rans: Sequence[Ran]) -> str:
    last = rans[-1]
    if not last.learned:
        who = "a manager is attached, and did not learn in it" if last.blueprint.managed else "no manager"
        asked = f"; loss() is the sum of {', '.join(last.declared)}" if last.declared else "; no objectives"
        return f"learning: {who}{asked * (not last.blueprint.managed)}"
    rows: list[tuple[str | list[str], ...]]
    rows = [("group", "objectives", "credit", "update", "optimizers", "learned", "updates")]
    for group in last.groups:
        lessons = [x for ran in rans for each in ran.lessons.values() for x in each if x.group == group.name]
        learned = len({(id(x), t) for x in lessons for t in x.terms})
        optimizers = " + ".join(group.optimizers) or "none: frozen"
        rows.append(
            (group.name, _asked(group), group.credit, str(group.update), optimizers, plural(learned, "tick"),
             str(sum(x.updates for x in lessons)))
        )  # fmt: skip
    inside = {name for group in last.groups for name in group.modules}
    rest = [m.name for m in last.blueprint.modules if m.name not in inside and m.name not in last.blueprint.sources]
    text = f"learning: {plural(len(last.groups), 'group')}\n{_indented(table(rows, right=[5, 6]))}"
    return text + f"\n  only run: {', '.join(rest)}" * bool(rest)


def _asked(group: Group) -> list[str]:
    late = f", {plural(group.lag, 'tick')} late" * bool(group.lag)
    names = [f"{asked.name}{' at the last emission' * (asked.at == 'last')}{late}" for asked in group.asked]
    return [*names, *group.penalties]


def _indented(text: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in text.splitlines())


def plural(n: int, word: str) -> str:
    """``1 tick``, ``2 ticks``."""
    return f"{n} {word}{'s' * (n != 1)}"
