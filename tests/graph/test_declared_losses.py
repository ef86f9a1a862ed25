"""Declared losses where rows do not count, classes weigh differently, or there is nothing to compare."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imprint import Graph, InPort, Module, Ports, Rate, Source, Targets, protos
from imprint.errors import ShapeError
from imprint.objectives.declared import directions


def one(rate: Rate | None = None, proto: Any = None) -> tuple[Graph, Module]:
    """A source and a module behind it."""
    torch.manual_seed(0)
    graph = Graph()
    src, m = Source("x"), Module("m", proto or protos.GRUStack(3), schedule=rate)
    graph.connect(src["out"], m["in"])
    return graph, m


def draw(*shape: int, seed: int = 0) -> Tensor:
    """In float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_probabilities_of_rows_that_count() -> None:
    """Label smoothing and class weights hold for soft labels, with and without lengths."""
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    y = draw(4, 5, 3, seed=1).softmax(-1)
    for length in (None, torch.tensor([5, 2, 3, 1])):
        graph, m = one()
        m.objectives.ce(target=Targets.batch_key("y"), num_classes=3, label_smoothing=0.2, class_weight=weight)
        batch = {"x": draw(4, 5, 2), "y": y} | ({} if length is None else {"length": length})
        h = graph.rollout(batch)["m"]
        counts = torch.ones(4, 5, dtype=torch.bool) if length is None else torch.arange(5) < length[:, None]
        want = F.cross_entropy(h[counts], y[counts], weight=weight, label_smoothing=0.2, reduction="none").mean()
        plain = F.cross_entropy(h[counts], y[counts])
        torch.testing.assert_close(graph.loss(), want, rtol=0, atol=1e-12)
        assert abs(float(want.detach() - plain.detach())) > 1e-3


def test_class_weights_of_another_number_of_units_are_refused() -> None:
    """Rather than failing inside torch."""
    graph, m = one()
    m.objectives.ce(target=Targets.batch_key("y"), num_classes=2, class_weight=torch.ones(2))
    with pytest.raises(ShapeError, match="class_weight= has no number for every unit"):
        graph.bind({"x": draw(2, 3, 2), "y": torch.tensor([0, 1])})


def test_silent_neurons_have_no_direction() -> None:
    """A contrast with an output of zeros sends no gradient, rather than one of 1/eps."""
    rows = torch.tensor([[0.0, 0.0], [3.0, -4.0]], dtype=torch.float64, requires_grad=True)
    want = torch.tensor([[0.0, 0.0], [0.6, -0.8]], dtype=torch.float64)
    made = directions(rows)
    torch.testing.assert_close(made.detach(), want, rtol=0, atol=1e-15)
    (grad,) = torch.autograd.grad((made * draw(2, 2)).sum(), rows)
    (normal,) = torch.autograd.grad((F.normalize(rows) * draw(2, 2)).sum(), rows)
    assert torch.equal(grad[0], torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(grad[1], normal[1], rtol=0, atol=1e-15)
    assert normal[0].abs().max() > 1e9
    graph, m = one(proto=protos.LIF(3, threshold=100.0))
    m.objectives.contrastive(target=Targets.batch_key("y"))
    graph.rollout({"x": draw(4, 5, 2), "y": draw(4, 3)})
    graph.loss().backward()
    assert all(p.grad is None or torch.equal(p.grad, torch.zeros_like(p)) for p in graph.parameters())


def test_a_regulariser_without_an_emission_is_zero() -> None:
    """Not the mean over nothing."""
    graph, m = one(Rate(emit_every=9))
    m.objectives.activity_l2(weight=1.0)
    graph.rollout({"x": draw(2, 5, 2)})
    assert float(graph.losses()["m.activity_l2"]) == 0


def test_an_edge_that_concatenates_twice_the_same_port() -> None:
    """Each edge brings its own width."""
    graph = Graph()
    src, m = Source("x"), Module("m", protos.GRUStack(3), Ports(InPort(combine="concat")))
    graph.connect(src["out"], m["in"])
    graph.connect(src["out"], m["in"], delay=1)
    graph.rollout({"x": draw(2, 5, 2)})
    assert graph.sizes["m.in:drive"] == 4


def test_gradient_stays_in_its_own_rollout() -> None:
    """Truncated backpropagation by hand: a rollout that goes on starts from constants."""
    graph, m = one()
    m.objectives.mse(target=Targets.batch_key("y"))
    batch = {"x": draw(2, 4, 2), "y": draw(2, 3)}
    graph.rollout(batch)
    first = graph["m"].state.recurrent.detach()
    graph.loss().backward()
    graph.zero_grad()
    graph.rollout(batch, reset=False)
    graph.loss().backward()
    got = {name: p.grad.clone() for name, p in graph.named_parameters()}
    graph.zero_grad()
    drive = graph["m"].incoming[0].proj(batch["x"])
    _, (h,) = graph["m"].proto.scan(drive.transpose(0, 1), first)
    (h - batch["y"]).square().mean().backward()
    for name, p in graph.named_parameters():
        torch.testing.assert_close(got[name], p.grad, rtol=0, atol=1e-12)
