"""Tensors that pass a boundary inside objects torch does not look into: they cannot be cut from their graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..diagnostics.graph_leaves import hidden_tensors
from ..errors import DtypeError


def check_hidden(where: str, what: str, tree: Any) -> None:
    """Refuse a structure in which a tensor with a graph is hidden.

    Raises:
        DtypeError: names the class of the object that hides it.

    >>> import types
    >>> check_hidden("unit 'a'", "it returns", types.SimpleNamespace(h=torch.ones(1)))
    """
    kinds = sorted({name for name, v in hidden_tensors(tree) if v.grad_fn is not None})
    if kinds:
        raise DtypeError(
            where, f"{what} tensors inside {kinds[0]!r}, which torch does not look into: their graph cannot be cut",
            expected="tensors, or tuples, lists and dicts of them", got=", ".join(kinds),
            fix=f"pass the tensors themselves, or tell torch first: torch.export.register_dataclass({kinds[0]}) "
            "or torch.utils._pytree.register_pytree_node",
        )  # fmt: skip


def check_returned(where: str, out: Any, run: Callable[[], Any]) -> None:
    """Refuse a unit that hides its graph in what it returns; `run` runs it again, where `out` has no graph."""
    if hidden_tensors(out):
        with torch.enable_grad():
            check_hidden(where, "it returns", run())
