"""In-place ops on intermediates, done out of place."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from .facts import Facts, aten, mutable, overlap, random, written
from .settling import Unsettled, lowering


@lowering
def out_of_place(gm: GraphModule) -> list[str]:
    """Make ``y.add_(x)`` of an intermediate `y` an ``add`` that whatever reads `y` afterwards reads instead.

    Left in place is what writes a placeholder, and what is seen afterwards through a view of another shape. What an
    in-place op returns is replaced by what it wrote.
    """
    facts, graph, done = Facts(gm, walk=False), gm.graph, 0
    for i, node in enumerate(facts.nodes):
        pure = _pure(node)
        new = _rewrite(facts, node, i, pure) if pure is not None else None
        if new is not None:
            node.replace_all_uses_with(new)
            graph.erase_node(node)
            done += 1
            continue
        try:
            facts.see(node)
        except (RuntimeError, ValueError) as error:
            raise Unsettled(str(error)) from error
        if mutable(node) and isinstance(facts.value[node], Tensor) and isinstance(node.args[0], Node):
            given = node.args[0]
            if facts.value[given] is not None and facts.geometry(given) == facts.geometry(node):
                node.replace_all_uses_with(given)
    return [f"{done} ops on intermediates out of place"] * bool(done)


def _pure(node: Node) -> OpOverload | None:
    """The op that computes what an in-place op writes."""
    if not mutable(node) or random(node) or not isinstance(node.target, OpOverload) or len(written(node)) != 1:
        return None
    name, overload = node.target._opname, node.target._overloadname
    if written(node)[0] is not node.args[0] or not name.endswith("_") or name.endswith("__"):
        return None
    found = getattr(getattr(torch.ops.aten, name[:-1], None), overload, None)
    if node.target.namespace != "aten" or found is None or found._schema.is_mutable:
        return None
    same = [a.name for a in found._schema.arguments] == [a.name for a in node.target._schema.arguments]
    return found if same else None


def _rewrite(facts: Facts, node: Node, i: int, pure: OpOverload) -> Node | None:
    target, graph = node.args[0], facts.gm.graph
    assert isinstance(target, Node)
    storage, geometry, region = facts.storage(target), facts.geometry(target), facts.region(target)
    if facts.root[storage].op in ("placeholder", "get_attr"):
        return None
    twins = []
    for other in facts.aliases[storage]:
        late = [user for user in other.users if facts.index[user] > i]
        if not late:
            continue
        if isinstance(facts.value[other], Tensor) and facts.geometry(other) == geometry:
            twins.append((other, late))
        elif any(overlap(region, r) for key, r in facts.regions(other) if key == storage):
            return None
    before = facts.value[target]
    with graph.inserting_before(node):
        if node.target is aten.copy_.default and _alike(facts, node.args[1], before):
            new = graph.call_function(aten.clone.default, (node.args[1],))
        else:
            new = graph.call_function(pure, node.args, node.kwargs)
    facts.index[new] = i
    facts.see(new)
    if facts.value[new].shape != before.shape or facts.value[new].dtype != before.dtype:
        facts.aliases[facts.storage(new)].remove(new)
        graph.erase_node(new)
        return None
    for other, late in twins:
        for user in late:
            user.replace_input_with(other, new)
    return new


def _alike(facts: Facts, source: object, like: Tensor) -> bool:
    value = facts.value[source] if isinstance(source, Node) else None
    return isinstance(value, Tensor) and value.shape == like.shape and value.dtype == like.dtype
