"""A graph's checkpoint is looked at whole before any of it is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError

EXTRA = "_extra_state"
KNOWN = {"sources": dict, "widths": dict, "dtype": str, "device": str}


def known_of(state: Any) -> dict[str, Any] | None:
    """The sizes in a checkpoint of a bound graph; None if it has none.

    Raises:
        CheckpointError: they are damaged.
    """
    if not isinstance(state, Mapping):
        raise CheckpointError(
            "graph.load_state_dict", "not a state", expected="what graph.state_dict() gave", got=type(state).__name__,
            fix="torch.load(path, weights_only=True)",
        )  # fmt: skip
    extra = state.get(EXTRA)
    known = extra.get("known") if isinstance(extra, Mapping) else None
    if known is None:
        return None
    fits = isinstance(known, Mapping) and all(isinstance(known.get(k), kind) for k, kind in KNOWN.items())
    if not fits or not isinstance(getattr(torch, known["dtype"], None), torch.dtype):
        raise CheckpointError(
            "graph.load_state_dict", "the sizes stored with it are damaged", expected=sorted(KNOWN), got=repr(known),
            fix="graph.bind(batch) first, then load with strict=False",
        )  # fmt: skip
    return {**known, "sources": dict(known["sources"]), "widths": dict(known["widths"])}


def check_sources(mine: Iterable[str], known: Mapping[str, Any]) -> None:
    """Refuse sizes of a graph with other sources.

    Raises:
        CheckpointError: names both.
    """
    if set(mine) != set(known["sources"]):
        raise CheckpointError(
            "graph.load_state_dict", "it was saved with other sources", expected=sorted(mine),
            got=sorted(known["sources"]), fix="build the same graph as the one that was saved",
        )  # fmt: skip


def check_weights(mine: Mapping[str, Any], state: Mapping[str, Any], strict: bool) -> None:
    """Refuse names that one side lacks (if `strict`), and other shapes.

    Raises:
        CheckpointError: names the first few; nothing was loaded.
    """
    here, there = ({k for k in s if k != EXTRA} for s in (mine, state))
    missing, extra = sorted(here - there), sorted(there - here)
    if strict and (missing or extra):
        named = [f"{what} {', '.join(map(repr, names[:4]))}{', …' if len(names) > 4 else ''}"
                 for what, names in (("without", missing), ("with", extra)) if names]  # fmt: skip
        raise CheckpointError(
            "graph.load_state_dict", "it has other weights than this graph", expected=f"{len(here)} entries",
            got="; ".join(named), fix="build the same graph, with the same masks; or strict=False",
        )  # fmt: skip
    for key in sorted(here & there):
        if isinstance(mine[key], Tensor) and getattr(state[key], "shape", None) != mine[key].shape:
            raise CheckpointError(
                "graph.load_state_dict", f"{key!r} has another shape", expected=tuple(mine[key].shape),
                got=tuple(state[key].shape) if isinstance(state[key], Tensor) else type(state[key]).__name__,
                fix="build the graph with the sizes it was saved with",
            )  # fmt: skip
