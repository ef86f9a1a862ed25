"""Which loss reaches which parameter: decided once, by one forward pass in which every unit's output is a leaf."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from ..errors import CoverageError, ImprintError
from ..propagators.layer import borrowed_buffers, primary
from .agent import LayerAgent, Phase
from .hidden import check_hidden


@dataclass(frozen=True)
class Coverage:
    """Classes of the parameters outside units, by name.

    Attributes:
        task: reached from the model's output; they learn from the task loss.
        frozen: they want no gradient, or are excluded.
        orphans: nothing trains them.
        last: the learning unit nearest to the output whose own output reaches it, if any.
    """

    task: tuple[str, ...]
    frozen: tuple[str, ...]
    orphans: tuple[str, ...]
    last: str | None


def check_disjoint(model: nn.Module, agents: Iterable[LayerAgent]) -> None:
    """Refuse a parameter in two units.

    Raises:
        CoverageError: names both units and the parameter.
    """
    owner: dict[int, tuple[str, str]] = {}
    for agent in agents:
        for name, p in agent.unit.parameters().items():
            if id(p) in owner:
                unit, first = owner[id(p)]
                raise CoverageError(
                    f"parameter {name!r}", "two units own it",
                    got=f"unit {unit!r} (as {first!r}) and unit {agent.prop.name!r}",
                    fix="list the shared module as a unit of its own by layers=[...], or make one unit of both",
                )  # fmt: skip
            owner[id(p)] = (agent.prop.name, name)


@dataclass(frozen=True)
class Sight:
    """What one forward pass showed: the model's output, each unit's floating outputs (leaves) and its calls."""

    output: Any
    leaves: list[tuple[LayerAgent, Tensor]]
    calls: dict[str, int]

    @property
    def outputs(self) -> dict[str, Tensor]:
        """The first floating output of each unit that has one."""
        found: dict[str, Tensor] = {}
        for agent, v in self.leaves:
            found.setdefault(agent.prop.name, v.detach())
        return found


def look(model: nn.Module, phase: Phase, inputs: Any) -> Sight:
    """Run `model` once on a copy of `inputs`; the running statistics and random numbers it uses up are given back."""
    args, kwargs = tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, (inputs.args, inputs.kwargs))
    devices = [p.device for p in model.parameters() if p.device.type == "cuda"][:1]
    phase.leaves, phase.handed = [], []
    try:
        with torch.random.fork_rng(devices), borrowed_buffers([model]), whole_calls(), torch.enable_grad():
            with phase.during("probe"):
                out = model(*args, **kwargs)
                check_hidden("the model's output", "it holds", out)
                for agent, what, v, version in phase.handed:
                    if v._version != version:
                        setattr(agent, what, True)
                return Sight(out, phase.leaves, {a.prop.name: a.calls for a in phase.agents})
    except (RuntimeError, ValueError, IndexError) as error:
        if not isinstance(error, ImprintError) or error.__cause__ is not None:  # torch complained
            check_joined(phase, error)  # a joined layer that ran too early is the likelier cause
        raise
    finally:
        phase.leaves, phase.handed = [], []


def check_joined(phase: Phase, error: Exception | None = None) -> None:
    """Refuse a pass in which a layer that joined a unit did not run on what that unit emitted.

    Raises:
        CoverageError: names both.
    """
    for agent in phase.agents:
        for path, follower in zip(agent.unit.names[1:], agent.followers, strict=True):
            if follower.waiting:
                raise CoverageError(
                    f"unit {agent.prop.name!r}", f"the model does not always run {path!r} next, on what it emits",
                    got=None if error is None else _first_line(error.__cause__ or error),
                    fix=f"name the layers, so that none joins another: layers=[{agent.prop.name!r}, ...], block_size=1",
                ) from error  # fmt: skip


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: " + str(error).split("\n")[0]


@contextmanager
def whole_calls() -> Iterator[None]:
    """Switch off torch's fused inference path of attention, which reads layers' weights without calling them."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def classify(model: nn.Module, phase: Phase, sight: Sight, left_out: set[str], whole: bool) -> Coverage:
    """Decide the class of every parameter.

    Args:
        model: the model.
        phase: of its units.
        sight: what :func:`look` saw.
        left_out: names that are excluded.
        whole: the task loss reads the whole output, not only its first floating tensor.

    Raises:
        CoverageError: a unit is never called, or its weights are read past it.
    """
    for agent in phase.agents:
        if not sight.calls[agent.prop.name]:
            parent = agent.prop.name.rpartition(".")[0]
            raise CoverageError(
                f"unit {agent.prop.name!r}", "the model's forward never calls it",
                fix=f"make {parent!r}, which may read its weights directly, the unit" if parent else "exclude= it",
            )  # fmt: skip
    check_joined(phase)
    params = dict(model.named_parameters())
    inside = {id(p): a for a in phase.agents for p in (a.unit.weights() if a.unit.still else a.unit.own.values())}
    wanted = {n: p for n, p in params.items() if p.requires_grad}
    read = tree_flatten(sight.output)[0] if whole else [primary(sight.output, "the model's output")]
    ends = [v for v in read if isinstance(v, Tensor) and v.requires_grad]
    sources = [(a, v) for a, v in sight.leaves if v.requires_grad]
    grads: tuple[Tensor | None, ...] = (None,) * (len(sources) + len(wanted))
    if ends:
        with torch.enable_grad(), phase.during("backward"):
            total = sum((v.float().sum() for v in ends), ends[0].new_zeros((), dtype=torch.float32))
            grads = torch.autograd.grad(total, [*(v for _, v in sources), *wanted.values()], allow_unused=True)
    reached = {n for n, g in zip(wanted, grads[len(sources) :], strict=True) if g is not None}
    for name in reached:
        owner = inside.get(id(params[name]))
        if owner is not None and not owner.open:
            raise CoverageError(
                f"unit {owner.prop.name!r}", f"its weight {name!r} is read outside of it, so it has two losses",
                fix="make one unit of both readers (layers=[...] with their common parent), or exclude= the weight",
            )  # fmt: skip
    for agent in phase.agents:
        mine = [n for n, p in params.items() if n in wanted and inside.get(id(p)) is agent]
        if agent.open and not agent.frozen and mine and not reached.intersection(mine):
            raise CoverageError(
                f"unit {agent.prop.name!r}", "the task loss does not reach it through the units behind it",
                fix="give it a local rule, or give the units behind it the rule 'backprop'",
            )  # fmt: skip
    outside = [n for n, p in params.items() if id(p) not in inside]
    task = tuple(n for n in outside if n in reached and n not in left_out)
    frozen = tuple(n for n in outside if n not in wanted or n in left_out)
    orphans = tuple(n for n in outside if n not in task and n not in frozen)
    order = [a for (a, _), g in zip(sources, grads, strict=False) if g is not None]
    last = next((a.prop.name for a in reversed(order) if a.learns and not a.open and not a.frozen), None)
    return Coverage(task, frozen, orphans, last)
