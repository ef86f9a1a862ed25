"""Captured blocks that a compiler made, against the graph's own engine. Each compilation takes seconds.

3 graphs, ``IMPRINT_EXAMPLES=300`` draws a tenth of so many.
"""

from __future__ import annotations

import os
import shutil
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from torch.utils._pytree import tree_leaves

from imprint import Auto, Graph, Module, Source, Targets, protos
from imprint.credit import ETrace, Instant
from imprint.managers import attach

from references.graph_draws import plans
from references.graph_plans import Plan, batch_of, bound
from references.graph_small import CLASSES, batch
from references.plan_runs import Pair, close, compiled

pytestmark = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None and shutil.which("clang++") is None, reason="no C++ compiler"
)
INDUCTOR: dict[str, Any] = {"backend": "inductor", "codegen": None}
GRAPHS = max(3, int(os.environ.get("IMPRINT_EXAMPLES", "30")) // 10)
OPTIMIZERS: dict[str, Any] = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.02, eps=1e-4, weight_decay=0.3),
    "by itself": lambda p: torch.optim.Adagrad(p, lr=0.05),
}


def test_random_graphs_in_float64() -> None:
    """Everything that comes out, weights and optimizer states, to 1e-12."""
    ran = []

    @settings(
        max_examples=GRAPHS, derandomize="IMPRINT_EXAMPLES" not in os.environ, deadline=None, database=None,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate],
    )  # fmt: skip
    @given(
        plans(learns=True), st.sampled_from([(Instant(), "tick"), (Instant(), 2), (ETrace("es_d_rtrl"), "tick")]),
        st.sampled_from(sorted(OPTIMIZERS)), st.sampled_from([None, 0.05]),
    )  # fmt: skip
    def each(plan: Plan, how: tuple[Any, Any], optimizer: str, clip: float | None) -> None:
        assume(few(plan))
        graphs = [bound(plan, batch_of(plan)) for _ in range(2)]
        for graph in graphs:
            torch.manual_seed(7)
            attach(
                graph, "local", credit=how[0], update=how[1], optimizer=OPTIMIZERS[optimizer], grad_clip=clip,
            ).bind(batch_of(plan))  # fmt: skip
        both = Pair(*graphs, compiled(graphs[1], batch_of(plan), **INDUCTOR))
        for i in range(2):
            both.roll(batch_of(plan, i), seed=i)
        both.same_weights()
        ran.append(plan)

    each()
    assert len(ran) >= 1


def few(plan: Plan) -> bool:
    """Few due sets and small ones: each is compiled. Functions that index by a mask cannot be."""
    terms = [term for m in plan.modules for term in m.terms]
    small = len(plan.modules) <= 2 and plan.ticks <= 4 and not plan.ragged and not plan.edges[0].delay
    regular = all(not m.rate and not m.proto.get("reset_every") for m in plan.modules)
    return small and regular and all(term.kind != "function" and term.options.get("at") != "last" for term in terms)


def two() -> Graph:
    """A GRU and a linear head in float32."""
    torch.manual_seed(0)
    graph, src = Graph(), Source("x")
    enc, head = Module("enc", protos.GRUStack(hidden=4)), Module("head", protos.MLP([4, Auto]))
    graph.connect(src["out"], enc["in"])
    graph.connect(enc["out"], head["in"])
    head.objectives.ce(target=Targets.batch_key("y"), num_classes=CLASSES)
    return graph.bind(batch())


def test_twenty_ticks_in_float32() -> None:
    """Outputs, weights under plain descent, which are sums of gradients, and moments, to 2e-6."""
    graphs = [two(), two()]
    for graph in graphs:
        torch.manual_seed(3)
        attach(graph, "local", optimizer=lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9)).bind(batch())
    both = Pair(*graphs, compiled(graphs[1], batch(), **INDUCTOR))
    data = batch(ticks=20, seed=1)
    out, theirs = both.eager.rollout(data), both.plan.rollout(data)
    for name in ("enc", "head"):
        close(theirs[name], out[name], name, 2e-6)
    both.same_weights(2e-6)
    moments = [v for own in both.graph.manager.optimizers.values() for o in own for v in tree_leaves(o.state_dict())]
    assert max(v.abs().max() for v in moments if isinstance(v, torch.Tensor)) > 0.01


def test_a_plain_graph_and_its_gradients_in_float64() -> None:
    graphs = [two().to(torch.float64).open_edges(), two().to(torch.float64).open_edges()]
    both = Pair(*graphs, compiled(graphs[1], batch(), **INDUCTOR))
    for i in range(2):
        both.roll(batch(seed=i))
        for run in (both.eager, both.plan):
            run.loss().backward()
    for (name, p), q in zip(both.eager.named_parameters(), both.graph.parameters(), strict=True):
        assert p.grad is not None and p.grad.abs().max() > 0, name
        close(q.grad, p.grad, name)
