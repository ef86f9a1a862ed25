"""What an autograd graph starts from."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from types import FunctionType, ModuleType
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
    plain = [v for v in tree_flatten(tree)[0] if isinstance(v, Tensor)]
    return plain + [v for _, v in hidden_tensors(tree)]


def hidden_tensors(tree: Any) -> list[tuple[str, Tensor]]:
    """Tensors inside objects that torch does not look into, each with the name of the outermost object's class.

    >>> import torch, types
    >>> class Output(dict):
    ...     pass
    >>> [(name, v.shape) for name, v in hidden_tensors([torch.ones(1), Output(h=[torch.ones(2)])])]
    [('Output', torch.Size([2]))]
    """
    found: list[tuple[str, Tensor]] = []
    seen: set[int] = set()

    def visit(v: Any, name: str, depth: int) -> None:
        if isinstance(v, Tensor):
            found.append((name, v))
        elif depth and id(v) not in seen:
            seen.add(id(v))
            for held in _held(v):
                for w in tree_flatten(held)[0]:
                    visit(w, name, depth - 1)

    for v in tree_flatten(tree)[0]:
        if not isinstance(v, Tensor):
            visit(v, type(v).__name__, 4)
    return found


def _held(v: Any) -> list[Any]:
    """What an object holds: its attributes, and its items if it is a collection."""
    if v is None or isinstance(v, PLAIN):
        return []
    items = list(v.values()) if isinstance(v, Mapping) else list(v) if isinstance(v, Collection) else []
    slots = [getattr(v, name, None) for cls in type(v).__mro__ for name in cls.__dict__.get("__slots__", ())]
    return [*items, *slots, *getattr(v, "__dict__", {}).values()]


PLAIN = (bool, int, float, complex, str, bytes, type, nn.Module, ModuleType, FunctionType)


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
