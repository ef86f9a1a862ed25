"""Products of a captured graph, and how operands of several are laid beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from operator import getitem

from torch import Tensor
from torch.fx import GraphModule, Node

from .facts import Facts, aten, mutable
from .schedule import Schedule


@dataclass(frozen=True)
class Product:
    """``mm(left, right)`` or ``addmm(bias, left, right)`` with a bias of one dimension, of floats.

    Attributes:
        rows, inner, columns: sizes of ``(rows, inner) @ (inner, columns)``.
    """

    node: Node
    rows: int
    inner: int
    columns: int

    @property
    def left(self) -> Node:
        """The first factor; operands are those that the node has now, whatever was rewritten before it."""
        return self.node.args[-2]  # type: ignore[return-value]

    @property
    def right(self) -> Node:
        """The second factor."""
        return self.node.args[-1]  # type: ignore[return-value]

    @property
    def bias(self) -> Node | None:
        """What is added."""
        return self.node.args[0] if len(self.node.args) == 3 else None  # type: ignore[return-value]


def products(facts: Facts) -> list[Product]:
    """Products whose result nothing writes, in the order of the graph."""
    found = []
    for node in facts.nodes:
        if node.target is aten.mm.default:
            bias, (left, right) = None, node.args
        elif node.target is aten.addmm.default and len(node.args) == 3 and not node.kwargs:
            bias, left, right = node.args
        else:
            continue
        assert isinstance(left, Node) and isinstance(right, Node) and (bias is None or isinstance(bias, Node))
        value, (rows, inner) = facts.value[node], facts.value[left].shape
        columns = facts.value[right].shape[1]
        plain = value.is_floating_point() and not facts.is_written(node) and min(rows, inner, columns) > 0
        if plain and (bias is None or tuple(facts.value[bias].shape) == (columns,)):
            found.append(Product(node, rows, inner, columns))
    return found


def start(gm: GraphModule) -> tuple[Facts, Schedule, list[Product]]:
    """What a pass over products looks at."""
    facts = Facts(gm)
    return facts, Schedule(facts), products(facts)


def is_transposed(node: Node) -> bool:
    """Is it the transpose of a matrix, which is its first argument?"""
    if node.target is aten.t.default:
        return True
    if node.target is aten.transpose.int:
        return sorted(d % 2 for d in node.args[1:] if isinstance(d, int)) == [0, 1]
    return node.target is aten.permute.default and list(node.args[1]) == [1, 0]  # type: ignore[arg-type]


def join(facts: Facts, nodes: Sequence[Node], dim: int) -> Node:
    """Lay tensors beside each other, where the graph is being written: a view if they lie so, or else a copy.

    Transposes are laid beside each other before they are transposed.
    """
    if len(nodes) == 1:
        return nodes[0]
    if all(is_transposed(node) and facts.value[node].dim() == 2 for node in nodes):
        sources = [node.args[0] for node in nodes]
        return facts.call(aten.t.default, join(facts, sources, 1 - dim))  # type: ignore[arg-type]
    adjacent = _adjacent(facts, nodes) if dim == 0 else None
    return facts.call(aten.cat.default, list(nodes), dim) if adjacent is None else adjacent


def _adjacent(facts: Facts, nodes: Sequence[Node]) -> Node | None:
    """Contiguous tensors, one after the other in something contiguous, as one."""
    storage = facts.storage(nodes[0])
    root = facts.root[storage]
    whole = facts.value[root]
    if root._erased or not isinstance(whole, Tensor) or not whole.is_contiguous() or facts.region(root).offset is None:
        return None
    first = facts.region(nodes[0]).offset
    if first is None or any(facts.storage(node) != storage for node in nodes):
        return None
    at = first
    for node in nodes:
        value = facts.value[node]
        if facts.region(node).offset != at or not value.is_contiguous() or value.dtype != whole.dtype:
            return None
        at += value.numel()
    low = first - (facts.region(root).offset or 0)
    high = low + at - first
    if low < 0 or high > whole.numel():
        return None
    shape = [sum(facts.value[node].shape[0] for node in nodes), *facts.value[nodes[0]].shape[1:]]
    if high - low < whole.numel():
        flat = facts.call(aten.view.default, root, [-1])
        root = facts.call(aten.slice.Tensor, flat, 0, low, high)
    assert prod(shape) == high - low
    return facts.call(aten.view.default, root, shape)


def take_apart(facts: Facts, whole: Node, members: Sequence[Product], dim: int) -> None:
    """Let parts of a product stand for the products that it was made of."""
    sizes = [p.columns if dim else p.rows for p in members]
    parts = facts.call(aten.split_with_sizes.default, whole, sizes, dim)
    hand_out(facts, parts, members)


def hand_out(facts: Facts, parts: Node, members: Sequence[Product]) -> None:
    """Let each of several values stand for a product."""
    new = [facts.call(getitem, parts, i) for i in range(len(members))]
    for member, part in zip(members, new, strict=True):
        replace(member.node, part)


def replace(node: Node, new: Node) -> None:
    """Put a node in place of another one."""
    new.meta.update({k: v for k, v in node.meta.items() if k not in ("val", "tensor_meta")})
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)


def product(facts: Facts, left: Node, right: Node, bias: Node | None) -> Node:
    """The op that multiplies, and adds if there is a bias."""
    if bias is None:
        return facts.call(aten.mm.default, left, right)
    return facts.call(aten.addmm.default, bias, left, right)


def label(node: Node) -> str:
    """The name of the tensor that it is a view of: of a placeholder, its meta ``"label"``."""
    while node.op == "call_function" and node.args and not mutable(node):
        inner = node.args[0]
        view = node.target is getitem or is_transposed(node) or getattr(node.target, "is_view", False)
        if not view or not isinstance(inner, Node):
            break
        node = inner
    return str(node.meta.get("label", node.name))


def shown(nodes: Sequence[Node], most: int = 4) -> str:
    """Names of some of them."""
    names = list(dict.fromkeys(label(node) for node in nodes))
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
