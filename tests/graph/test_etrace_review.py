"""Traces after failures in the middle of a stream, and what a refusal says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from imprint import Graph, Module, Source, Targets, protos
from imprint.credit import ETrace, Instant
from imprint.errors import NonFiniteError, StructureError

from references.graph_etrace_worlds import CLASSES, WORLDS, batch, farthest, taught, weights


class Fails:
    """A loss that is not finite, or an error, at a tick."""

    def __init__(self, infinite: bool) -> None:
        self.infinite, self.at = infinite, -1

    def __call__(self, view: Any) -> Tensor:
        loss = view.h.square().mean()
        if view.tick != self.at:
            return loss
        if not self.infinite:
            raise KeyboardInterrupt
        return loss / 0


def stream(
    credit: Any, fails: int | None, ticks: int = 1, update: Any = 10, infinite: bool = True
) -> dict[str, Tensor]:
    """Weights after ten ticks; the fourth, and `ticks` in all, were tried before and failed at tick `fails`."""
    graph, at = WORLDS["gru"](), Fails(infinite)
    graph["head"].objectives.add(at)
    taught(graph, credit, update, lambda p: torch.optim.SGD(p, lr=0.1))
    data = batch(3)
    part = lambda a, b: {"x": data["x"][:, a:b], "y": data["y"]}
    graph.rollout(part(0, 3))
    if fails is not None:
        at.at = fails
        with pytest.raises(NonFiniteError if infinite else KeyboardInterrupt):
            graph.rollout(part(3, 3 + ticks), reset=False)
        at.at = -1
    graph.rollout(part(3, 7), reset=False)
    graph.rollout(part(0, 3), reset=False)
    return weights(graph)


@pytest.mark.parametrize("credit", [ETrace(block=1), ETrace(block=4), ETrace(block=16), Instant()], ids=repr)
def test_a_tick_whose_loss_is_not_finite_leaves_nothing_behind(credit: Any) -> None:
    for update in (10, 4, "tick"):
        want = stream(credit, None, update=update)
        assert all(torch.isfinite(v).all() for v in want.values())
        assert farthest(stream(credit, 3, update=update), want) == 0
    assert farthest(stream(credit, None), want) > 1e-4


@pytest.mark.parametrize("infinite", [True, False], ids=["infinite", "interrupted"])
@pytest.mark.parametrize(
    "credit", [ETrace(block=1), ETrace(block=2), ETrace("es_d_rtrl"), ETrace("hybrid", block=2), Instant()], ids=repr
)
def test_ticks_before_a_failure_in_the_same_rollout_leave_nothing_behind(credit: Any, infinite: bool) -> None:
    """What had been gathered before the rollout stays: gradients, traces, and ticks that wait to be taken in."""
    assert farthest(stream(credit, 5, 4, infinite=infinite), stream(credit, None)) == 0


def before(proto: Any) -> Graph:
    """x -> low, without states -> enc -> head, in one unit."""
    torch.manual_seed(0)
    graph, src = Graph(), Source("x")
    low, enc, head = (Module(*m) for m in (("low", proto), ("enc", protos.GRUStack(hidden=4)),
                                            ("head", protos.MLP([4, CLASSES]))))  # fmt: skip
    graph.connect(src["out"], low["in"])
    graph.connect(low["out"], enc["in"], stop_grad=False)
    graph.connect(enc["out"], head["in"], stop_grad=False)
    head.objectives.ce(target=Targets.batch_key("y"), num_classes=CLASSES)
    return graph.bind(batch()).double()


@pytest.mark.parametrize("kind", [{"norm": "batch"}, {"dropout": 0.5}], ids=["norm", "dropout"])
def test_a_refusal_names_what_runs_before_the_recurrent_module(kind: Any) -> None:
    """It is not the proto of `enc` that has to be another."""
    graph = before(protos.MLP([3, 5, 4], **kind))
    was = weights(graph)
    taught(graph, ETrace(), "tick")
    with pytest.raises(StructureError, match=r"module 'enc' under ETrace(.|\n)*'low', which runs before it") as caught:
        graph.rollout(batch())
    assert "in eval mode" in str(caught.value)
    assert farthest(was, weights(graph)) == 0
    graph["low"].proto.eval()
    graph.rollout(batch())
    assert farthest(was, weights(graph)) > 1e-4


def test_weights_of_an_objective_stay_parameters() -> None:
    """They are in the group under two paths, and proving things of a tick lends them out under one."""
    torch.manual_seed(0)
    graph, source = Graph(), Source("x")
    first = Module("first", protos.GRUStack(hidden=3))
    second = Module("second", protos.MLP([3, 4]))
    graph.connect(source["out"], first["in"])
    graph.connect(first["out"], second["in"]).set_stop_grad(False)
    second.objectives.contrastive(target=Targets.port_drive(first, "in"))
    rows = {"x": torch.randn(4, 5, 2)}
    graph.bind(rows)
    before = {name: (p, p.detach().clone()) for name, p in graph.named_parameters()}
    taught(graph, ETrace(), "tick").step(rows)
    for name, p in graph.named_parameters():
        assert isinstance(p, torch.nn.Parameter) and p is before[name][0], name
        assert not torch.equal(p, before[name][1]), name
