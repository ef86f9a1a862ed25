"""Heads, context inputs and optimizer state go where the weights went: device, precision, memory order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..propagators import Propagator
from .replaced import follow_replaced, hang

if TYPE_CHECKING:
    from .manager import Manager

Place = tuple[torch.device, torch.dtype, tuple[int, ...]]


def _place(weight: Tensor) -> Place:
    return weight.device, weight.dtype, weight.stride()


def remember(manager: Manager) -> None:
    """Note what hangs on every module, where each unit's largest weight is, and the model's first for the rest."""
    hang(manager)
    first = next(manager.model.parameters())
    weights = {n: max(a.unit.weights(), key=Tensor.dim) for n, a in manager.units.items()}
    manager.places = {name: (w, _place(w)) for name, w in ({"": first} | weights).items()}


def follow(manager: Manager) -> None:
    """Move what belongs to a unit whose weights were replaced or moved since the last look.

    Raises:
        StateError: what came in place of weights or modules does not fit; nothing was changed.
    """
    replaced = follow_replaced(manager)
    moved = {name: w for name, (w, place) in manager.places.items() if _place(w) != place}
    if not moved and not replaced:
        return
    for name, weight in moved.items():
        manager.places[name] = (weight, _place(weight))
        if name in manager.units:
            manager.units[name].unit.objective.to(weight.device, weight.dtype)
        elif manager.context is not None:
            manager.context.stream.to(weight.device, weight.dtype)
    for prop in manager.propagators.values():
        _move_gathered(prop)


def _move_gathered(prop: Propagator) -> None:
    for optimizer in prop.optimizers:
        move_state(optimizer)
    carry: dict[str, Tensor] = prop.carry or {}
    prop.carry = {k: g.to(prop.params[k]) for k, g in carry.items()} or None


def move_state(optimizer: Optimizer) -> None:
    """What an optimizer remembers goes where its weights are."""
    optimizer.load_state_dict(optimizer.state_dict())  # casts its state to its weights' place
    for p, state in optimizer.state.items():
        for k, v in state.items():  # a fused optimizer walks weights and state by the same memory order
            if isinstance(v, Tensor) and v.shape == p.shape and v.stride() != p.stride():
                state[k] = torch.empty_like(p).copy_(v)
