"""A table of all layers on the terminal."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable
from typing import Any, TextIO

from tqdm import tqdm

from .sink import Sink, Table


class Live(Sink):
    """Keeps a table of units and metrics on the terminal, below the bars of tqdm, and redraws it in place.

    Each cell holds the newest value. Where the output is no terminal, every table is printed, one after the other.

    Args:
        metrics: columns to show; None shows all.
        file: where to; standard error by default.

    >>> Live(file=sys.stdout).write(20, {"stem": {"loss": 0.5}, "head": {"loss": 1.25, "accuracy": 0.75}})
    step 20    loss  accuracy
    stem        0.5         -
    head       1.25      0.75
    """

    def __init__(self, metrics: Iterable[str] | None = None, file: TextIO | None = None) -> None:
        self.metrics = None if metrics is None else list(metrics)
        self.file = file
        self.table: dict[str, dict[str, float]] = {}
        self.lines: list[Any] = []

    def write(self, step: int, table: Table) -> None:
        """Redraw."""
        for unit, row in table.items():
            self.table.setdefault(unit, {}).update(row)
        text = self.render(step)
        file = self.file or sys.stderr
        if not file.isatty():
            tqdm.write("\n".join(text), file=file)
            return
        width = shutil.get_terminal_size().columns - 1
        while len(self.lines) < len(text):
            self.lines.append(tqdm(total=0, bar_format="{desc}", leave=True, file=file))
        for line, words in zip(self.lines, text, strict=True):
            line.set_description_str(words[:width])

    def render(self, step: int) -> list[str]:
        """The lines of the table."""
        seen = list(dict.fromkeys(metric for row in self.table.values() for metric in row))
        columns = seen if self.metrics is None else self.metrics
        rows = [(f"step {step}", *columns)]
        for unit, row in self.table.items():
            cells = tuple(f"{row[c]:.4g}" if c in row else "-" for c in columns)
            if any(c in row for c in columns):
                rows.append((unit, *cells))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        return [
            "  ".join([r[0].ljust(widths[0] + 1), *(c.rjust(w) for c, w in zip(r[1:], widths[1:], strict=True))])
            for r in rows
        ]

    def close(self) -> None:
        """Leave the last table standing."""
        for line in self.lines:
            line.close()
        self.lines = []
