"""One batch in which every unit learns: the forward on the data, what goes before it, and what waits for its end."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..credit import Params, Tree, add, detach, eager
from ..errors import ArgumentError, ImprintError
from ..objectives import Target
from ..propagators.layer import first_floating, primary
from ..utils import random_state, set_random_state
from .coverage import check_joined
from .explain import locate
from .options import Inputs
from .task import TaskUnit, learn_from_task

if TYPE_CHECKING:
    from .agent import LayerAgent
    from .manager import Manager

UPDATES = ("immediate", "deferred", "summed")


def learn(manager: Manager, inputs: Inputs, y: Tensor | None, share: float | None) -> Any:
    """Run the model on one batch; its units gather gradient and, with a `share`, step. Returns the detached output."""
    with Sum(manager) if manager.options.update == "summed" else nullcontext() as waiting:
        return _learn(manager, inputs, y, share, waiting)


def _learn(manager: Manager, inputs: Inputs, y: Tensor | None, share: float | None, waiting: Sum | None) -> Any:
    at_end, share = share, share if manager.options.update == "immediate" else None
    phase, context, first = manager.phase, manager.context, None
    target = Target(y, x=_first(manager, inputs))
    again: Any = nullcontext()
    if context is not None:
        inputs = context.data(inputs)
        if y is not None and context.stream.from_error:
            first, inputs, target, again = _from_error(manager, inputs, y, target, share)
        elif y is not None or not context.stream.needs_labels:
            made, target = context.learn(inputs, y, share, target)
            run_context(manager, made, target, share)
            if at_end is not None and share is None:  # the data pass sees what the context alone has taught
                _step_context_units(manager, at_end, waiting)
    with again, phase.during("learn", target, share, learns=True):
        output = manager.model(*inputs.args, **inputs.kwargs)
        check_joined(phase)
    if y is not None:
        learn_after(manager, output, target, share)
        others = [a.prop for a in manager.units.values() if a.open and not a.frozen]
        with phase.during("backward"):
            learn_from_task(manager.task, others, output, y)
    phase.forget()
    return detach(output if first is None else first)


def take_turns(manager: Manager) -> None:
    """Of units whose rule lets one learn after the other, say whose turn it is."""
    order = (manager.bound or {}).get("order", list(manager.units))
    units = [a for a in map(manager.units.__getitem__, order) if a.rule.turn() is not None and a.learns and not a.open]
    left, now = manager.steps, -1
    for i, agent in enumerate(units):
        now, turn = i, agent.rule.turn() or 0
        if left < turn:
            break
        left -= turn
    for i, agent in enumerate(units):
        agent.waits = i != now


def run_context(manager: Manager, made: Inputs, target: Target, share: float | None) -> Any:
    """The pass on the context inputs; what it writes to buffers is forgotten."""
    manager.phase.forget()
    with manager.model_buffers.borrowed(), manager.phase.during("context", target, share, learns=True), torch.no_grad():
        return manager.model(*made.args, **made.kwargs)


def _from_error(
    manager: Manager, inputs: Inputs, y: Tensor, target: Target, share: float | None
) -> tuple[Any, Inputs, Target, Any]:
    """A first pass without learning tells the error; it makes the context, or the inputs of the second pass.

    Returns what the first pass gave, the second pass's inputs and targets, and what the second pass runs under.
    """
    context = manager.context
    assert context is not None
    drawn = random_state()
    manager.phase.forget()
    modulates = context.stream.modulates
    # one of the two passes is on the data as it is, and that one counts in running statistics
    with nullcontext() if modulates else manager.model_buffers.borrowed(), torch.no_grad():
        with manager.phase.during("context" if modulates else "off", target, None, learns=True):
            output = manager.model(*inputs.args, **inputs.kwargs)
    error = task_error(manager, output, y)
    if modulates:
        set_random_state(drawn)  # the same dropout masks in both passes
        with torch.no_grad():
            inputs = context.modulated(inputs, error)
        return output, inputs, replace(target, error=error), manager.model_buffers.borrowed()
    made, target = context.learn(inputs, y, share, replace(target, error=error))
    run_context(manager, made, target, share)
    return None, inputs, target, nullcontext()


def task_error(manager: Manager, output: Tree, y: Tensor) -> Tensor:
    r"""Error of each sample, batch first: :math:`n\,\partial J/\partial z` for output z and n labelled rows."""
    unit = manager.task.unit
    assert isinstance(unit, TaskUnit)
    first, (leaves, spec) = primary(output, "the model's output"), tree_flatten(output)
    out = first.detach().requires_grad_()
    whole = tree_unflatten([out if v is first else detach(v) for v in leaves], spec)
    with torch.enable_grad():
        loss = unit.loss(whole, y)
    error = torch.autograd.grad(loss, [out], allow_unused=True)[0] if loss.requires_grad else None
    if error is None:
        raise ArgumentError(
            "task_loss=", "it does not read the first floating tensor of the model's output, whose error units need",
            expected="a loss of that tensor, with its graph", fix="return that tensor first, or choose another rule",
        )  # fmt: skip
    assert manager.bound is not None
    return error.movedim(int(manager.bound["output_dim"]), 0) * unit.labels.labelled(y)


def learn_after(manager: Manager, output: Tree, target: Target, share: float | None) -> None:
    """Units that need the output's error learn now, from the graphs that waited, nearest to the output first."""
    waiting, manager.phase.waiting = manager.phase.waiting, []
    if not waiting:
        return
    assert target.y is not None
    told = replace(target, error=task_error(manager, output, target.y))
    stepped: dict[LayerAgent, None] = {}
    while waiting:
        agent, call = waiting.pop()
        try:
            agent.prop.tick((), call, told)
        except ImprintError as error:
            locate(error, f"unit {agent.prop.name!r}")
            raise
        stepped[agent] = None
    for agent in stepped if share is not None else ():
        agent.prop.update(share)  # type: ignore[arg-type]


