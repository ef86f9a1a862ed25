"""Two equal graphs: one runs itself, the other by a plan; and what must be equal of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from imprint import Auto, Graph, Module, Source, Targets, protos, record
from imprint.managers import attach

from references.graph_small import CLASSES, batch
from references.states import flat

CALLS: dict[str, Any] = {"backend": "inductor", "codegen": "eager"}
"""Captured ticks, call by call: no compiler is needed."""
EMULATED: dict[str, Any] = {"backend": "cuda_graph", "allow_emulation": True}
TOLERANCE = 1e-12


def small(bind: bool = True) -> Graph:
    """x -> enc (leaky units) -> head (linear), with a cross entropy: little to capture."""
    torch.manual_seed(0)
    graph, src = Graph(), Source("x")
    enc, head = Module("enc", protos.Leaky(4)), Module("head", protos.MLP([4, Auto]))
    graph.connect(src["out"], enc["in"])
    graph.connect(enc["out"], head["in"])
    head.objectives.ce(target=Targets.batch_key("y"), num_classes=CLASSES)
    return graph.bind(batch()) if bind else graph


def compiled(graph: Graph, data: Mapping[str, Any], **options: Any) -> Any:
    """A plan of a graph, recorded in eval mode: nothing is changed by it."""
    graph.eval()
    with record(graph) as trace, torch.no_grad():
        graph.rollout(data)
    graph.train().reset()
    return trace.compile(**(CALLS | options))


def close(got: Any, want: Any, what: str, tolerance: float = TOLERANCE) -> None:
    """Element by element, with the name of what differs."""
    got, want = (torch.as_tensor(v).detach() for v in (got, want))
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance, msg=lambda text: f"{what}: {text}")


def same(got: Any, want: Any, what: str, tolerance: float = TOLERANCE) -> None:
    """Nested: the same leaves, tensors and floats close and all else equal."""
    ours, theirs = flat(got), flat(want)
    assert ours.keys() == theirs.keys(), (what, ours.keys() ^ theirs.keys())
    for path, v in theirs.items():
        if isinstance(v, Tensor | float):
            close(ours[path], v, f"{what}{path}", tolerance)
        else:
            assert ours[path] == v, (what, path)


@dataclass
class Pair:
    """`eager` runs itself, `graph` by its `plan`."""

    eager: Graph
    graph: Graph
    plan: Any

    def roll(self, data: Mapping[str, Any], seed: int = 0, keep: str = "all", reset: bool = True) -> tuple[Any, Any]:
        """Both roll the batch out with the same random numbers; what comes out and all losses are equal."""
        torch.manual_seed(seed)
        out = self.eager.rollout(data, reset=reset, keep=keep)
        torch.manual_seed(seed)
        theirs = self.plan.rollout(data, reset=reset, keep=keep)
        self.same_results(out, theirs, keep)
        return out, theirs

    def same_results(self, out: Any, theirs: Any, keep: str = "all") -> None:
        """Emissions, drives and states where they are kept, and losses."""
        for key in (key for key in self.eager.sizes if ":" not in key):
            close(theirs[key], out[key], key)
        for name, module in self.eager.modules_by_name.items() if keep == "all" else ():
            for port in module.ports.inputs:
                close(self.graph[name].state.input_drive[port], module.state.input_drive[port], f"{name}.{port}")
            same(self.graph[name].state.recurrent, module.state.recurrent, f"state of {name}")
        losses = self.plan.losses()
        assert losses.keys() == self.eager.losses().keys()
        for key, want in self.eager.losses().items():
            close(losses[key], want, f"loss {key}")

    def same_weights(self, tolerance: float = TOLERANCE) -> None:
        """Weights, buffers, what the rule has filled, and the state of every optimizer."""
        for kind in ("named_parameters", "named_buffers"):
            ours = dict(getattr(self.graph, kind)())
            for name, v in getattr(self.eager, kind)():
                close(ours[name], v, name, tolerance)
        if self.eager.manager is None or self.eager.learning is None:
            return
        for (name, term), other in zip(
            self.eager.manager.filled.items(), self.graph.manager.filled.values(), strict=True
        ):
            for p, q in zip(term.parameters(), other.parameters(), strict=True):
                close(q, p, f"filled {name}", tolerance)
        for name, optimizers in self.eager.manager.optimizers.items():
            for a, b in zip(optimizers, self.graph.manager.optimizers[name], strict=True):
                same(b.state_dict(), a.state_dict(), f"optimizer of {name}", tolerance)


def pair(
    make: Callable[[], Graph], rule: Any = "local", data: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None, **attached: Any,
) -> Pair:  # fmt: skip
    """Two graphs in float64 with the same weights, and a plan of the second; `rule` None attaches nothing."""
    graphs = []
    for _ in range(2):
        graph = make().to(torch.float64)
        if rule is not None:
            torch.manual_seed(3)
            attach(graph, rule, **attached)
        graphs.append(graph)
    data = batch() if data is None else data
    for graph in graphs if rule is not None else ():
        torch.manual_seed(3)
        graph.manager.bind(data)
    return Pair(*graphs, compiled(graphs[1], data, **(options or {})))


def weights(graph: Graph) -> dict[str, Tensor]:
    """As they are now."""
    return {name: p.detach().clone() for name, p in graph.named_parameters()}


def adam(params: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(params, lr=0.02, eps=1e-4)


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)
