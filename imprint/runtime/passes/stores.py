"""Values that go through memory within a block."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.fx import GraphModule, Node

from .facts import OVERWRITES, Facts, aten, mutable, opaque, overlap, written
from .settling import lowering


@lowering
def forward_stores(gm: GraphModule) -> list[str]:
    """Read what was copied into a tensor from where it was copied, as long as both are the same.

    What reads a signal, a state or a weight later in a block then no longer waits for the write.
    """
    facts, done = Facts(gm), 0
    for i, node in enumerate(facts.nodes):
        if node.op != "call_function" or facts.is_view(node):
            continue
        own = written(node)
        for arg in list(node.all_input_nodes):
            new = None if arg in own else _source(facts, arg, i)
            if new is not None:
                node.replace_input_with(arg, new)
                done += 1
    return [f"{done} reads from where it was copied from"] * bool(done)


def _source(facts: Facts, arg: Node, at: int) -> Node | None:
    """What lies in `arg` at an index, if a copy put it there and its source is still what it was."""
    before = facts.version(arg, at) if isinstance(facts.value[arg], Tensor) else ()
    copy = facts.nodes[max(before)] if before else None
    if copy is None or copy.target is not aten.copy_.default or len(copy.args) != 2:
        return None
    target, source = copy.args
    assert isinstance(target, Node) and isinstance(source, Node)
    held, given = facts.value[target], facts.value[source]
    if held.shape != given.shape or held.dtype != given.dtype or held.device != given.device:
        return None
    if facts.region(target).offset is None or facts.changed(source, facts.index[copy], at):
        return None
    chain = []
    while facts.geometry(arg) != facts.geometry(target):
        views = arg.all_input_nodes
        if len(views) != 1 or arg.target is aten.as_strided.default or not facts.is_view(arg):
            return None
        if not isinstance(facts.value[views[0]], Tensor):
            return None
        chain.append(arg)
        arg = views[0]
    new = source
    for view in reversed(chain):
        with facts.gm.graph.inserting_before(facts.nodes[at]):
            new = facts.gm.graph.node_copy(view, _through(view.all_input_nodes[0], new))
    return new


def _through(old: Node, new: Node) -> Callable[[Node], Node]:
    return lambda node: new if node is old else node


@lowering
def dead_stores(gm: GraphModule) -> list[str]:
    """Drop writes that are overwritten before anything reads them, and writes into intermediates that nothing reads."""
    facts, dropped = Facts(gm), 0
    for i in reversed(range(len(facts.nodes))):
        node = facts.nodes[i]
        if not mutable(node) or opaque(node) or node.users or len(written(node)) != 1:
            continue
        target = written(node)[0]
        if isinstance(facts.value[target], Tensor) and not _matters(facts, target, i):
            gm.graph.erase_node(node)
            dropped += 1
    return [f"{dropped} writes that nothing read"] * bool(dropped)


def _matters(facts: Facts, target: Node, i: int) -> bool:
    storage, region = facts.storage(target), facts.region(target)
    for j, other, writes in facts.accesses[storage]:
        if j <= i or not overlap(region, other):
            continue
        if not writes:
            return True
        if facts.nodes[j].target in OVERWRITES and other.covers(region):
            return False
    return not facts.is_local(storage)
