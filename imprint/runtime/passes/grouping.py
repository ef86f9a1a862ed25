"""Products that are alike, in groups that can be done together."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from .products import Product
from .schedule import Schedule, gather


def groups_of(schedule: Schedule, alike: Mapping[Hashable, Sequence[Product]]) -> list[list[Product]]:
    """Of each list of products that are alike, groups of two and more that can be done together."""
    groups = []
    for members in alike.values():
        by_node = {p.node: p for p in members}
        if len(by_node) > 1:
            groups += [[by_node[node] for node in group] for group in gather(schedule, list(by_node))]
    return groups
