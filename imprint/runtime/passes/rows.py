"""The same matrix applied to several inputs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from torch.fx import GraphModule

from .facts import Facts
from .grouping import groups_of
from .products import Product, is_transposed, join, label, product, start, take_apart
from .schedule import Schedule
from .settling import lowering


@lowering
def rows_at_once(gm: GraphModule) -> list[str]:
    r"""Multiply by the same matrix once: :math:`x_1 W, \dots, x_k W` become the rows of :math:`[x_1; \dots; x_k]\, W`.

    Where weights rest, all that is outside of a recurrence is so computed for all ticks of a block at once. Products
    of which one waits for another one, through values or through memory, or between which the matrix or the bias is
    written, stay apart. Inputs that lie one after the other in memory are not copied.

    Products of a transpose, as gradients of weights are, are left to :func:`imprint.runtime.passes.one_left`.

    Args:
        gm: a captured block, cleaned; rewritten in place.

    Returns:
        A line for each product that stands for several.

    >>> import torch
    >>> from torch.fx.experimental.proxy_tensor import make_fx
    >>> gm = make_fx(lambda x, w: (x[0] @ w).tanh() + x[1] @ w)(torch.ones(2, 3, 4), torch.ones(4, 5))
    >>> rows_at_once(gm)
    ['2 products with w_1 in one: (6, 4) @ (4, 5)']
    """
    facts, schedule, found = start(gm)
    return merge_rows(gm, facts, schedule, same_right(facts, [p for p in found if not is_transposed(p.left)]))


def same_right(facts: Facts, found: Sequence[Product]) -> Mapping[Hashable, list[Product]]:
    """By matrix and bias, and what these hold at the time."""
    same: dict[Any, list[Product]] = defaultdict(list)
    for p in found:
        at = facts.index[p.node]
        bias = p.bias and (p.bias, facts.version(p.bias, at))
        same[p.right, facts.version(p.right, at), bias].append(p)
    return same


def merge_rows(gm: GraphModule, facts: Facts, schedule: Schedule, same: Mapping[Hashable, list[Product]]) -> list[str]:
    """One product over the rows of all, for those with equal keys that can be done together."""
    groups, said = groups_of(schedule, same), []
    schedule.apply()
    for group in groups:
        first, rows = group[0], sum(p.rows for p in group)
        name = label(first.right)
        with gm.graph.inserting_before(first.node):
            whole = product(facts, join(facts, [p.left for p in group], 0), first.right, first.bias)
            take_apart(facts, whole, group, 0)
        sizes = f"({rows}, {first.inner}) @ ({first.inner}, {first.columns})"
        said.append(f"{len(group)} products with {name} in one: {sizes}")
    return said
