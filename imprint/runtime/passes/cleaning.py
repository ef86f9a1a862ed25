"""What a captured block computes twice, or copies without need."""

from __future__ import annotations

from operator import getitem
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from .facts import Facts, aten, mutable, opaque
from .functionalizing import out_of_place
from .settling import drop_dead, lowering
from .stores import dead_stores, forward_stores

COPIES = {aten.clone.default, aten._to_copy.default, aten.lift_fresh_copy.default, aten.lift_fresh.default}
NEVER = {aten.empty.memory_format, aten.empty_like.default, aten.empty_strided.default, aten.new_empty.default}


def clean(gm: GraphModule) -> list[str]:
    """Make a captured block plain: intermediates are written once, equal values are computed once.

    In-place ops on intermediates become ops; reads of what was copied within the block read its source; writes that
    nothing reads, views that show what another node shows, copies of what nobody changes, and equal computations on
    memory that was not written between them are dropped. Draws of random numbers and writes of placeholders stay.

    Args:
        gm: a captured block; rewritten in place.

    Returns:
        A line for each kind of thing that was done.

    >>> from torch.fx.experimental.proxy_tensor import make_fx
    >>> gm = make_fx(lambda w, x: (x @ w.t()).sum() + (x @ w.t().detach()).relu_().sum())(torch.ones(2, 3), torch.ones(4, 3))
    >>> clean(gm)[-1]
    '3 nodes whose value another node has'
    >>> [str(node.target) for node in gm.graph.nodes if node.op == "call_function"]
    ['aten.t.default', 'aten.mm.default', 'aten.sum.default', 'aten.relu.default', 'aten.sum.default', 'aten.add.Tensor']
    """  # noqa: E501
    said = out_of_place(gm)
    for _ in range(8):
        more = [*merge_equal(gm), *forward_stores(gm), *dead_stores(gm)]
        said += more
        if not more:
            break
    return said


@lowering
def merge_equal(gm: GraphModule) -> list[str]:
    """Let one node stand for all that have the same value."""
    dead = drop_dead(gm)
    facts, seen, merged = Facts(gm), {}, 0  # type: ignore[var-annotated]
    shown = {key for arg in facts.nodes[-1].all_input_nodes for key, _ in facts.regions(arg)}
    for i, node in enumerate(facts.nodes):
        if node.op in ("output", "call_module", "call_method"):
            continue
        same = _uncopied(facts, node, i, shown)
        if same is None:
            key = _key(facts, node, i, shown)
            same = None if key is None else seen.setdefault(key, node)
            if isinstance(facts.value[node], Tensor) and not mutable(node):
                seen.setdefault(facts.geometry(node), same or node)
        if same is not None and same is not node:
            node.replace_all_uses_with(same)
            if node.op != "placeholder":
                gm.graph.erase_node(node)
                merged += 1
    return [f"{dead} nodes that nothing read"] * bool(dead) + [f"{merged} nodes whose value another node has"] * bool(
        merged
    )


def _uncopied(facts: Facts, node: Node, i: int, shown: set[Any]) -> Node | None:
    """What a copy copies, if neither is written while both are there."""
    if node.target not in COPIES or not isinstance(node.args[0], Node):
        return None
    source, value = node.args[0], facts.value[node]
    given = facts.value[source]
    if given.dtype != value.dtype or given.device != value.device or given.stride() != value.stride():
        return None
    if facts.storage(node) in shown or facts.is_written(node) or facts.changed(source, i, len(facts.nodes)):
        return None
    return source


def _key(facts: Facts, node: Node, i: int, shown: set[Any]) -> Any:
    """Equal for nodes with equal values; None for one that stays by itself."""
    value = facts.value[node]
    if node.op == "placeholder":
        return facts.geometry(node) if isinstance(value, Tensor) else None
    if node.op == "get_attr":
        return ("constant", id(facts.constant(node)))
    if mutable(node) or opaque(node) or node.target in NEVER:
        return None
    if facts.is_view(node):
        if isinstance(value, Tensor) and not value.is_complex():
            return facts.geometry(node)
        return signature(facts, node, i)
    if facts.is_written(node) or any(key in shown for key, _ in facts.regions(node)):
        return None
    return signature(facts, node, i)


def signature(facts: Facts, node: Node, at: int, swap: dict[Node, Any] | None = None) -> Any:
    """An op, its arguments, and what these point to at an index: equal signatures, equal values.

    Args:
        swap: what to put for some arguments.
    """
    given = swap or {}

    def token(arg: Any) -> Any:
        if isinstance(arg, Node):
            if arg in given:
                return given[arg]
            return (
                (arg, frozenset()) if node.target is getitem or facts.is_view(node) else (arg, facts.version(arg, at))
            )
        if isinstance(arg, (tuple, list)):
            return tuple(token(a) for a in arg)
        if isinstance(arg, slice):
            return ("slice", token(arg.start), token(arg.stop), token(arg.step))
        return (type(arg), repr(arg) if isinstance(arg, (float, torch.device)) else arg)

    kwargs = tuple((name, token(arg)) for name, arg in sorted(node.kwargs.items()))
    return (node.target, token(node.args), kwargs)
