"""Rows that were computed before, one tick after the other."""

from __future__ import annotations

from operator import getitem
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from .cleaning import signature
from .facts import Facts, aten, mutable, opaque
from .settling import lowering

PRODUCTS = {aten.mm.default, aten.addmm.default}
"""Ops that go by the rows of the last argument but one."""
COLUMNS = {aten.slice.Tensor: 1, aten.split.Tensor: 2, aten.unsafe_split.Tensor: 2, aten.split_with_sizes.default: 2}
"""Ops that take columns apart, and which argument is the dimension."""
Rows = list[tuple[Node, Any]]
"""Nodes whose rows, one after the other, are those of a node, each with what it pointed to at the time."""


@lowering
def reuse_rows(gm: GraphModule) -> list[str]:
    """Do not compute again for all rows what was computed tick by tick: lay the results one after the other.

    A block that learns from all its ticks at once applies the same weights to the same states once more, as rows.
    Products of these rows, columns of them, and ops element by element on them are taken from the ticks, if the ticks
    computed them with the same weights; then the rows are computed once.

    Args:
        gm: a captured block, cleaned; rewritten in place.

    Returns:
        A line that says how much was computed before.

    >>> import torch
    >>> from torch.fx.experimental.proxy_tensor import make_fx
    >>> def block(w, h):
    ...     later = (h @ w).tanh()
    ...     last = (later @ w).tanh()
    ...     return last, (torch.cat([h, later]) @ w).tanh().square()
    >>> reuse_rows(make_fx(block)(torch.ones(3, 3), torch.ones(2, 3)))
    ['1 product and 1 other op on rows taken from the ticks that computed them']
    """
    facts = Facts(gm)
    rows, again = _find(facts)
    products = others = 0
    for node in reversed(facts.nodes):
        if node not in again:
            continue
        needed = [user for user in node.users if user not in again]
        if not isinstance(facts.value[node], Tensor):
            if needed:
                again.discard(node)
            continue
        if needed:
            parts = [part for part, _ in rows[node]]
            with gm.graph.inserting_before(node):
                new = gm.graph.call_function(aten.cat.default, (parts, 0)) if len(parts) > 1 else parts[0]
            for user in needed:
                user.replace_input_with(node, new)
        products += node.target in PRODUCTS
        others += node.target not in PRODUCTS and not facts.is_view(node)
    return _said(products, others)


def _find(facts: Facts) -> tuple[dict[Node, Rows], set[Node]]:
    """Rows of the nodes that have some, and the nodes among them that compute what was computed before."""
    seen: dict[Any, Node] = {}
    rows: dict[Node, Rows] = {}
    again: set[Node] = set()
    for i, node in enumerate(facts.nodes):
        if node.op != "call_function" or mutable(node) or opaque(node) or facts.is_written(node):
            continue
        own = signature(facts, node, i)
        first = _laid(facts, node) or _taken(facts, node)
        if first is None:
            first = _computed(facts, node, i, rows, seen)
            if first is not None:
                again.add(node)
        if first is not None:
            rows[node] = first
        seen.setdefault(own, node)
    return rows, again


def _laid(facts: Facts, node: Node) -> Rows | None:
    """Of what is laid one after the other here: a concatenation, or a stack seen as rows."""
    stack = node.args[0] if node.target in (aten.view.default, aten._unsafe_view.default) else node
    if not isinstance(stack, Node) or stack.target not in (aten.cat.default, aten.stack.default) or _dim(stack, 1):
        return None
    parts, value = stack.args[0], facts.value[node]
    assert isinstance(parts, (list, tuple))
    if (stack is node) != (stack.target is aten.cat.default) or facts.is_written(stack):
        return None
    sizes = [facts.value[part].shape for part in parts]  # type: ignore[index]
    if any(len(s) != value.dim() or s[1:] != value.shape[1:] for s in sizes) or value.dim() < 1:
        return None
    if any(facts.value[part].dtype != value.dtype for part in parts):  # type: ignore[index]
        return None
    at = facts.index[stack]
    return [(part, facts.version(part, at)) for part in parts]  # type: ignore[arg-type,misc]


def _taken(facts: Facts, node: Node) -> Rows | None:
    """Of what is taken apart into rows afterwards."""
    for split in node.users:
        if split.target is aten.split_with_sizes.default and split.args[0] is node and not _dim(split, 2):
            parts = {user.args[1]: user for user in split.users if user.target is getitem}
            if len(parts) == len(facts.value[split]):
                return [(parts[i], frozenset()) for i in range(len(parts))]
    return None


def _computed(facts: Facts, node: Node, i: int, rows: dict[Node, Rows], seen: dict[Any, Node]) -> Rows | None:
    """Of what the same op computed from the rows of its arguments."""
    along = _by_rows(facts, node, rows)
    if not along:
        return None
    parts: Rows = []
    lengths = {tuple(_length(facts, part) for part, _ in rows[arg]) for arg in along}
    if len(lengths) != 1:
        return None
    view = facts.is_view(node)
    for k in range(len(rows[along[0]])):
        swap = {arg: (rows[arg][k][0], frozenset()) if view else rows[arg][k] for arg in along}
        part = seen.get(signature(facts, node, i, swap))
        if part is None or (view and any(facts.is_written(rows[arg][k][0]) for arg in along)):
            return None
        parts.append((part, frozenset()))
    return parts


def _length(facts: Facts, node: Node) -> int:
    value = facts.value[node]
    return int((value if isinstance(value, Tensor) else value[0]).shape[0])


def _by_rows(facts: Facts, node: Node, rows: dict[Node, Rows]) -> list[Node]:
    """Arguments of which each row makes a row of the result; none if there are others that differ from row to row."""
    args, target = node.all_input_nodes, node.target
    if not any(arg in rows for arg in args):
        return []
    if target is getitem:
        return args
    if target in PRODUCTS:
        left, others = node.args[-2], [facts.value[arg] for arg in args if arg is node.args[0] is not node.args[-2]]
        fits = left in rows and node.args.count(left) == 1 and all(b.dim() == 1 for b in others) and not node.kwargs
        return [left] if fits and isinstance(left, Node) else []
    if target in COLUMNS:
        dim = _dim(node, COLUMNS[target])
        return args if dim % facts.value[args[0]].dim() else []
    if not isinstance(target, OpOverload) or torch.Tag.pointwise not in target.tags:
        return []
    dims = facts.value[node].dim()
    along = [arg for arg in args if arg in rows and facts.value[arg].dim() == dims]
    fixed = [facts.value[arg] for arg in args if arg not in along]
    return along if all(f.dim() < dims or f.shape[0] == 1 for f in fixed) else []


def _dim(node: Node, position: int) -> int:
    found = node.args[position] if len(node.args) > position else node.kwargs.get("dim", 0)
    assert isinstance(found, int)
    return found


def _said(products: int, others: int) -> list[str]:
    if not products + others:
        return []
    words = [f"{products} product{'s' * (products != 1)}"] * bool(products)
    words += [f"{others} other op{'s' * (others != 1)}"] * bool(others)
    return [f"{' and '.join(words)} on rows taken from the ticks that computed them"]
