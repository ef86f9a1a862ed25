"""A step of plain backpropagation through an attached model, with or without checkpoints, to compare with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..credit import Tree
from ..errors import ArgumentError
from ..objectives import Objective
from ..propagators.layer import OBJECTIVE, Call, LayerUnit
from ..rules import Backprop
from .intercept import Attached, Follower, intercept
from .options import Inputs, build_optimizer
from .task import TaskUnit

if TYPE_CHECKING:
    from .manager import Manager


def backprop_step(made: Manager, x: Any, y: Tensor, checkpointed: bool) -> Callable[[], None]:
    """A step of backprop through the model of `made`, which is given up for it."""
    if made.bound is None:
        made.bind(x, y)
    owners = [prop for n, prop in made.propagators.items() if n != "signal" and prop.optimizers and not _rests(made, n)]
    learn = {k for prop in owners for k, p in prop.params.items() if not k.startswith(OBJECTIVE) and p.requires_grad}
    chains = [list(zip(a.unit.names, a.unit.modules, strict=True)) for a in made.phase.agents]
    model, task = made.detach(), made.task.unit
    assert isinstance(task, TaskUnit)
    for name, p in model.named_parameters():
        p.requires_grad_(name in learn)
    params: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    rule = next((a.rule for a in made.units.values() if a.rule.learns), Backprop())
    builder = made.options.optimizer or rule.optimizer
    optimizer = build_optimizer("manager.profile, backprop", builder, params)
    if optimizer is None:
        raise ArgumentError(
            "manager.profile", "backprop has nothing to learn", expected="parameters that learn, and their optimizer",
            got=f"{len(params)} parameters", fix="manager.unfreeze, or an optimizer= that makes one for them",
        )  # fmt: skip
    if checkpointed:
        _checkpoint(chains)
    inputs, clip = Inputs.of(x), made.options.grad_clip

    def step() -> None:
        task.loss(model(*inputs.args, **inputs.kwargs), y).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(params, clip)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _rests(made: Manager, name: str) -> bool:
    return name in made.units and made.units[name].frozen


def _checkpoint(chains: list[list[tuple[str, nn.Module]]]) -> None:
    """Run each unit's modules under one checkpoint; what is inside is computed again in the backward pass."""
    followers: dict[nn.Module, Follower] = {}
    for chain in chains:
        first, *rest = [module for _, module in chain]
        unit = LayerUnit(chain[0][0], chain, Objective())
        intercept(first, _Checkpointed(unit, [followers.setdefault(m, Follower()) for m in rest]))
    for module, follower in followers.items():
        if not isinstance(module, Attached):
            intercept(module, follower)


class _Checkpointed:
    """A unit that is an ordinary part of its model, but keeps nothing for the backward pass except its inputs."""

    def __init__(self, unit: LayerUnit, followers: list[Follower]) -> None:
        self.unit, self.followers, self.own = unit, followers, unit.parameters()

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tree:
        out = checkpoint(self.run, args, kwargs, use_reentrant=False)
        for follower in self.followers:
            follower.expect(out)
        return out

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tree:
        return self.unit.call(self.own, Call(args, kwargs))
