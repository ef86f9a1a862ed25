"""What must come before what in a captured graph, and which nodes may be done together."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from torch.fx import Node

from .facts import Facts, opaque, overlap


class Schedule:
    """The order that values and memory ask for, as sets of predecessors (bits of an int), closed under succession.

    A read comes after the writes before it and before the writes after it, wherever their regions overlap; what draws
    from a generator, or is not known, keeps its order. Every order of nodes that keeps these is the same computation.
    """

    def __init__(self, facts: Facts) -> None:
        self.facts, self.nodes = facts, facts.nodes
        self.direct = self._direct()
        self.before: list[int] = []
        for direct in self.direct:
            closed = direct
            for i in bits(direct):
                closed |= self.before[i]
            self.before.append(closed)
        self.groups: dict[int, list[int]] = {}

    def _direct(self) -> list[int]:
        facts, index = self.facts, self.facts.index
        direct = [sum(1 << index[arg] for arg in node.all_input_nodes) for node in self.nodes]
        for accesses in facts.accesses.values():
            for k, (i, region, writes) in enumerate(accesses):
                for j, other, wrote in accesses[:k]:
                    if j != i and (writes or wrote) and not direct[i] >> j & 1 and overlap(region, other):
                        direct[i] |= 1 << j
        last = None
        for i, node in enumerate(self.nodes):
            if opaque(node):
                direct[i] |= 0 if last is None else 1 << last
                last = i
            if node.op == "output":
                direct[i] |= (1 << i) - 1
        return direct

    def independent(self, nodes: Sequence[Node]) -> bool:
        """Does none of them wait for another?"""
        members = self._mask(nodes)
        return not any(self.before[self.facts.index[node]] & members for node in nodes)

    def join(self, nodes: Sequence[Node]) -> bool:
        """Do these nodes one right after the other, if that is possible; says whether it is."""
        members, reached = self._mask(nodes), 0
        own = sorted(self.facts.index[node] for node in nodes)
        if any(i in self.groups for i in own):
            return False
        for i in own:
            reached |= self.before[i]
        between = reached & ~members
        if any(self.before[i] & members for i in bits(between)):
            return False
        for i in own:
            self.groups[i] = own
            self.before[i] |= between
        for i, before in enumerate(self.before):
            if before & members and not members >> i & 1:
                self.before[i] = before | members | between
        return True

    def apply(self) -> None:
        """Bring the graph into an order in which every group stands together, with all that it waits for before it."""
        heads = {i: self.groups[i][0] if i in self.groups else i for i in range(len(self.nodes))}
        members = {h: self.groups.get(h, [h]) for h in set(heads.values())}
        waits: dict[int, set[int]] = {h: set() for h in members}
        frees: dict[int, set[int]] = {h: set() for h in members}
        for i, direct in enumerate(self.direct):
            for j in bits(direct):
                if heads[i] != heads[j]:
                    waits[heads[i]].add(heads[j])
                    frees[heads[j]].add(heads[i])
        ready = [h for h in members if not waits[h]]
        heapq.heapify(ready)
        end = self.nodes[-1]
        while ready:
            head = heapq.heappop(ready)
            for i in members[head]:
                if self.nodes[i] is not end:
                    end.prepend(self.nodes[i])
            for later in frees[head]:
                waits[later].discard(head)
                if not waits[later]:
                    heapq.heappush(ready, later)

    def _mask(self, nodes: Sequence[Node]) -> int:
        mask = 0
        for node in nodes:
            mask |= 1 << self.facts.index[node]
        return mask


def bits(mask: int) -> list[int]:
    """Positions of the ones.

    >>> bits(0b10110)
    [1, 2, 4]
    """
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found


def gather(schedule: Schedule, nodes: Sequence[Node]) -> list[list[Node]]:
    """Groups of two and more of these nodes that can be done together: each goes into the first that it fits into."""
    groups: list[list[Node]] = []
    for node in nodes:
        for group in groups:
            if schedule.independent([*group, node]):
                group.append(node)
                break
        else:
            groups.append([node])
    return [group for group in groups if len(group) > 1 and schedule.join(group)]
