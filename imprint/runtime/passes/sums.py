"""Sums of products."""

from __future__ import annotations

from torch.fx import GraphModule, Node

from .facts import Facts, aten
from .products import Product, join, product, replace, shown, start
from .settling import lowering


@lowering
def port_sums(gm: GraphModule) -> list[str]:
    r"""Add within a product: :math:`(x_1 A + a) + (x_2 B + b)` becomes :math:`[x_1, x_2]\,[A; B] + (a + b)`.

    So are edges into one port, and gradients of a weight that are summed over ticks. Only products that nothing but
    the sum reads are taken; other terms of the sum are added as before.

    Args:
        gm: a captured block, cleaned; rewritten in place.

    Returns:
        A line for each product that stands for a sum.

    >>> import torch
    >>> from torch.fx.experimental.proxy_tensor import make_fx
    >>> gm = make_fx(lambda x, y, a, b: x @ a + y @ b)(*(torch.ones(3, 3) for _ in range(4)))
    >>> port_sums(gm)
    ['a sum of 2 products in one: a_1, b_1: (3, 6) @ (6, 3)']
    """
    facts, schedule, found = start(gm)
    by_node = {p.node: p for p in found}
    taken: list[tuple[Node, list[Product], list[Node], list[Node]]] = []
    for node in facts.nodes:
        if not _is_sum(facts, node) or any(_is_sum(facts, user) for user in node.users):
            continue
        terms, sums = _terms(facts, node)
        mine = [by_node[t] for t in terms if t in by_node and len(t.users) == 1 and terms.count(t) == 1]
        if len(mine) > 1 and schedule.join([*(p.node for p in mine), *sums]):
            kept = {p.node for p in mine}
            taken.append((node, mine, [t for t in terms if t not in kept], sums))
    schedule.apply()
    return [_merge(gm, facts, *sum_) for sum_ in taken]


def _is_sum(facts: Facts, node: Node) -> bool:
    if node.target is not aten.add.Tensor or node.kwargs or len(node.args) != 2:
        return False
    value = facts.value[node]
    if value.dim() != 2 or not value.is_floating_point() or facts.is_written(node):
        return False
    args = [facts.value[arg] if isinstance(arg, Node) else None for arg in node.args]
    return all(a is not None and a.shape == value.shape and a.dtype == value.dtype for a in args)


def _terms(facts: Facts, node: Node) -> tuple[list[Node], list[Node]]:
    """Terms of a sum, and the sums within it that nothing else reads, and itself."""
    terms: list[Node] = []
    sums = [node]
    for arg in node.args:
        assert isinstance(arg, Node)
        if _is_sum(facts, arg) and len(arg.users) == 1 and node.args.count(arg) == 1:
            inner, more = _terms(facts, arg)
            terms += inner
            sums += more
        else:
            terms.append(arg)
    return terms, sums


def _merge(gm: GraphModule, facts: Facts, node: Node, mine: list[Product], rest: list[Node], sums: list[Node]) -> str:
    graph, names = gm.graph, shown([p.right for p in mine])
    with graph.inserting_before(node):
        bias = None
        for p in mine:
            if p.bias is not None:
                bias = p.bias if bias is None else facts.call(aten.add.Tensor, bias, p.bias)
        left, right = join(facts, [p.left for p in mine], 1), join(facts, [p.right for p in mine], 0)
        new = product(facts, left, right, bias)
        for term in rest:
            new = facts.call(aten.add.Tensor, new, term)
    replace(node, new)
    for old in [*sums[1:], *(p.node for p in mine)]:
        graph.erase_node(old)
    inner = sum(p.inner for p in mine)
    sizes = f"({mine[0].rows}, {inner}) @ ({inner}, {mine[0].columns})"
    return f"a sum of {len(mine)} products in one: {names}: {sizes}"
