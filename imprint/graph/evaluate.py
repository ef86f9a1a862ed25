"""Declared losses over a stretch of emissions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..objectives import Target, View
from .due import Due
from .module import Module
from .unit import view_of


def term_loss(
    due: Due, emissions: list[int], shares: Any, stack: Callable[[str], Tensor], states: list[Any], first: int = 0
) -> Tensor:
    """Weighted loss of one term over some of its emissions, each with its share of the mean; zero over none.

    Terms that are means over rows are computed on all rows at once, others emission by emission.

    Args:
        emissions: their numbers.
        shares: one number for all, or ``[E]``, of all emissions of the rollout.
        stack: ``port key -> [E, B, …]`` of a stretch of emissions.
        states: the module's states at them, where a term looks at states.
        first: number of the emission that `stack` and `states` begin with.
    """
    term, name = due.term, due.module.name
    if not emissions:
        return stack(f"{name}.{term.on}").sum() * 0
    h = _some(stack(f"{name}.{term.on}"), emissions, first)
    valid = None if due.valid is None else _some(due.valid, emissions)
    y = None if due.y is None else _some(due.y, emissions)
    if not isinstance(shares, float):
        shares = _some(shares, emissions)
    if term.objective.rowwise and (isinstance(shares, float) or due.counts is not None):
        total = shares * len(emissions) if isinstance(shares, float) else shares.sum()
        view = View(
            h=h.flatten(0, 1), context=Target(None if y is None else y.flatten(0, 1)),
            valid=None if valid is None else valid.flatten(),
        )  # fmt: skip
        return term(view) * total
    losses = []
    for e, number in enumerate(emissions):
        if not due.alive[number]:
            continue
        place = number - first
        out = {f"{name}.{port}": stack(f"{name}.{port}")[place] for port in due.module.nodes}
        out |= {
            f"{name}.{port}:drive": stack(f"{name}.{port}:drive@emissions")[place] for port in due.module.ports.inputs
        }
        whole = None if valid is None or due.whole[number] else valid[e]
        at = {"y": None if y is None else y[e], "valid": whole, "batch": due.batch}
        state = {name: states[place]} if states else {}
        share = shares if isinstance(shares, float) else shares[e]
        losses.append(term(view_of(term, name, out, state, at, due.tick(number))) * share)
    return torch.stack(losses).sum() if losses else h.sum() * 0


def _some(values: Tensor, numbers: list[int], first: int = 0) -> Tensor:
    """Of values numbered from `first`, those with these numbers."""
    start, stop = numbers[0] - first, numbers[-1] - first + 1
    return values[start:stop] if stop - start == len(numbers) else values[[n - first for n in numbers]]


def penalty(modules: list[Module]) -> Tensor | None:
    """Sum of the parameter regularisers of `modules`; None without any."""
    losses = [t.loss(list(m.iter_parameters_by_tag(t.tag))) for m in modules for t in m.objectives.params]
    return torch.stack(losses).sum() if losses else None


def shares_of(due: Due, periods: list[int]) -> Any:
    """Share of each emission in the mean of its update period; `periods` holds the period of each emission.

    A float where all are alike, else ``[E]``.
    """
    if due.counts is None:
        sizes = Counter(periods)
        if len(set(sizes.values())) <= 1:
            return 1.0 / max(next(iter(sizes.values()), 1), 1)
        return torch.tensor([1.0 / sizes[p] for p in periods], dtype=torch.float64)
    index = torch.tensor(periods, device=due.counts.device)
    sums = due.counts.new_zeros(max(periods, default=0) + 1).index_add_(0, index, due.counts)
    return due.counts / sums.clamp_min(torch.finfo(due.counts.dtype).tiny)[index]
