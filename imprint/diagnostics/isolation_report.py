"""What an isolation audit found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Leak:
    """A tensor on the wrong side of a boundary.

    Attributes:
        unit: where the graph was found: in its loss, or on its output.
        tensor: what it reaches.
        owner: the unit that `tensor` belongs to, or ``"task"``, ``"signal"``; empty if it belongs to none.
        through: which module keeps a tensor with that graph, if one does.

    >>> str(Leak("2", "parameter '0.weight'", "0", "'memory' of '0'"))
    "parameter '0.weight' of '0', through 'memory' of '0'"
    """

    unit: str
    tensor: str
    owner: str = ""
    through: str = ""

    def __str__(self) -> str:
        owner = f" of {self.owner!r}" if self.owner else ""
        return f"{self.tensor}{owner}" + (f", through {self.through}" if self.through else "")


@dataclass(frozen=True)
class Boundary:
    """One row of a report.

    Attributes:
        unit: its name.
        rule: the rule's name.
        own: names of the trainable tensors it owns.
        reached: those of them that the loss it learns from reaches.
        leaks: what else its loss or its output reaches.
        note: why nothing was looked at, or why what crosses may.
    """

    unit: str
    rule: str
    own: tuple[str, ...]
    reached: tuple[str, ...]
    leaks: tuple[Leak, ...] = ()
    note: str = ""


@dataclass(frozen=True, repr=False)
class IsolationReport:
    """Boundaries and what crosses them; printing it gives a table.

    Attributes:
        rows: one a unit, in the order of the model, then the task and the signal.

    >>> IsolationReport((Boundary("0", "sim", ("w", "C"), ("w",)), Boundary("1", "sim", ("v",), (), (Leak("1", "w"),))))
    unit  rule  leaves reached  crossing
    ----  ----  --------------  --------
    0     sim   1 of 2          none
    1     sim   0 of 1          w
    NOT isolated: 1 leak
    """

    rows: tuple[Boundary, ...]

    @property
    def leaks(self) -> tuple[Leak, ...]:
        """Everything that crosses a boundary and may not."""
        return tuple(leak for row in self.rows for leak in row.leaks)

    @property
    def ok(self) -> bool:
        """Nothing crosses that may not."""
        return not self.leaks

    def __repr__(self) -> str:
        cells = [("unit", "rule", "leaves reached", "crossing")]
        for row in self.rows:
            crossing = "; ".join(map(str, row.leaks)) or row.note or "none"
            cells.append((row.unit, row.rule, f"{len(row.reached)} of {len(row.own)}", crossing))
        widths = [max(len(row[i]) for row in cells) for i in range(4)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]
        lines.insert(1, "  ".join("-" * w for w in widths))
        count = len(self.leaks)
        quiet = not any(row.reached for row in self.rows)
        verdict = (
            ("nothing learned" if quiet else "isolated")
            if self.ok
            else f"NOT isolated: {count} leak{'s' * (count > 1)}"
        )
        return "\n".join([*lines, verdict])
