"""What a plan takes for granted about a graph."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ..graph import Graph, Module
from ..graph.edge import Edge
from ..graph.masked_linear import MaskedLinear
from ..protos.proto import Proto
from ..protos.stack import Stack

IRREGULAR = 0
"""Of a proto that starts anew by a rule of its own: no number of ticks."""


@dataclass(frozen=True)
class ModuleFacts:
    """One module.

    Attributes:
        name, proto: its name, and the class of what it computes.
        inner_steps, emit_every, offset: its pace; of a module that follows, the period is that of the followed one.
        rests: it steps only where it emits.
        inputs, outputs: size of each port.
        combines: of each input port, whether several edges are added (``"sum"``) or set side by side (``"concat"``).
        join: likewise of the sub-ports of a group that becomes one input; ``""`` where there is nothing to join.
        reset_every: of the ticks at which it steps, so many lie between two fresh starts; None: it never starts anew;
            `IRREGULAR`: its proto has a rule of its own.
    """

    name: str
    proto: str
    inner_steps: int
    emit_every: int
    offset: int
    rests: bool
    inputs: tuple[tuple[str, Any], ...]
    outputs: tuple[tuple[str, Any], ...]
    combines: tuple[tuple[str, str], ...] = ()
    join: str = ""
    reset_every: int | None = None


@dataclass(frozen=True)
class EdgeFacts:
    """One edge: the ports it joins, by key, and how; `width` is what a linear projection makes, None without one."""

    name: str
    source: str
    target: str
    delay: int
    stop_grad: bool
    projection: str
    width: int | None = None


@dataclass(frozen=True)
class Blueprint:
    """Modules in the order of a tick, edges, and whether a manager makes rollouts learn.

    Attributes:
        sources: names of the modules that read the batch.
    """

    modules: tuple[ModuleFacts, ...]
    edges: tuple[EdgeFacts, ...]
    sources: tuple[str, ...]
    managed: bool

    @classmethod
    def of(cls, graph: Graph) -> Blueprint:
        """Of a bound graph, as it is now."""
        modules = []
        for name in graph.order:
            module, pace = graph[name], graph.schedule.pace[name]
            inputs = tuple((port, graph.sizes[f"{name}.{port}:drive"]) for port in module.ports.inputs)
            outputs = tuple((port, graph.sizes[f"{name}.{port}"]) for port in module.nodes)
            rate, proto = module.schedule, type(module.proto or module).__name__
            rhythm = (rate.inner_steps, pace.emit_every, pace.offset, rate.step_when_emits)
            combines = tuple((port, it.combine) for port, it in module.ports.inputs.items())
            modules.append(
                ModuleFacts(name, proto, *rhythm, inputs, outputs, combines, _join(module), _reset_every(module.proto))
            )
        edges = [
            EdgeFacts(e.name, e.source.key, e.target.key, e.delay, e.stop_grad, type(e.proj).__name__, _width(e))
            for e in graph.all_edges
        ]
        return cls(tuple(modules), tuple(edges), tuple(graph.sources), graph.manager is not None)

    def differences(self, now: Blueprint) -> list[str]:
        """What is another way in `now`, in words."""
        words = []
        if self.managed != now.managed:
            words.append("a manager was attached" if now.managed else "the manager was detached")
        for kind, old, new in (("module", self.modules, now.modules), ("edge", self.edges, now.edges)):
            before, after = {f.name: f for f in old}, {f.name: f for f in new}
            words += [f"{kind} {name!r} is new" for name in after if name not in before]
            words += [f"{kind} {name!r} is gone" for name in before if name not in after]
            for name in before:
                if name in after:
                    words += [
                        f"{kind} {name!r}: {f.name} {getattr(before[name], f.name)} -> {getattr(after[name], f.name)}"
                        for f in fields(before[name])
                        if getattr(before[name], f.name) != getattr(after[name], f.name)
                    ]
        return words or ["modules run in another order"] * (self != now)


def _join(module: Module) -> str:
    """What becomes of the sub-ports of a group; a proto that takes them one by one joins them itself."""
    group = module.ports.group
    if group is None or module.proto is None or module.proto.grouped or len(group.ports) == 1:
        return ""
    return "concat" if group.layout == "disjoint" else "sum"


def _reset_every(proto: Proto | None) -> int | None:
    if proto is None or type(proto).resets_at is Proto.resets_at:
        return None
    if isinstance(proto, Stack) and type(proto).resets_at is Stack.resets_at:
        return proto.reset_every
    return IRREGULAR


def _width(edge: Edge) -> int | None:
    return edge.proj.out_features if isinstance(edge.proj, MaskedLinear) else None
