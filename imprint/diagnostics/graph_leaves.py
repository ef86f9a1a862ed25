"""What an autograd graph starts from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten


def leaves_of(*roots: Tensor) -> list[Tensor]:
    """The tensors with ``requires_grad`` and no graph of their own that `roots` were computed from, nearest first.

    >>> import torch
    >>> a, b = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    >>> [leaf is a for leaf in leaves_of(a * 2 + b.detach())]
    [True]
    """
    found: dict[int, Tensor] = {id(v): v for v in roots if v.grad_fn is None and v.requires_grad}
    seen: set[Any] = set()
    waiting = [v.grad_fn for v in roots if v.grad_fn is not None]
    while waiting:
        layer, waiting = waiting, []
        for node in layer:
            if node in seen:
                continue
            seen.add(node)
            leaf = getattr(node, "variable", None)
            if isinstance(leaf, Tensor):
                found.setdefault(id(leaf), leaf)
            waiting.extend(parent for parent, _ in node.next_functions if parent is not None)
    return list(found.values())


def tensors_in(tree: Any) -> list[Tensor]:
    """All tensors of a nested structure, also those held by objects that torch does not look into.

    >>> import torch, types
    >>> len(tensors_in({"a": torch.ones(1), "b": [types.SimpleNamespace(c=torch.ones(2))]}))
    2
    """
    found = []
    for v in tree_flatten(tree)[0]:
        if isinstance(v, Tensor):
            found.append(v)
        elif not isinstance(v, nn.Module | type):
            found += [w for w in getattr(v, "__dict__", {}).values() if isinstance(w, Tensor)]
    return found


def keeper(leaf: Tensor, modules: Iterable[tuple[str, nn.Module]]) -> str:
    """Which module keeps, as a plain attribute, `leaf` itself or a tensor computed from it; empty if none does.

    >>> import torch
    >>> layer = nn.Linear(2, 2)
    >>> layer.memory = layer(torch.ones(1, 2))
    >>> keeper(layer.weight, [("fc", layer)])
    "'memory' of 'fc'"
    """
    for path, module in modules:
        for name, v in vars(module).items():
            if not name.startswith("_") and any(leaf is w for t in tensors_in(v) for w in leaves_of(t)):
                return f"{name!r} of {path!r}"
    return ""
