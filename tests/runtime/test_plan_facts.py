"""What captures take for granted is compared, and what they cannot do is refused: nothing is wrong without a word."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from imprint import Auto, Graph, Module, Source, Targets, protos
from imprint.errors import ArgumentError, CaptureError, StateError
from imprint.managers import attach
from imprint.rules import Local
from imprint.runtime import passages
from imprint.runtime.way import Way

from references.graph_small import batch
from references.plan_runs import Pair, compiled, small


class Centred(nn.Module):
    """Rows see each other."""

    def forward(self, x: Any) -> Any:
        """Less their mean."""
        return x - x.mean(0)


def pair(manager: bool = True, **options: Any) -> Pair:
    """Two equal graphs, learning at every tick or not at all."""
    graphs = [small(), small()]
    for graph in graphs:
        graph.double()
        if manager:
            attach(graph, "local_ce", update="tick", optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
            torch.manual_seed(3)
            graph.manager.bind(batch())
        else:
            graph.open_edges()
    return Pair(*graphs, compiled(graphs[1], batch(), **options))


CHANGES: dict[str, Callable[[Graph], Any]] = {
    "a bound": lambda g: g["head"].limit_weights("in", max_abs=0.05),
    "a recurrent bound": lambda g: g["head"].constrain("proto_params", max_abs=0.05),
    "the weight of a loss": lambda g: setattr(next(iter(g["head"].objectives)), "weight", 3.0),
    "clipping": lambda g: setattr(g.manager.propagators["head"], "grad_clip", 0.01),
    "another optimizer": lambda g: g.manager.propagators["head"].optimizers.__setitem__(
        0, torch.optim.SGD(g.manager.propagators["head"].params.values(), lr=0.5)
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("on_stale", ["error", "recapture"])
def test_what_is_set_otherwise_is_noticed(what: str, on_stale: str) -> None:
    """After a capture: an error that names it, or the numbers of the engine."""
    both = pair(on_stale=on_stale)
    both.roll(batch())
    for graph in (both.eager, both.graph):
        CHANGES[what](graph)
    assert both.plan.stale() != []
    if on_stale == "error":
        with pytest.raises(StateError, match="no longer so"):
            both.plan.rollout(batch())
        return
    both.roll(batch())
    both.same_weights()


def test_dropout_that_is_set_otherwise_is_noticed() -> None:
    """Of a plain graph too."""
    graph, src, mid = Graph(), Source("x"), Module("mid", protos.MLP([2, 4, 2], dropout=0.5))
    graph.connect(src["out"], mid["in"])
    graph.bind(batch())
    plan = compiled(graph, batch())
    plan.rollout(batch())
    assert plan.stale() == []
    next(m for m in graph.modules() if isinstance(m, nn.Dropout)).p = 0.1
    assert plan.stale() == ["a setting of module 'mid', its objectives or its edges"]


def test_a_mask_that_comes_later_is_noticed() -> None:
    """A buffer that was None before."""
    both = pair(manager=False)
    both.plan.rollout(batch())
    both.graph.all_edges[1].constrain(mask=torch.eye(4), max_abs=None)
    assert any("mask" in why for why in both.plan.stale())


def test_plain_rollouts_are_let_go_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes out of a rollout holds its blocks' states; nothing holds what comes out."""
    ways: weakref.WeakSet[Way] = weakref.WeakSet()

    def way(*args: Any) -> Way:
        made = Way(*args)
        ways.add(made)
        return made

    monkeypatch.setattr(passages, "Way", way)
    both = pair(manager=False)
    for _ in range(4):
        both.plan.rollout(batch())
        both.plan.loss().backward()
        gc.collect()
        assert len(ways) == 1


def test_capturing_between_a_loss_and_its_gradient_changes_neither() -> None:
    """Weights are only read by the blocks that are captured."""
    both = pair(manager=False)
    both.plan.rollout(batch())
    loss = both.plan.loss()
    both.plan.rollout({k: v[:, :3] if v.dim() > 2 else v for k, v in batch().items()})
    loss.backward()
    both.eager.rollout(batch())
    both.eager.loss().backward()
    for (name, p), q in zip(both.eager.named_parameters(), both.graph.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-12, atol=1e-12, msg=name)


