"""Captured ticks on a CUDA device: ``pytest -m gpu``."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from imprint import Graph, Module, Rate, Source, Targets, protos, record
from imprint.credit import ETrace, Instant, Window
from imprint.managers import attach

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CREDITS: list[tuple[Any, Any]] = [
    (Instant(), "tick"), (Instant(), 4), (Window(4), 4), (ETrace("d_rtrl"), "tick"),
]  # fmt: skip


def world(credit: Any = None, update: Any = "tick", dtype: torch.dtype = torch.float32) -> tuple[Graph, Any]:
    """Two recurrent modules of different paces and a readout."""
    torch.manual_seed(0)
    graph, before = Graph(), Source("x")
    for i in range(2):
        module = Module(f"m{i}", protos.GRUStack(hidden=16), schedule=Rate(emit_every=i + 1))
        graph.connect(before["out"], module["in"])
        before = module
    head = Module("head", protos.MLP([16, 3]))
    graph.connect(before["out"], head["in"])
    head.objectives.ce(target=Targets.batch_key("y"), num_classes=3)
    batch = {"x": torch.randn(4, 20, 8, dtype=dtype, device="cuda"), "y": torch.tensor([0, 1, 2, 0], device="cuda")}
    graph.bind(batch)
    if credit is not None:
        attach(graph, "local_ce", credit=credit, update=update, num_classes=3)
        graph.manager.bind(batch)
    return graph, batch


def plan_of(graph: Graph, batch: Any, **options: Any) -> Any:
    """Recorded without learning."""
    with record(graph) as trace, torch.no_grad():
        graph.rollout(batch)
    return trace.compile(**options)


def largest(a: Graph, b: Graph) -> float:
    """Difference of weights."""
    return max(float((p - q).detach().abs().max()) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize(("credit", "update"), CREDITS)
def test_replays_of_single_calls_are_those_calls(credit: Any, update: Any) -> None:
    """Bit for bit the same blocks, replayed or called one after the other."""
    (a, batch), (b, _) = world(credit, update), world(credit, update)
    called = plan_of(a, batch, backend="inductor", codegen="eager")
    replayed = plan_of(b, batch, backend="cuda_graph", codegen="eager")
    for _ in range(3):
        assert torch.equal(called.rollout(batch)["head"], replayed.rollout(batch)["head"])
    assert largest(a, b) == 0


@pytest.mark.parametrize(("credit", "update"), CREDITS)
def test_compiled_replays_agree_with_the_engine(credit: Any, update: Any) -> None:
    """In double precision."""
    (a, batch), (b, _) = world(credit, update, torch.float64), world(credit, update, torch.float64)
    plan = plan_of(b, batch, backend="cuda_graph")
    for _ in range(3):
        torch.testing.assert_close(plan.rollout(batch)["head"], a.rollout(batch)["head"], rtol=1e-9, atol=1e-9)
    assert largest(a, b) < 1e-8


def test_gradients_of_a_plain_graph() -> None:
    """Blocks forth and back."""
    (a, batch), (b, _) = world(dtype=torch.float64), world(dtype=torch.float64)
    for graph in (a, b):
        graph.open_edges()
    plan = plan_of(b, batch, backend="cuda_graph")
    a.rollout(batch)
    plan.rollout(batch)
    a.loss().backward()
    plan.loss().backward()
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-9, atol=1e-9, msg=name)


def test_nothing_moves() -> None:
    """Weights are where they were, whatever was replayed."""
    graph, batch = world(Instant(), "tick")
    plan = plan_of(graph, batch, backend="cuda_graph")
    before = [p.data_ptr() for p in graph.parameters()]
    for _ in range(3):
        plan.rollout(batch, keep="last")
    assert [p.data_ptr() for p in graph.parameters()] == before
