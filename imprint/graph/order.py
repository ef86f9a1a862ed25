"""In which order modules run: topological within a tick, cycles together."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import TypeVar

from ..errors import ArgumentError

N = TypeVar("N", bound=Hashable)


def tick_order(names: Iterable[str], before: Mapping[str, Iterable[str]]) -> list[str]:
    """Names such that each comes after all in ``before[name]``; ties in the order they are given.

    Raises:
        ArgumentError: a cycle; it is named.

    >>> tick_order(["b", "a"], {"b": ["a"]})
    ['a', 'b']
    """
    names = list(names)
    place = {name: i for i, name in enumerate(names)}
    sorter = TopologicalSorter({name: before.get(name, ()) for name in names})
    try:
        sorter.prepare()
    except CycleError as error:
        cycle = " -> ".join(reversed(error.args[1]))
        raise ArgumentError(
            "graph", f"a cycle without delay: {cycle}", expected="an edge with delay of at least 1 in every cycle",
            fix="graph.connect(source, target, delay=1) for one of its edges",
        ) from None  # fmt: skip
    order: list[str] = []
    ready = sorted(sorter.get_ready(), key=place.__getitem__)
    while ready:
        name = ready.pop(0)
        order.append(name)
        sorter.done(name)
        ready = sorted([*ready, *sorter.get_ready()], key=place.__getitem__)
    return order


def components(order: list[N], after: Mapping[N, Iterable[N]]) -> list[list[N]]:
    """Strongly connected components of the relation, in an order that respects it; members in that of `order`.

    Reference: Tarjan, Depth-first search and linear graph algorithms (1972).

    >>> components(["a", "b", "c"], {"b": ["a", "c"], "c": ["b"]})
    [['a'], ['b', 'c']]
    """
    number: dict[N, int] = {}
    low: dict[N, int] = {}
    stack: list[N] = []
    found: list[list[N]] = []
    place = {name: i for i, name in enumerate(order)}

    def visit(v: N) -> None:
        number[v] = low[v] = len(number)
        stack.append(v)
        for w in after.get(v, ()):
            if w not in number:
                visit(w)
                low[v] = min(low[v], low[w])
            elif w in stack:
                low[v] = min(low[v], number[w])
        if low[v] == number[v]:
            cut = stack.index(v)
            found.append(sorted(stack[cut:], key=place.__getitem__))
            del stack[cut:]

    for v in order:
        if v not in number:
            visit(v)
    return found