def test_second_derivatives_are_refused() -> None:
    """The way back is not differentiable itself."""
    both = pair(manager=False)
    both.plan.rollout(batch())
    params = list(both.graph.parameters())
    found = torch.autograd.grad(both.plan.loss(), params, create_graph=True, allow_unused=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        torch.stack([g.square().sum() for g in found if g is not None]).sum().backward()


def test_gradients_of_inputs_are_refused() -> None:
    """Blocks have gradients for weights alone."""
    both, data = pair(manager=False), batch()
    data["x"] = data["x"].double().requires_grad_()
    with pytest.raises(CaptureError, match="source 'x': its input wants a gradient"):
        both.plan.rollout(data)


def test_autocast_is_refused_and_inference_mode_changes_nothing() -> None:
    """What a plan makes in inference mode can be written afterwards."""
    both = pair()
    with torch.autocast("cpu"), pytest.raises(CaptureError, match="autocast"):
        both.plan.rollout(batch())
    with torch.inference_mode():
        both.plan.rollout(batch())
        both.eager.rollout(batch())
    both.roll(batch())
    both.same_weights()


def test_filling_up_is_refused_where_rows_may_see_each_other() -> None:
    """A module of the user's own, and a stream that would go on."""
    graph, src, mid = Graph(), Source("x"), Module("mid", protos.TorchModule(Centred()))
    head = Module("head", protos.MLP([2, 3]))
    graph.connect(src["out"], mid["in"])
    graph.connect(mid["out"], head["in"])
    head.objectives.ce(target=Targets.batch_key("y"), num_classes=3)
    graph.bind(batch())
    few = {k: v[:2] for k, v in batch().items()}
    with pytest.raises(ArgumentError, match="Centred"):
        compiled(graph, batch(), on_shape="pad").rollout(few)
    both = pair(on_shape="pad")
    both.plan.rollout(batch())
    with pytest.raises(ArgumentError, match="no past to go on from"):
        both.plan.rollout(few, reset=False)


def test_targets_that_come_late_are_refused() -> None:
    """What waits for them would wait between blocks."""
    graph, src = Graph(), Source("x")
    enc, head = Module("enc", protos.GRUStack(hidden=3)), Module("head", protos.MLP([3, 3]))
    graph.connect(src["out"], enc["in"])
    graph.connect(enc["out"], head["in"])
    head.objectives.mse(target=Targets.port_output(enc, "out", shift=1))
    graph.bind(batch())
    attach(graph, Local(None), update="tick")
    graph.manager.bind(batch())
    plan = compiled(graph, batch())
    before = [p.detach().clone() for p in graph.parameters()]
    with pytest.raises(CaptureError, match="group 'head': its target comes 1 ticks late"):
        plan.rollout(batch())
    assert all(torch.equal(p, q) for p, q in zip(before, graph.parameters(), strict=True))


def test_a_number_in_a_closure_is_baked_in() -> None:
    """Nobody can see it; a tensor is read at every tick."""
    plans, numbers = [], {"plain": 1.0, "tensor": torch.ones(())}
    for kind in numbers:
        graph, src, head = Graph(), Source("x"), Module("head", protos.MLP([2, 2]))
        torch.manual_seed(0)
        graph.connect(src["out"], head["in"])
        head.objectives.add(lambda view, kind=kind: view.h.square().mean() * numbers[kind])
        graph.bind(batch())
        attach(graph, Local(None), update="tick", optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
        graph.manager.bind(batch())
        plans.append(compiled(graph, batch()))
        plans[-1].rollout(batch())
    before = [float(plan.loss()) for plan in plans]
    numbers["plain"] = 3.0
    numbers["tensor"].fill_(3.0)
    for plan in plans:
        plan.rollout(batch())
    assert [float(plan.loss()) / was for plan, was in zip(plans, before, strict=True)] == pytest.approx([1.0, 3.0])
    plans[0].refresh()
    plans[0].rollout(batch())
    assert float(plans[0].loss()) / before[0] == pytest.approx(3.0)


def test_groups_that_are_formed_after_compiling_are_no_change() -> None:
    """A manager forms them at its first rollout that learns, or when it is bound."""
    graph = small()
    attach(graph, "local_ce", update="tick")
    plan = compiled(graph, batch())
    graph.manager.bind(batch())
    assert plan.stale() == []
    before = [p.detach().clone() for p in graph.parameters()]
    plan.rollout(batch())
    assert plan.stale() == []
    plan.rollout(batch())
    assert not any(torch.equal(p, q) for p, q in zip(before, graph.parameters(), strict=True))


def test_blocks_captured_later_change_nothing() -> None:
    """The weights of classes are tensors that blocks only read: capturing more blocks leaves them alone."""
    source, head = Source("x"), Module("head", protos.MLP([Auto, 3]))
    graph = Graph()
    graph.connect(source["out"], head["in"])
    weights = torch.tensor([0.5, 1.0, 1.5])
    head.objectives.ce(target=Targets.batch_key("y"), num_classes=3, class_weight=weights)
    graph.bind(batch())
    attach(graph, "local_ce", update="tick")
    plan = compiled(graph, batch(), on_stale="error")
    for ticks in (5, 7, 9):
        plan.rollout(batch(ticks=ticks))
    assert plan.stale() == []
    weights[0] = 2.0
    assert plan.stale() != []
