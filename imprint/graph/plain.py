"""Autograd through a whole rollout: what a graph does without a manager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..objectives import BatchKey, PortDrive, PortOutput, ShiftedInput, Term
from .due import Due, make_due
from .evaluate import shares_of, term_loss
from .rollout import Rollout


def run_components(run: Rollout, parts: list[list[Any]], start: int, stop: int) -> None:
    """Components in order: one runner alone takes the whole chunk, those of a cycle go tick by tick."""
    for part in parts:
        if len(part) == 1:
            part[0].chunk(run, start, stop)
        else:
            for t in range(start, stop):
                for runner in part:
                    runner.tick(run, t)
                for runner in part:
                    runner.settle(run, t)


def plain(run: Rollout, parts: list[list[Any]], drive: Callable[[Rollout], None] | None = None) -> list[Due]:
    """Run all ticks, as one chunk or by `drive`; returns the objectives whose loss can be asked for afterwards.

    `drive` leaves what is kept of every port in its signal, as a chunk of all ticks does.
    """
    modules = run.graph.modules_by_name
    dues = [
        make_due(run, module, f"{name}.{term.name}", term)
        for name, module in modules.items()
        for term in module.objectives
        if has_target(run, term)
    ]
    for due in dues:
        for key in ports_of(due):
            run.kept.setdefault(key, [])
        if due.term.objective.needs_state:
            run.watched.add(due.module.name)
    start, stop = run.offset, run.offset + run.ticks
    if drive is not None:
        for due in dues:
            if isinstance(due.term.target, PortDrive | PortOutput):
                run.kept.setdefault(held_by(due.term.target), [])
        drive(run)
    else:
        run.begin(start, stop)
        run_components(run, parts, start, stop)
    for due in dues:
        if due.read is not None and due.ticks:
            due.y = torch.stack([due.read(run, min(t, stop - 1 - due.lag)) for t in due.ticks])
    run.end(cut=False)
    return dues


def held_by(target: PortDrive | PortOutput) -> str:
    """The key of the port that holds a target."""
    return f"{target.module.name}.{target.port}{':drive' if isinstance(target, PortDrive) else ''}"


def has_target(run: Rollout, term: Term) -> bool:
    """Is the term's target there? In evaluation a batch without targets is an ordinary thing."""
    if run.streaming and term.at == "last":
        return False
    if run.graph.training or not isinstance(term.target, BatchKey):
        return not (run.streaming and isinstance(term.target, ShiftedInput) and term.target.shift)
    return term.target.key in run.batch


def ports_of(due: Due) -> list[str]:
    """Keys of the ports a term looks at."""
    name = due.module.name
    if due.term.objective.rowwise:
        return [f"{name}.{due.term.on}"]
    return [*(f"{name}.{p}" for p in due.module.nodes), *(f"{name}.{p}:drive" for p in due.module.ports.inputs)]


def declared_losses(run: Rollout, dues: list[Due]) -> dict[str, Tensor]:
    """Weighted loss of every declared objective over the whole rollout, by ``module.term``."""
    made = {}
    for due in dues:
        shares = shares_of(due, [0] * len(due.ticks))
        states = run.state_log.get(due.module.name, [])
        made[due.name] = term_loss(due, list(range(len(due.ticks))), shares, _stacks(run, due), states)
    for name, module in run.graph.modules_by_name.items():
        for param in module.objectives.params:
            made[f"{name}.{param.name}"] = param.loss(list(module.iter_parameters_by_tag(param.tag)))
    return made


def _stacks(run: Rollout, due: Due) -> Callable[[str], Tensor]:
    made: dict[str, Tensor] = {}

    def stack(key: str) -> Tensor:
        if key not in made:
            port, at_emissions = key.removesuffix("@emissions"), key.endswith("@emissions")
            whole = torch.cat(run.kept[port])
            if at_emissions:
                steps = [t for t in range(run.offset, run.offset + run.ticks) if run.schedule.steps(due.module.name, t)]
                whole = whole[[steps.index(t) for t in due.ticks]]
            made[key] = whole
        return made[key]

    return stack
