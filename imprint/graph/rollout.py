"""One rollout: chunks of ticks, components of modules, and what they leave behind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ..errors import ArgumentError, DataError, ShapeError
from .bind import check_bound_size
from .module import Module
from .signal import Signal, hold

if TYPE_CHECKING:
    from .graph import Graph

KEEP = ("all", "emissions", "last")


class Rollout:
    """The running state of a graph on one batch: signals of all ports, recurrent states, and what is recorded.

    Attributes:
        rows, ticks: batch size, and the longest valid row.
        lengths: ticks of each row, or None if all are full.
        keep: ``"all"``, ``"emissions"`` or ``"last"``.
        offset: number of this rollout's first tick; more than 0 where it continues an earlier one.
        streaming: ticks come one at a time, without a future.
        partner: the rollout of the signal beside this one; `signalling` is whether this is one.
        sequence: the same for all rollouts that continue one another.
    """

    def __init__(
        self, graph: Graph, batch: Mapping[str, Any], keep: str = "all", offset: int = 0, streaming: bool = False,
        padding: int = 0,
    ) -> None:  # fmt: skip
        if keep not in KEEP:
            raise ArgumentError("rollout", "unknown keep=", expected=" | ".join(KEEP), got=repr(keep), fix="keep='all'")
        self.graph, self.batch, self.keep, self.streaming, self.offset = graph, batch, keep, streaming, offset
        self.schedule = graph.schedule
        self.sources = {name: source.read(batch) for name, source in graph.sources.items()}
        shapes = {name: tuple(x.shape[:2]) for name, x in self.sources.items()}
        if len(set(shapes.values())) > 1:
            raise ShapeError(
                "rollout", "the sources differ in rows or ticks", expected="one [B, T]", got=shapes,
                fix="as many rows and ticks for each",
            )  # fmt: skip
        (self.rows, self.full_ticks) = next(iter(shapes.values()))
        self.lengths = _lengths(batch, self.rows - padding, self.full_ticks)
        if padding:
            self.lengths = (self.lengths or [self.full_ticks] * (self.rows - padding)) + [0] * padding
        self.ticks = self.full_ticks if self.lengths is None else max(self.lengths)
        if self.lengths is not None and min(self.lengths) == self.ticks:
            self.lengths = None
        self.shortest = self.ticks if self.lengths is None else min(self.lengths)
        first = next(iter(self.sources.values()))
        self.device, self.dtype = first.device, graph.dtype
        self._valid: Tensor | None = None
        if self.lengths is not None:
            length = torch.tensor(self.lengths, device=self.device)
            self._valid = torch.arange(self.ticks, device=self.device)[:, None] < length
        self.hidden: dict[str, Tensor | None] = {}
        for name, x in self.sources.items():
            self.sources[name] = self._shown(name, x)
        self.signals: dict[str, Signal] = {}
        self.states: dict[str, Any] = {}
        self.kept: dict[str, list[Tensor]] = {}
        self.watched: set[str] = set()
        self.partner: Rollout | None = None
        self.signalling = False
        self.sequence = object()
        self.state_log: dict[str, list[Any]] = {}
        self.start = self.stop = offset

    def _shown(self, name: str, x: Tensor) -> Tensor:
        """The input up to the longest row, checked, zero past each row's length; what is hidden is drawn here."""
        source = self.graph.sources[name]
        check_bound_size(self.graph, source, x)
        x = x[:, : self.ticks]
        x = x.to(self.dtype) if x.is_floating_point() else x
        valid = None if self._valid is None else self._valid.T
        source.check(x, valid)
        if valid is not None:
            x = x.masked_fill(~valid.view(*valid.shape, *[1] * (x.dim() - 2)), 0)
        self.hidden[name] = None
        if source.hidden is not None and self.graph.training:
            drawn = torch.rand(x.shape[:2], device=x.device) < source.hidden.share
            self.hidden[name] = drawn if valid is None else drawn & valid
        return x

    def shown(self, name: str, start: int, stop: int) -> Tensor:
        """What a source emits at some ticks, ``[ticks, B, …]``."""
        chunk = slice(start - self.offset, stop - self.offset)
        x, hidden = self.sources[name][:, chunk], self.hidden[name]
        source = self.graph.sources[name]
        if hidden is not None and source.hidden is not None:
            mask = hidden[:, chunk]
            x = x.masked_fill(mask.view(*mask.shape, *[1] * (x.dim() - 2)), source.hidden.value)
        return x.transpose(0, 1)

    # -- sizes and validity

    def size(self, key: str) -> Any:
        """Width of a port, or its shape."""
        return self.graph.sizes[key]

    def shape(self, module: Module, port: str) -> tuple[int, ...]:
        """Of one row of a port."""
        size = self.size(f"{module.name}.{port}")
        return (size,) if isinstance(size, int) else tuple(size)

    def zero(self, key: str, rows: int | None = None) -> Tensor:
        """What a port holds before its first emission."""
        size = self.size(key)
        shape = (size,) if isinstance(size, int) else tuple(size)
        source = self.sources.get(key.split(".")[0])
        dtype = self.dtype if source is None else source.dtype
        return torch.zeros(self.rows if rows is None else rows, *shape, dtype=dtype, device=self.device)

    def emission_ticks(self, name: str) -> list[int]:
        """Ticks of this rollout at which a module emits."""
        return self.schedule.emission_ticks(name, self.offset, self.offset + self.ticks)

    def valid(self, t: int) -> Tensor | None:
        """``[B]`` rows that tick `t` belongs to; None if all."""
        if self._valid is None or t - self.offset < self.shortest:
            return None
        return self._valid[t - self.offset]

    def valid_at(self, ticks: list[int]) -> Tensor | None:
        """``[E, B]`` of :meth:`valid`, or None; ticks past the rollout belong to no row."""
        if self.streaming or all(t - self.offset < self.shortest for t in ticks):
            return None
        length = torch.tensor(self.lengths or [self.ticks] * self.rows, device=self.device)
        return torch.tensor(ticks, device=self.device)[:, None] - self.offset < length

    def last_of(self, ticks: list[int]) -> Tensor:
        """``[E, B]``: is this emission the row's own last one?"""
        lengths = self.lengths or [self.ticks] * self.rows
        last = [max((e for e, t in enumerate(ticks) if t - self.offset < n), default=-1) for n in lengths]
        return torch.arange(len(ticks), device=self.device)[:, None] == torch.tensor(last, device=self.device)

    # -- time

    def continues(self, past: Rollout) -> None:
        """Go on from what `past` left; `past` itself stays as it is, to be gone on from again if this one fails.

        No gradient reaches back into it: what lies between may be a step of its weights.
        """
        self.sequence = past.sequence
        for key, signal in self.signals.items():
            if key in past.signals:
                self.signals[key] = past.signals[key].copy(signal.reach)
        self.states = tree_map(lambda v: v.detach() if isinstance(v, Tensor) else v, past.states)

    def value(self, key: str, tick: int) -> Tensor:
        """What a port holds at a tick of the present chunk or one before it."""
        signal, i = self.signals[key], tick - self.start
        return signal.at(max(i, 0), max(-i, 0))

    def begin(self, start: int, stop: int) -> None:
        """The next chunk: sources emit all of it."""
        self.start, self.stop = start, stop
        for name in self.sources:
            counts = list(range(1, stop - start + 1))
            self.signals[f"{name}.out"].fill(self.shown(name, start, stop), counts)

    def end(self, cut: bool) -> None:
        """Keep what was asked for and let go of the rest; `cut` it from its graph."""
        for key, signal in self.signals.items():
            if key in self.kept:
                stack = signal.stacked()
                self.kept[key].append(stack.detach() if cut else stack)
            signal.next_chunk(cut)

    def recurrent(self, name: str) -> Any:
        """State of a module's proto now."""
        return self.states.get(name, ())

    def reset(self, rows: Tensor) -> None:
        """Rows of the mask ``[B]`` start anew: states and what ports hold."""
        check_rows(rows, self.rows)
        for key, signal in self.signals.items():
            fresh = self.zero(key)
            signal.before = hold(rows, fresh, signal.before, 0)
            signal.history = [hold(rows, fresh, v, 0) for v in signal.history]
        for name, state in self.states.items():
            proto = self.graph[name].proto
            assert proto is not None
            fresh = proto.init_state(self.rows, self.device, self.dtype)
            self.states[name] = hold(rows, fresh, state, proto.batch_dim)

    def recorded(self, key: str) -> Tensor:
        """All emissions of a port, ``[B, E, …]``."""
        parts = self.kept[key]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        return whole.transpose(0, 1)


