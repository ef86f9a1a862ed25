"""Does each unit learn from its own loss alone? Proven on the autograd graph of a step that changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

from torch import Tensor, nn

from ..credit import Diff, Params, Tree, eager
from ..errors import IsolationError
from ..propagators import Propagator
from ..propagators.layer import borrowed_buffers
from ..utils import same_random_state
from .graph_leaves import keeper, leaves_of, tensors_in
from .isolation_report import Boundary, IsolationReport, Leak


class Audited(Protocol):
    """A manager, as far as an audit looks."""

    model: nn.Module
    bound: dict[str, Any] | None
    probes: dict[str, Any]
    steps: int
    gathered: int

    @property
    def propagators(self) -> Mapping[str, Propagator]:
        """Of every unit, then ``"task"``, and ``"signal"`` where there is one."""

    @property
    def units(self) -> Mapping[str, Any]:
        """Agents by name, with ``unit``, ``rule`` and ``open``."""

    def bind(self, x: Any, y: Tensor | None = None) -> Any:
        """Make heads and optimizers."""

    def step(self, x: Any, y: Tensor | None = None) -> Any:
        """One learning step."""


def audit_isolation(manager: Audited, x: Any, y: Tensor | None = None, strict: bool = False) -> IsolationReport:
    """Take one step that moves nothing, and look at what each unit's loss reaches.

    A unit's loss may reach its own parameters, its objective's among them; the task loss, parameters outside all units
    and those of open units. No unit's output may carry a graph, unless the unit is open. What crosses by a rule that
    declares ``allow_cross`` is reported and let through. Reaching a tensor need not move it: this is the stricter test.

    Weights, optimizers, gathered gradients, buffers, metrics and the next random numbers stay as they were. A manager
    that is not bound is bound first, as its first step would do.

    Args:
        manager: what ``attach`` returned; its model is in training mode.
        x: inputs, as for ``manager.step``.
        y: targets.
        strict: raise if there is a leak.

    Raises:
        IsolationError: there is a leak, and `strict` is set; it names loss, tensor and owner.

    >>> import imprint, torch
    >>> model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    >>> manager = imprint.attach(model, "local_ce", num_classes=3)
    >>> audit_isolation(manager, torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2]))
    unit  rule      leaves reached  crossing
    ----  --------  --------------  ----------------------------
    0     local_ce  4 of 4          none
    2     local_ce  2 of 2          it learns from the task loss
    task  -         0 of 0          none
    isolated
    """
    if manager.bound is None:
        manager.bind(x, y)
    audit = _Audit(manager, x)
    with _without_traces(manager), ExitStack() as stack:
        for name, prop in manager.propagators.items():
            prop.diff = audit.inspect(name)
        for name, agent in manager.units.items():
            if not agent.open:
                stack.callback(agent.unit.modules[0].register_forward_hook(audit.watch_output(name)).remove)
        manager.step(x, y)
    report = IsolationReport(tuple(audit.boundary(name) for name in manager.propagators))
    if strict and not report.ok:
        leak = report.leaks[0]
        raise IsolationError(
            f"unit {leak.unit!r}", f"a gradient crosses its boundary ({len(report.leaks)} in all)",
            expected="its loss reaches its own parameters only", got=str(leak),
            fix="read no other unit's weights or tensors (detach() what a module keeps), or make one unit of both",
        )  # fmt: skip
    return report


class _Audit:
    """Who owns which tensor, and what was reached from where."""

    def __init__(self, manager: Audited, x: Any) -> None:
        self.manager = manager
        names = {id(v): f"input {tuple(v.shape)}" for v in tensors_in(x)}
        names |= {id(p): f"parameter {name!r}" for name, p in manager.model.named_parameters()}
        self.names, self.owners = names, dict.fromkeys(names, "")
        for owner, prop in manager.propagators.items():
            self.names |= {id(p): f"parameter {name!r}" for name, p in prop.params.items()}
            self.owners |= {id(p): owner for p in prop.params.values()}
        self.modules = [(path or "the model", m) for path, m in manager.model.named_modules()]
        for name, agent in manager.units.items():
            self.owners |= {id(p): name for m in agent.unit.modules for p in m.parameters()}  # excluded ones as well
            self.modules += [(f"objective of {name}", m) for m in agent.unit.objective.modules()]
        self.reached: dict[str, set[int]] = {name: set() for name in manager.propagators}
        self.leaks: dict[str, dict[int, Leak]] = {name: {} for name in manager.propagators}

    def may_reach(self, name: str, tensor: int) -> bool:
        """May the loss of `name` reach this tensor?"""
        owner = self.owners.get(tensor)
        if owner == name or name != "task" or owner is None:
            return owner == name
        return not owner or (owner in self.manager.units and self.manager.units[owner].open)

    def inspect(self, name: str) -> Diff:
        """A `Diff` that looks at the loss and finds no gradient, so that nothing is stepped."""

        def diff(f: Callable[[Params], tuple[Tensor, Tree]], params: Params) -> tuple[Params, Tensor, Tree]:
            def seen(p: Params) -> tuple[Tensor, Tree]:
                loss, aux = f(p)
                self.look(name, loss)
                return loss, aux

            return ({}, *eager(seen, params)[1:])

        return diff

    def look(self, name: str, loss: Tensor) -> None:
        """Note what a loss reaches."""
        for leaf in leaves_of(loss):
            key = id(leaf)
            self.reached[name].add(key)
            if not self.may_reach(name, key) and key not in self.leaks[name]:
                what = self.names.get(key, f"a tensor {tuple(leaf.shape)} that is no parameter")
                self.leaks[name][key] = Leak(name, what, self.owners.get(key, ""), keeper(leaf, self.modules))

    def watch_output(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        """A hook that notes an output with a graph."""

        def hook(module: nn.Module, args: Any, out: Any) -> None:
            if any(v.requires_grad for v in tensors_in(out)):
                self.leaks[name][0] = Leak(name, "what follows it: its output carries a graph")

        return hook

    def boundary(self, name: str) -> Boundary:
        """The row of one propagator."""
        agent, prop = self.manager.units.get(name), self.manager.propagators[name]
        own = {id(p): k for k, p in prop.params.items() if p.requires_grad}
        teacher = "task" if agent is not None and agent.open else name
        reached = tuple(k for key, k in own.items() if key in self.reached[teacher])
        leaks, note = tuple(self.leaks[name].values()), ""
        if own and not reached:
            note = "it did not learn"
        elif agent is not None and agent.open:
            note = "it learns from the task loss" + " across boundaries (allow_cross)" * agent.rule.allow_cross
        elif agent is not None and agent.rule.allow_cross:
            note = f"{'; '.join(map(str, leaks)) or 'it learns from the error of the output'} (allow_cross)"
            leaks = ()
        return Boundary(name, "-" if agent is None else agent.rule.name, tuple(own.values()), reached, leaks, note)


@contextmanager
def _without_traces(manager: Audited) -> Iterator[None]:
    """Whatever a step without gradients changes is as it was afterwards."""
    props = list(manager.propagators.values())
    kept = [(p.diff, p.probes, p.carry, p.ticks) for p in props]
    steps, gathered, probes = manager.steps, manager.gathered, manager.probes
    inside = [m for p in props if p.unit is not None for m in vars(p.unit).values() if isinstance(m, nn.Module)]
    manager.gathered, manager.probes = 0, {}
    for p in props:
        p.reset()
        p.probes = []
    try:
        with same_random_state(), borrowed_buffers([manager.model, *inside]):
            yield
    finally:
        for p, state in zip(props, kept, strict=True):
            p.diff, p.probes, p.carry, p.ticks = state
        manager.steps, manager.gathered, manager.probes = steps, gathered, probes
