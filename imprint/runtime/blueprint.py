"""What a plan takes for granted about a graph."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ..graph import Graph


@dataclass(frozen=True)
class ModuleFacts:
    """One module.

    Attributes:
        name, proto: its name, and the class of what it computes.
        inner_steps, emit_every, offset: its pace; of a module that follows, the period is that of the followed one.
        rests: it steps only where it emits.
        inputs, outputs: size of each port.
    """

    name: str
    proto: str
    inner_steps: int
    emit_every: int
    offset: int
    rests: bool
    inputs: tuple[tuple[str, Any], ...]
    outputs: tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class EdgeFacts:
    """One edge: the ports it joins, by key, and how."""

    name: str
    source: str
    target: str
    delay: int
    stop_grad: bool
    projection: str


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
            modules.append(ModuleFacts(name, proto, *rhythm, inputs, outputs))
        edges = [
            EdgeFacts(e.name, e.source.key, e.target.key, e.delay, e.stop_grad, type(e.proj).__name__)
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