def both(run: Rollout) -> list[Rollout]:
    """The rollout, and that of the signal beside it, if there is one."""
    return [run] if run.partner is None else [run, run.partner]


def check_rows(rows: Any, count: int | None = None) -> None:
    """Refuse what is no mask ``[count]`` of rows.

    Raises:
        ShapeError: gives both shapes.
    """
    mask = isinstance(rows, Tensor) and rows.dtype == torch.bool and rows.dim() == 1
    if not mask or count not in (None, len(rows)):
        raise ShapeError(
            "graph.reset", "rows= is no mask of the rows", expected=f"[{'B' if count is None else count}] bool",
            got=f"{tuple(rows.shape)} {rows.dtype}" if isinstance(rows, Tensor) else type(rows).__name__,
            fix="graph.reset(rows=done), True for each row that starts anew",
        )  # fmt: skip


def _lengths(batch: Mapping[str, Any], rows: int, ticks: int) -> list[int] | None:
    length = batch.get("length")
    if length is None:
        return None
    made = length.tolist() if isinstance(length, Tensor) else length
    if not isinstance(made, Iterable) or isinstance(made, str) or len(made := list(made)) != rows:
        raise ShapeError(
            "rollout", "batch['length'] has no entry for every row", expected=f"[{rows}] integers",
            got=tuple(length.shape) if isinstance(length, Tensor) else repr(length), fix="one number of ticks a row",
        )  # fmt: skip
    bad = next((n for n in made if not _is_length(n, ticks)), None)
    if bad is not None or None in made:
        raise DataError(
            "rollout", "a length is out of range", expected=f"an integer, 1..{ticks}", got=repr(bad),
            fix="each row's number of ticks that count, not more than x has",
        )  # fmt: skip
    return [int(n) for n in made]


def _is_length(value: Any, ticks: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and 1 <= int(value) <= ticks
