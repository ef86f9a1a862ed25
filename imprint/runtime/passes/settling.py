"""How a pass ends: a graph whose views fit the new layouts, without what nothing needs; or the graph as it was."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Graph, GraphModule, Node
from torch.fx.passes.shape_prop import _extract_tensor_metadata

from .facts import Facts, aten, mutable, opaque, tensors

Pass = Callable[[GraphModule], list[str]]
VIEWS = {aten.view.default, aten._unsafe_view.default}


class Unsettled(Exception):
    """What a pass made cannot be laid out: the graph stays as it was. Never leaves this room."""


def lowering(rewrite: Callable[[GraphModule], list[str]]) -> Pass:
    """A pass out of what rewrites the graph and says what it did; if it said something, the graph is settled."""

    @wraps(rewrite)
    def run(gm: GraphModule) -> list[str]:
        kept = _copy(gm.graph)
        try:
            said = rewrite(gm)
            if said:
                settle(gm)
        except Unsettled:
            said, gm.graph = [], kept
        gm.recompile()
        return said

    return run


def _copy(graph: Graph) -> Graph:
    fresh = Graph(graph.owning_module)
    fresh.output(fresh.graph_copy(graph, val_map={}))
    fresh._codegen = graph._codegen
    return fresh


def settle(gm: GraphModule) -> None:
    """Propagate layouts, copy where a view no longer fits, drop dead nodes, and write shapes into every node's meta.

    Raises:
        Unsettled: an op that goes by strides was given others.
    """
    drop_dead(gm)
    facts = Facts(gm, walk=False)
    copies: list[Node] = []
    for node in facts.nodes:
        _check_strides(facts, node)
        try:
            facts.see(node)
        except (RuntimeError, ValueError) as error:
            if node.target not in VIEWS:
                raise Unsettled(str(error)) from error
            source = node.args[0]
            assert isinstance(source, Node)
            copies += [source, _dense(facts, node, source)]
            facts.see(node)
    facts.nodes = list(gm.graph.nodes)
    facts.find_accesses()
    if any(facts.is_written(node) for node in copies):
        raise Unsettled("a view of what is written would have to be a copy")
    for node, value in facts.value.items():
        _describe(node, value)
    gm.graph.lint()


def _check_strides(facts: Facts, node: Node) -> None:
    """Ops outside of aten, fused optimizers and as_strided need the strides that they were captured with."""
    if node.op != "call_function" or not isinstance(node.target, OpOverload):
        return
    own = node.target.namespace not in ("aten", "prims") or node.target._opname.startswith("_fused")
    for arg in node.all_input_nodes if own or "as_strided" in node.target._opname else ():
        old, new = arg.meta.get("val"), facts.value[arg]
        if not isinstance(new, Tensor) or arg.op in ("placeholder", "get_attr"):
            continue
        # where a view begins was not captured: of what as_strided reads, only whole tensors are sure to be as they were
        kept = isinstance(old, Tensor) and old.stride() == new.stride()
        if not kept or not (own or facts.root[facts.storage(arg)] is arg):
            raise Unsettled(f"{node.target} goes by strides")


def _dense(facts: Facts, node: Node, arg: Node) -> Node:
    """Let a node read a contiguous copy of an argument."""
    with facts.gm.graph.inserting_before(node):
        dense = facts.gm.graph.call_function(aten.clone.default, (arg,), {"memory_format": torch.contiguous_format})
    facts.see(dense)
    node.replace_input_with(arg, dense)
    return dense


def _describe(node: Node, value: Any) -> None:
    if node.op == "output":
        return
    node.meta["val"] = value
    if isinstance(value, Tensor):
        node.meta["tensor_meta"] = _extract_tensor_metadata(value)
    elif isinstance(value, (tuple, list)) and any(True for _ in tensors(value)):
        node.meta["tensor_meta"] = tuple(_extract_tensor_metadata(t) for t in tensors(value))


def drop_dead(gm: GraphModule) -> int:
    """Drop nodes that nothing reads and that write nothing; says how many."""
    count = 0
    for node in reversed(list(gm.graph.nodes)):
        kept = node.op in ("placeholder", "output") or mutable(node) or opaque(node)
        if not kept and not node.users:
            gm.graph.erase_node(node)
            count += 1
    return count
