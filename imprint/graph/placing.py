"""In which order, and at which heights, boxes of a picture stand in their columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from .look import GAP_Y

if TYPE_CHECKING:
    from .layout import Box

Link = tuple["Box", "Box", str, str]
"""Two boxes of neighbouring columns and the ports that a wire joins."""


def _neighbours(links: Sequence[Link], forward: bool) -> Mapping[int, list[tuple[Box, float, float]]]:
    """By box: those it is joined to on one side, with the heights of the two ports."""
    made: dict[int, list[tuple[Box, float, float]]] = {}
    for a, b, out, into in links:
        here, there = (b, a) if forward else (a, b)
        ends = (b.port(into, False), a.port(out, True))
        made.setdefault(id(here), []).append((there, *(ends if forward else ends[::-1])))
    return made


def set_order(columns: list[list[Box]], links: Sequence[Link]) -> None:
    """Few crossings: each box goes to the mean place of its neighbours, there and back again; the best is kept."""
    sides = {True: _neighbours(links, True), False: _neighbours(links, False)}
    best, found = [list(c) for c in columns], crossings(columns, links)
    for sweep in range(12):
        forward = sweep % 2 == 0
        place = {id(box): float(i) for column in columns for i, box in enumerate(column)}

        def wanted(box: Box, forward: bool = forward, place: dict[int, float] = place) -> float:
            near = sides[forward].get(id(box), [])
            return sum(place[id(b)] + 0.1 * port for b, _, port in near) / len(near) if near else place[id(box)]

        for column in columns if forward else columns[::-1]:
            column.sort(key=wanted)
            place |= {id(box): float(i) for i, box in enumerate(column)}
        now = crossings(columns, links)
        if now < found:
            best, found = [list(c) for c in columns], now
    for column, kept in zip(columns, best, strict=True):
        column[:] = kept


def crossings(columns: list[list[Box]], links: Sequence[Link]) -> int:
    """How many pairs of wires cross between two columns."""
    place = {id(box): i for column in columns for i, box in enumerate(column)}
    ends = [
        (a.layer, (place[id(a)], a.port(out, True)), (place[id(b)], b.port(into, False))) for a, b, out, into in links
    ]
    return sum(
        la == lb and (a < c) != (b < d) and a != c and b != d
        for i, (la, a, b) in enumerate(ends)
        for lb, c, d in ends[i + 1 :]
    )


def set_heights(columns: list[list[Box]], links: Sequence[Link]) -> None:
    """Edges as straight as boxes allow that must not touch."""
    for column in columns:
        y = 0.0
        for box in column:
            box.y, y = y + box.height / 2, y + box.height + GAP_Y
    sides = {True: _neighbours(links, True), False: _neighbours(links, False)}
    for sweep in range(9):
        forward = sweep % 2 == 0
        for column in columns if forward else columns[::-1]:
            near = [sides[forward].get(id(b), []) for b in column]
            want = [
                sum(o.y + there - here for o, here, there in n) / len(n) if n else b.y
                for b, n in zip(column, near, strict=True)
            ]
            for box, y in zip(column, _apart(want, [b.height for b in column]), strict=True):
                box.y = y
    top = min((b.y - b.height / 2 for c in columns for b in c), default=0.0)
    for column in columns:
        for box in column:
            box.y -= top


def _apart(want: Sequence[float], heights: Sequence[float]) -> list[float]:
    """The places nearest to those wanted (least squares) in this order and without overlap: pooled neighbours."""
    offset = [0.0]
    for a, b in pairwise(heights):
        offset.append(offset[-1] + (a + b) / 2 + GAP_Y)
    pools: list[list[float]] = []
    for value in (w - o for w, o in zip(want, offset, strict=False)):
        pools.append([value])
        while len(pools) > 1 and _mean(pools[-2]) > _mean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    levels = [_mean(pool) for pool in pools for _ in pool]
    return [level + o for level, o in zip(levels, offset, strict=False)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
