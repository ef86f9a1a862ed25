"""Products of equal sizes that have nothing in common."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

from torch.fx import GraphModule, Node

from .facts import Facts, aten
from .grouping import groups_of
from .products import Product, hand_out, is_transposed, shown, start
from .settling import lowering


@lowering
def stacked(gm: GraphModule) -> list[str]:
    """Do products of equal sizes, with other operands each, in one batched product.

    Identical modules so take one kernel instead of one each. It copies: all operands are stacked first, weights
    included, at every run; it pays where launching kernels costs more than reading the weights once more.

    Args:
        gm: a captured block, cleaned; rewritten in place.

    Returns:
        A line for each product that stands for several.

    >>> import torch
    >>> from torch.fx.experimental.proxy_tensor import make_fx
    >>> gm = make_fx(lambda x, y, a, b: (x @ a).tanh() * (y @ b))(*(torch.ones(3, 3) for _ in range(4)))
    >>> stacked(gm)
    ['2 products of (3, 3) @ (3, 3) in one batched: a_1, b_1; copies 36 elements']
    """
    facts, schedule, found = start(gm)
    alike: dict[Hashable, list[Product]] = defaultdict(list)
    for p in found:
        kind = (p.rows, p.inner, p.columns, p.bias is None, is_transposed(p.left), is_transposed(p.right))
        value = facts.value[p.node]
        alike[kind, value.dtype, value.device].append(p)
    groups, said = groups_of(schedule, alike), []
    schedule.apply()
    for group in groups:
        first = group[0]
        with gm.graph.inserting_before(first.node):
            left, right = _stack(facts, [p.left for p in group]), _stack(facts, [p.right for p in group])
            names = shown([p.right for p in group])
            biases = [p.bias for p in group if p.bias is not None]
            if biases:
                bias = facts.call(aten.unsqueeze.default, _stack(facts, biases), 1)
                whole = facts.call(aten.baddbmm.default, bias, left, right)
            else:
                whole = facts.call(aten.bmm.default, left, right)
            hand_out(facts, facts.call(aten.unbind.int, whole, 0), group)
        sizes = f"({first.rows}, {first.inner}) @ ({first.inner}, {first.columns})"
        copied = len(group) * first.inner * (first.rows + first.columns)
        said.append(f"{len(group)} products of {sizes} in one batched: {names}; copies {copied} elements")
    return said


def _stack(facts: Facts, nodes: Sequence[Node]) -> Node:
    """One above the other; of one and the same, a view."""
    if len(set(nodes)) == 1:
        shape = [len(nodes), *facts.value[nodes[0]].shape]
        return facts.call(aten.expand.default, nodes[0], shape)
    if all(is_transposed(node) for node in nodes):
        return facts.call(aten.transpose.int, _stack(facts, [n.args[0] for n in nodes]), 1, 2)  # type: ignore[misc]
    return facts.call(aten.stack.default, list(nodes), 0)
