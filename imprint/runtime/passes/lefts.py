"""The same input multiplied by several matrices."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable

import torch
from torch.fx import GraphModule, Node

from .facts import Facts, aten
from .grouping import groups_of
from .products import Product, is_transposed, join, label, product, shown, start, take_apart
from .rows import merge_rows, same_right
from .settling import lowering


def one_left(gm: GraphModule) -> list[str]:
    r"""Project an input once: :math:`x A, x B` become the columns of :math:`x\,[A, B]`.

    So are gradients of weights that read the same input: :math:`G_1^\top x, G_2^\top x` become the rows of
    :math:`[G_1, G_2]^\top x`. The matrices are copied beside each other unless they lie so.

    Args:
        gm: a captured block, cleaned; rewritten in place.

    Returns:
        A line for each product that stands for several.

    >>> import torch
    >>> from torch.fx.experimental.proxy_tensor import make_fx
    >>> gm = make_fx(lambda x, a, b: (x @ a) * (x @ b))(torch.ones(2, 3), torch.ones(3, 4), torch.ones(3, 4))
    >>> one_left(gm)
    ['2 projections of x_1 in one product: a_1, b_1: (2, 3) @ (3, 8)']
    """
    return projections_of_one_input(gm) + gradients_of_one_input(gm)


@lowering
def projections_of_one_input(gm: GraphModule) -> list[str]:
    """The part of :func:`one_left` for products of one input."""
    facts, schedule, found = start(gm)
    alike: dict[Hashable, list[Product]] = defaultdict(list)
    for p in found:
        alike[p.left, facts.version(p.left, facts.index[p.node])].append(p)
    groups, said = groups_of(schedule, alike), []
    schedule.apply()
    for group in groups:
        first, columns = group[0], sum(p.columns for p in group)
        names = f"{label(first.left)} in one product: {shown([p.right for p in group])}"
        with gm.graph.inserting_before(first.node):
            right = join(facts, [p.right for p in group], 1)
            take_apart(facts, product(facts, first.left, right, _biases(facts, group)), group, 1)
        sizes = f"({first.rows}, {first.inner}) @ ({first.inner}, {columns})"
        said.append(f"{len(group)} projections of {names}: {sizes}")
    return said


def _biases(facts: Facts, group: list[Product]) -> Node | None:
    """The biases one after the other, with zeros where there is none."""
    if all(p.bias is None for p in group):
        return None
    parts = []
    for p in group:
        value = facts.value[p.node]
        zeros = {"dtype": value.dtype, "device": torch.device(value.device)}
        parts.append(p.bias or facts.call(aten.zeros.default, [p.columns], **zeros))
    return join(facts, parts, 0)


@lowering
def gradients_of_one_input(gm: GraphModule) -> list[str]:
    """The part of :func:`one_left` for products of transposes with the same matrix."""
    facts, schedule, found = start(gm)
    return merge_rows(gm, facts, schedule, same_right(facts, [p for p in found if is_transposed(p.left)]))
