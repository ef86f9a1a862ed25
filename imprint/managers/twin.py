"""A second manager, in the same state and of a copy of the model."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import ArgumentError
from ..rules import Backprop
from .intercept import Attached, intercept
from .state import load_optimizer, optimizer_state

if TYPE_CHECKING:
    from .manager import Manager


def twin(manager: Manager, update: str) -> Manager:
    """A manager that goes on from the same state as `manager`, by another update mode, and shares nothing with it.

    It has no monitors and no schedules, its steps are eager, and every batch is an update; what `manager` has gathered
    is left out. Optimizers are made anew by their builders, and take their state over.

    Raises:
        ArgumentError: something of the model or of the options cannot be copied.
    """
    try:
        made = copy.deepcopy(manager, _left_behind(manager))
    except (TypeError, RuntimeError, AttributeError) as error:
        raise ArgumentError(
            "manager.profile", "the model cannot be copied", expected="what copy.deepcopy takes", got=str(error),
            fix="keep locks, files and generators out of the model, its rules and the options of attach",
        ) from error  # fmt: skip
    made.options.update, made.phase.keeps, made.options.accumulate = update, update == "summed", 1
    made.steps = made.gathered = 0
    for prop in made.propagators.values():
        prop.reset()
    _intercept(made)
    _equip(made, manager)
    return made


def _left_behind(manager: Manager) -> dict[int, Any]:
    """What a copy has instead, by the original's id."""
    memo: dict[int, Any] = {id(manager.probes): {}, id(manager.schedulers): {}}
    if manager.compiled is not None:
        memo[id(manager.compiled)] = None
    for prop in manager.propagators.values():
        memo |= {id(prop.probes): [], id(prop.optimizers): []}
    for agent in manager.units.values():
        memo[id(agent.unit.synapses)] = ()  # of the last step, with its graph
    for module in manager.model.modules():
        for v in vars(module).values():
            if isinstance(v, Tensor) and not v.is_leaf:
                memo[id(v)] = v.detach().clone()  # what a module remembers of its last call; torch copies leaves only
    return memo


def _intercept(made: Manager) -> None:
    """A copied layer is the plain one."""
    for agent in made.phase.agents:
        first, *rest = agent.unit.modules
        intercept(first, agent)
        for module, follower in zip(rest, agent.followers, strict=True):
            if not isinstance(module, Attached):
                intercept(module, follower)
    if made.context is not None:
        made.context.attach(made.model, made.phase)


def _equip(made: Manager, manager: Manager) -> None:
    first = next((a.rule for a in made.units.values() if a.rule.learns), Backprop())
    for name, prop in made.propagators.items():
        original = manager.propagators[name]
        if not original.optimizers:
            continue
        made.options.equip(prop, prop.params, made.units[name].rule if name in made.units else first)
        for mine, its in zip(prop.optimizers, original.optimizers, strict=True):
            load_optimizer(mine, optimizer_state(its, original.params), prop.params)
