"""One rollout, two halves of it, a stream of single ticks, rows that start anew: the same numbers; and memory."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import imprint
from imprint import Graph, Module, Rate, Source, Targets, protos
from imprint.credit import Instant, Unrolled, Window
from imprint.managers import attach
from imprint.rules import Local

from references.graph_draws import plans
from references.graph_learning import Momentum, NaiveLearning
from references.graph_naive import NaiveGraph
from references.graph_plans import Plan, batch_of, bound

some = settings(
    max_examples=15, derandomize=True, deadline=None, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)  # fmt: skip


def quiet(plan: Plan) -> tuple[Graph, dict[str, Tensor]]:
    """The graph of a plan without objectives, and what its sources read."""
    plan = replace(plan, ragged=False, modules=tuple(replace(m, terms=()) for m in plan.modules))
    batch = {name: x for name, x in batch_of(plan).items() if name in plan.sources}
    return bound(plan, batch), batch


def ports(graph: Graph) -> list[str]:
    """Keys of all output ports."""
    return [key for key in graph.sizes if ":" not in key]


@some
@given(plans(), st.data())
def test_a_rollout_in_two_halves(plan: Plan, data: st.DataObject) -> None:
    """``reset=False`` goes on where the last rollout ended: delays, resets, rates and states."""
    graph, batch = quiet(plan)
    cut = data.draw(st.integers(1, plan.ticks - 1))
    whole = graph.rollout(batch)
    want = {key: whole[key] for key in ports(graph)}
    first = graph.rollout({k: x[:, :cut] for k, x in batch.items()})
    head = {key: first[key] for key in want}
    second = graph.rollout({k: x[:, cut:] for k, x in batch.items()}, reset=False)
    for key, value in want.items():
        got = torch.cat([head[key], second[key]], 1)
        torch.testing.assert_close(got, value, rtol=0, atol=1e-12)
    again = graph.rollout({k: x[:, cut:] for k, x in batch.items()})
    assert any(
        again[key].shape != second[key].shape or not torch.equal(again[key], second[key]) for key in want
    ) or all(not m.proto.recurrent for m in graph.modules_by_name.values() if m.proto is not None), (
        "a rollout that starts anew is another one"
    )


@some
@given(plans())
def test_a_stream_of_ticks(plan: Plan) -> None:
    """``graph.step`` emits what the rollout of all its ticks would."""
    graph, batch = quiet(plan)
    whole = graph.rollout(batch)
    want = {key: whole[key] for key in ports(graph)}
    graph.reset()
    got: dict[str, list[Tensor]] = {key: [] for key in want}
    for t in range(plan.ticks):
        out = graph.step({k: x[:, t] for k, x in batch.items()})
        for key, made in got.items():
            made.append(out[key])
    for key, value in want.items():
        torch.testing.assert_close(torch.cat(got[key], 1), value, rtol=0, atol=1e-12)


@some
@given(plans(), st.data())
def test_rows_that_start_anew(plan: Plan, data: st.DataObject) -> None:
    """After ``graph.reset(rows=…)`` those rows know nothing of before, the others all of it."""
    graph, batch = quiet(plan)
    naive = NaiveGraph(graph)
    rows = torch.tensor(data.draw(st.lists(st.booleans(), min_size=plan.rows, max_size=plan.rows)))
    graph.rollout(batch)
    naive.rollout(batch)
    graph.reset(rows)
    naive.forget(rows)
    out, world = graph.rollout(batch, reset=False), naive.rollout(batch, reset=False)
    for key in ports(graph):
        want = [v for t, v in world.emitted.get(key, {}).items() if t in world.ticks]
        if want:
            torch.testing.assert_close(out[key], torch.stack(want, 1), rtol=0, atol=1e-12)


def three(cycle: bool = False, fn: Any = None, stop_grad: bool = True) -> Graph:
    """x → enc → mid → head, each with an objective of its own; head also back to enc, a tick later, in a `cycle`."""
    torch.manual_seed(3)
    graph = Graph(stop_grad=stop_grad)
    src = Source("x")
    enc = Module("enc", protos.GRUStack(6, layers=2), schedule=Rate(inner_steps=2))
    mid = Module("mid", protos.LSTMStack(5, reset_every=4))
    head = Module("head", protos.MLP([5, 3]), schedule=Rate(emit_every=2))
    graph.connect(src["out"], enc["in"])
    graph.connect(enc["out"], mid["in"])
    graph.connect(mid["out"], head["in"])
    if cycle:
        enc.ports.inputs["in"] = imprint.InPort(4)
        graph.connect(head["out"], enc["in"], delay=1)
    enc.objectives.mse(target=Targets.batch_key("enc"))
    mid.objectives.mse(target=Targets.batch_key("mid"))
    mid.objectives.activity_l2(weight=0.1)
    head.objectives.ce(target=Targets.batch_key("y"), num_classes=3)
    if fn is not None:
        head.objectives.add(fn)
    return graph


def data(ticks: int, rows: int = 3, seed: int = 0) -> dict[str, Tensor]:
    """For :func:`three`: one target a row."""
    draw = torch.Generator().manual_seed(seed)
    make = lambda *shape: torch.randn(*shape, generator=draw, dtype=torch.float64)
    y = torch.randint(0, 3, (rows,), generator=draw)
    return {"x": make(rows, ticks, 4), "enc": make(rows, 6), "mid": make(rows, 5), "y": y}


def trained(graph: Graph, credit: Any, update: Any) -> None:
    """Attach with an optimizer that every number shows in."""
    attach(graph, Local(fill=None), credit=credit, update=update,
           optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))  # fmt: skip


def weights(graph: Graph) -> dict[str, Tensor]:
    """A copy of all."""
    return {name: p.detach().clone() for name, p in graph.named_parameters()}


@pytest.mark.parametrize("cycle", [False, True])
def test_a_stream_learns_as_a_rollout_does(cycle: bool) -> None:
    """With ``update="tick"``: targets of a tick are there when it is."""
    batch = data(9)
    whole, stream = three(cycle), three(cycle)
    for graph in (whole, stream):
        torch.manual_seed(1)
        graph.bind(batch)
        trained(graph, Instant(), "tick")
    before = weights(whole)
    out = whole.rollout(batch)
    emitted = [stream.step({**batch, "x": batch["x"][:, t]})["head"] for t in range(9)]
    torch.testing.assert_close(torch.cat(emitted, 1), out["head"], rtol=0, atol=1e-12)
    after, streamed = weights(whole), weights(stream)
    for name, want in after.items():
        assert not torch.equal(want, before[name]), name
        torch.testing.assert_close(streamed[name], want, rtol=0, atol=1e-12, msg=name)


def predictor(rows: int = 2) -> tuple[Graph, dict[str, Tensor]]:
    """A recurrent module that predicts the next input."""
    graph = Graph()
    src, m = Source("x"), Module("m", protos.GRUStack(3, layers=2))
    graph.connect(src["out"], m["in"])
    m.objectives.mse(target=Targets.shifted_input(src, 1))
    x = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(6), dtype=torch.float64)[-rows:]
    torch.manual_seed(2)
    return graph.bind({"x": x}), {"x": x}


def test_a_stream_waits_for_its_targets() -> None:
    """What comes a tick later is learned a tick later, from the state and input that were, with the weights of then."""
    graph, batch = predictor()
    naive = NaiveLearning(predictor()[0], 1, "tick", Momentum(lr=0.1))
    naive.groups[0].lag = 1
    trained(graph, Instant(), "tick")
    naive.rollout(batch)
    emitted = [graph.step({"x": batch["x"][:, t]})["m"] for t in range(6)]
    want = naive.naive.world.emitted["m.out"]
    torch.testing.assert_close(torch.cat(emitted, 1), torch.stack(list(want.values()), 1), rtol=0, atol=1e-12)
    at_once = dict(predictor()[0].named_parameters())
    theirs = dict(naive.naive.graph.named_parameters())
    for name, p in graph.named_parameters():
        torch.testing.assert_close(p.detach(), theirs[name].detach(), rtol=0, atol=1e-12, msg=name)
        assert not torch.equal(p, at_once[name])


def test_rows_that_start_anew_wait_for_nothing() -> None:
    """The others learn what they were waiting for, and only they do."""
    both, batch = predictor()
    lonely, alone = predictor(rows=1)
    nobody, _ = predictor()
    start = weights(both)
    for graph, x in ((both, batch["x"]), (lonely, alone["x"]), (nobody, batch["x"])):
        trained(graph, Instant(), "tick")
        graph.step({"x": x[:, 0]})
        if graph is not lonely:
            graph.reset(rows=torch.tensor([True, graph is nobody]))
        graph.step({"x": x[:, 1]})
    want, rested = weights(lonely), weights(nobody)
    for name, got in weights(both).items():
        torch.testing.assert_close(got, want[name], rtol=0, atol=1e-12, msg=name)
        assert "weight_hh" in name or not torch.equal(got, start[name]), "states of the first tick are zero"
        assert torch.equal(rested[name], start[name])


@pytest.mark.parametrize(("credit", "update"), [(Instant(), "tick"), (Window(4), 4), (Unrolled(), "rollout")])
@pytest.mark.parametrize("opened", [False, True])
def test_learning_goes_on_where_inference_was(credit: Any, update: Any, opened: bool) -> None:
    """A rollout in eval mode, or without gradient, warms states up for one that learns."""
    batch = data(8)
    cold, warm, slow = (
        three(True, stop_grad=not opened),
        three(True, stop_grad=not opened),
        three(True, stop_grad=not opened),
    )
    found = []
    for graph in (cold, warm, slow):
        torch.manual_seed(1)
        graph.bind(batch)
        trained(graph, credit, update)
        if graph is not cold:
            with torch.no_grad() if graph is slow else imprint.no_learning():
                graph.rollout({**batch, "x": batch["x"].flip(1)})
        found.append((graph.rollout(batch, reset=False)["head"], weights(graph)))
    assert not torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[1][0], found[2][0], rtol=0, atol=1e-12)
    naive = NaiveGraph(three(True, stop_grad=not opened))
    torch.manual_seed(1)
    naive = NaiveGraph(naive.graph.bind(batch))
    naive.rollout({**batch, "x": batch["x"].flip(1)})
    world = naive.rollout(batch, reset=False)
    if update == "tick":
        first = next(v for t, v in world.emitted["head.out"].items() if t >= 8)
        assert (found[1][0][:, 0] - first).abs().max() < 0.1, "emissions begin where the states were"
    else:
        ticks = [t for t in world.ticks if t in world.emitted["head.out"]][: 2 if update == 4 else 4]
        want = torch.stack([world.emitted["head.out"][t] for t in ticks], 1)
        torch.testing.assert_close(found[1][0][:, : len(ticks)], want, rtol=0, atol=1e-12)


# -- memory


class Saved:
    """A tensor that autograd keeps; counts those that live."""

    alive = 0

    def __init__(self, value: Tensor) -> None:
        self.value = value
        Saved.alive += value.numel() * value.element_size()

    def __del__(self) -> None:
        Saved.alive -= self.value.numel() * self.value.element_size()


def live_bytes() -> int:
    """Of all tensors that Python knows, each storage once."""
    found = {}
    for thing in gc.get_objects():
        if type(thing) in (Tensor, torch.nn.Parameter):
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def peak(ticks: int, credit: Any, update: Any, cycle: bool) -> int:
    """Most bytes in tensors and in what autograd keeps, at two ticks of a rollout that learns."""
    most = 0

    def watch(view: Any) -> Tensor:
        nonlocal most
        if view.tick in (ticks - 1, ticks - 27):
            gc.collect()
            most = max(most, live_bytes() + Saved.alive)
        return view.h.sum() * 0

    graph, batch = three(cycle, watch), data(ticks)
    graph.bind(batch)
    trained(graph, credit, update)
    gc.collect()
    before = live_bytes()
    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.value):
        graph.rollout(batch, keep="last")
    return most - before


@pytest.mark.parametrize(("update", "cycle"), [("tick", False), (5, True), ("rollout", False)])
def test_memory_does_not_grow_with_time(update: Any, cycle: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under Instant a rollout of 200 ticks holds what one of 40 does; under Unrolled it does not."""
    monkeypatch.setattr("imprint.graph.learning.CHUNK", 10)
    short, long = peak(40, Instant(), update, cycle), peak(200, Instant(), update, cycle)
    assert 0 < long <= short + 160 * 3 * 4, (short, long)  # of each row and tick a few flags and the tick's number


def test_memory_of_unrolled_grows() -> None:
    """The measure sees what is kept."""
    assert peak(100, Unrolled(), "rollout", False) > 1.8 * peak(50, Unrolled(), "rollout", False)