def _step_context_units(manager: Manager, share: float, waiting: Sum | None) -> None:
    units = [a for a in manager.units.values() if a.unit.objective.needs_context and not a.unit.objective.uses_data]
    if units and waiting is not None:
        waiting.differentiate()
    for agent in units:
        agent.prop.update(share)


class Sum:
    """While it is entered, losses of a manager's units wait; as it is left, their sum is differentiated."""

    def __init__(self, manager: Manager) -> None:
        plain = eager if manager.scaled is None else manager.scaled.diff
        self.scaled, self.plain = manager.scaled, plain
        self.props = [prop for prop in manager.propagators.values() if prop.diff == plain]  # an audit has its own
        self.losses: list[Tensor] = []
        self.wanted: dict[int, Tensor] = {}

    def __enter__(self) -> Sum:
        for prop in self.props:
            prop.diff = self.wait
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        for prop in self.props:
            prop.diff = self.plain
        if kind is None:
            self.differentiate()

    def wait(self, f: Any, params: Params) -> tuple[Params, Tensor, Tree]:
        """A `Diff` that finds no gradient yet."""
        with torch.enable_grad():
            loss, aux = f(params)
        if loss.requires_grad:
            self.losses.append(loss)
            self.wanted |= {id(p): p for p in params.values() if p.requires_grad}
        return {}, loss.detach(), detach(aux)

    def differentiate(self) -> None:
        """Give every propagator its part of the gradient."""
        losses, wanted, self.losses, self.wanted = self.losses, self.wanted, [], {}
        if not losses or not wanted:
            return
        with torch.enable_grad():
            total = torch.stack([loss.reshape(()) for loss in losses]).sum()
            total = total if self.scaled is None else self.scaled.scaled(total)
        found = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
        grads = dict(zip(wanted, found, strict=True))
        for prop in self.props:
            mine = {k: g for k, p in prop.params.items() if (g := grads.get(id(p))) is not None}
            prop.carry = add(prop.carry or {}, mine)


def _first(manager: Manager, inputs: Inputs) -> Tensor | None:
    """The model's first floating input, batch first."""
    v = first_floating((inputs.args, inputs.kwargs))
    if v is None or manager.bound is None:
        return None
    dim = next((d for u, d in zip(inputs.leaves(), manager.bound["rows"], strict=False) if u is v), None)
    return v.detach().movedim(dim, 0) if dim else v.detach()
