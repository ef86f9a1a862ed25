"""Batches with fewer rows than a plan was captured for."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map

from ..errors import ArgumentError, ShapeError
from ..graph import Graph
from ..graph.due import Due
from ..graph.result import show
from ..graph.rollout import Rollout
from ..graph.signal import Signal

KNOWN = ("torch.", "imprint.")
"""Where modules come from of which it is known whether rows see each other."""


def rows_of(graph: Graph, batch: Mapping[str, Any]) -> int | None:
    """Rows of a batch; None where it is none, which a rollout says better."""
    for source in graph.sources.values():
        x = batch.get(source.batch_key) if isinstance(batch, Mapping) else None
        if isinstance(x, Tensor) and x.dim():
            return len(x)
    return None


def filled_up(graph: Graph, batch: Mapping[str, Any], rows: int, want: int) -> dict[str, Any]:
    """The batch with rows of zeros at its end, which have no ticks.

    Raises:
        ShapeError: it has more rows than there is room for.
        ArgumentError: rows see each other somewhere in the graph.
    """
    if rows > want:
        raise ShapeError(
            "plan.rollout", "it was captured for fewer rows", expected=f"at most {want}", got=rows,
            fix="record with the largest batch, or on_shape='recapture'",
        )  # fmt: skip
    _check(graph)
    made = {}
    for key, v in batch.items():
        whole = key != "length" and isinstance(v, Tensor) and v.dim() > 0 and len(v) == rows
        made[key] = torch.cat([v, v.new_zeros(want - rows, *v.shape[1:])]) if whole else v
    return made


def _check(graph: Graph) -> None:
    for name, module in graph.modules_by_name.items():
        for part in module.modules():
            if isinstance(part, _BatchNorm) and part.training:
                raise _sees(f"module {name!r}", "its BatchNorm takes means over all rows")
            if not type(part).__module__.startswith(KNOWN):
                raise _sees(f"module {name!r}", f"what {type(part).__name__} does with rows is not known")
        for term in module.objectives:
            if term.kind == "function" or not type(term.objective).__module__.startswith(KNOWN):
                raise _sees(f"module {name!r}, objective {term.name!r}", "a function of your own sees all rows")


def _sees(where: str, why: str) -> ArgumentError:
    return ArgumentError(
        where, f"rows that fill a batch up would count: {why}", got="on_shape='pad'", fix="on_shape='recapture'"
    )


def cut(run: Rollout, dues: list[Due], rows: int) -> None:
    """Afterwards: the rollout of its own rows alone."""
    for parts in run.kept.values():
        parts[:] = [v[:, :rows] for v in parts]
    run.signals = {key: _first(signal, rows) for key, signal in run.signals.items()}
    states = {}
    for name, state in run.states.items():
        proto = run.graph[name].proto
        dim = 0 if proto is None else proto.batch_dim
        states[name] = tree_map(lambda v, d=dim: v.narrow(d, 0, rows), state)
    run.states = states
    for name, logged in run.state_log.items():
        dim = run.graph[name].proto.batch_dim  # type: ignore[union-attr]
        run.state_log[name] = [tree_map(lambda v, d=dim: v.narrow(d, 0, rows), state) for state in logged]
    for due in dues:
        due.y = None if due.y is None else due.y[:, :rows]
        due.valid = None if due.valid is None else due.valid[:, :rows]
        due.facts = None
    run.rows = rows
    run.lengths = None if run.lengths is None else run.lengths[:rows]
    run._valid = None if run._valid is None else run._valid[:, :rows]
    run.shortest = run.ticks if run.lengths is None else min(run.lengths)
    show(run, run.graph.modules_by_name)


def _first(signal: Signal, rows: int) -> Signal:
    """What a port holds, of the first rows; the signal itself stays as it is, for a way back."""
    made = copy.copy(signal)
    made.before, made.history = signal.before[:rows], [v[:rows] for v in signal.history]
    return made
