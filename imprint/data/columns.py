"""Columns of equally many rows, in memory or in a file, gone through in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor

from .order import Cut
from .stored import Stored

Column = Tensor | Stored
Batch = dict[str, Tensor]


def take(column: Column, rows: Tensor, ticks: int | None = None) -> Tensor:
    """A copy of these rows of a column; of each only the first `ticks` ticks, if given.

    >>> take(torch.arange(6).view(2, 3), torch.tensor([1]), 2)
    tensor([[3, 4]])
    """
    if isinstance(column, Stored):
        return column.take(rows)[:, :ticks] if ticks is not None else column.take(rows)
    return (column if ticks is None else column[:, :ticks])[rows.to(column.device)]


def read(
    columns: Mapping[str, Column], cuts: Iterable[Cut], ticks: Callable[[Tensor], int | None] = lambda rows: None
) -> Iterator[tuple[Tensor, Batch]]:
    """Rows and values of every batch; of a file no more than one piece is in memory at a time.

    Args:
        columns: what to read.
        cuts: of :func:`imprint.data.order.cut`.
        ticks: how many ticks of ``"x"`` a batch of these rows needs; None for all.

    >>> from imprint.data.order import cut, windows
    >>> [b["x"].tolist() for _, b in read({"x": torch.arange(3)}, cut(windows(3, None), 2))]
    [[0, 1], [2]]
    """
    pool = _Pool({key: column for key, column in columns.items() if isinstance(column, Stored)})
    rest: Tensor | None = None
    for part in cuts:
        if pool.columns:
            pool.turn(part.rows[:0] if rest is None else rest, part.rows)
            rest = part.rest
        for rows in part.batches:
            at, until = pool.places(rows), ticks(rows)
            batch = {}
            for key, column in columns.items():
                where, values = (at, pool.values[key]) if key in pool.values else (rows, column)
                batch[key] = take(values, where, until if key == "x" else None)
            yield rows, batch


class _Pool:
    """The rows of a file that are in memory."""

    def __init__(self, columns: dict[str, Stored]) -> None:
        self.columns = columns
        self.values: Batch = {}
        self._rows, self._order = torch.empty(0, dtype=torch.int64).sort()

    def turn(self, keep: Tensor, rows: Tensor) -> None:
        """Keep some rows, drop the others, then fetch new ones."""
        at = self.places(keep)
        kept = {key: values[at] for key, values in self.values.items()}
        self.values.clear()  # before new rows need the memory
        for key, column in self.columns.items():
            values = torch.empty(len(keep) + len(rows), *column.shape[1:], dtype=column.dtype)
            if len(keep):
                values[: len(keep)] = kept[key]
            column.take(rows, out=values[len(keep) :])
            self.values[key] = values
        self._rows, self._order = torch.cat([keep, rows]).sort()

    def places(self, rows: Tensor) -> Tensor:
        """Where these rows are in ``values``."""
        return self._order[torch.searchsorted(self._rows, rows)] if self.columns else rows
