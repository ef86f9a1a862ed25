"""A recording says what happened; a plan does it again, with the same numbers."""

from __future__ import annotations

import copy
import gc
import math
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import imprint
from imprint.errors import ArgumentError, StateError, UnknownNameError
from imprint.graph.observer import Observer
from imprint.runtime import (
    Backend,
    Event,
    Options,
    Plan,
    PortOp,
    Read,
    Recording,
    backend,
    record,
    register_backend,
)

pytestmark = pytest.mark.filterwarnings("ignore:graph.loss")  # of modules that learn nothing here
Auto, Module, Ports, Rate, protos = imprint.Auto, imprint.Module, imprint.Ports, imprint.Rate, imprint.protos


def multi_rate(delay: int = 0) -> tuple[Any, dict[str, Tensor]]:
    """x -> fast (every tick), slow (every second) -> agg (every fourth) -> readout (follows agg)."""
    graph, src = imprint.Graph(), imprint.Source("x")
    fast = Module("fast", protos.GRUStack(hidden=4))
    slow = Module("slow", protos.GRUStack(hidden=4, layers=2), schedule=Rate(inner_steps=3, emit_every=2))
    group = imprint.InPortGroup(deep=imprint.InPort(size=4), wide=imprint.InPort(size=4))
    agg = Module("agg", protos.Aggregator("concat→linear", out_dim=5), Ports(in_=group), Rate(emit_every=4))
    readout = Module("readout", protos.MLP([5, 3]), schedule=Rate.follow("agg"))
    graph.add(src, fast, slow, agg, readout)
    graph.connect(src["out"], fast["in"], name="xf")
    graph.connect(src["out"], slow["in"], name="xs")
    graph.connect(fast["out"], agg["in.deep"], name="fa", delay=delay)
    graph.connect(slow["out"], agg["in.wide"], name="sa")
    graph.connect(agg["out"], readout["in"], name="ar")
    readout.objectives.ce(target=imprint.Targets.batch_key("y"), num_classes=3)
    return graph, batch_of(2, 8)


def batch_of(rows: int, ticks: int) -> dict[str, Tensor]:
    return {"x": torch.randn(rows, ticks, 6), "y": torch.randint(0, 3, (rows, ticks // 4))}


def by_hand(n: int, offset: int, t: int) -> bool:
    return (t + 1 - offset) % n == 0


def test_events_are_what_the_rates_say() -> None:
    graph, batch = multi_rate(delay=1)
    with record(graph) as recording:
        graph.rollout(batch)
    events = {(e.tick, e.module): e for e in recording.events}
    assert len(events) == len(recording.events) == 8 * 5  # nobody rests
    assert [e.module for e in recording.events[:5]] == ["x", "fast", "slow", "agg", "readout"]
    every = {"x": 1, "fast": 1, "slow": 2, "agg": 4, "readout": 4}
    for (t, name), event in events.items():
        assert bool(event.emitted) == ((t + 1) % every[name] == 0) and event.rows == 2
    assert {n: sum(bool(e.emitted) for e in recording.events if e.module == n) for n in every} == {
        "x": 8, "fast": 8, "slow": 4, "agg": 2, "readout": 2,
    }  # fmt: skip
    assert {n: events[0, n].inner_steps for n in every} == {"x": 0, "fast": 1, "slow": 3, "agg": 0, "readout": 0}
    assert events[3, "agg"].inner_steps == 1  # without memory, it computes where it emits
    assert events[3, "agg"] == Event(
        3, "agg", 1, False, 2,
        (Read("fa", "fast.out", 2, (2, 4)), Read("sa", "slow.out", 3, (2, 4))), {"out": (2, 5)},
        (PortOp("linear", ("fa",), "in.deep", (2, 4)), PortOp("linear", ("sa",), "in.wide", (2, 4))), None,
    )  # fmt: skip
    assert events[0, "agg"].reads == (Read("fa", "fast.out", None, (2, 4)), Read("sa", "slow.out", None, (2, 4)))
    assert events[2, "readout"].reads == (Read("ar", "agg.out", None, (2, 5)),)
    assert events[6, "readout"].reads == (Read("ar", "agg.out", 3, (2, 5)),)


rates = st.tuples(st.integers(1, 4), st.integers(0, 3), st.booleans(), st.integers(1, 2))


class Watch(Observer):
    """Counts by other means: how often each port really emitted, as the engine kept it."""

    def __init__(self) -> None:
        self.emitted: dict[str, int] = {}

    def rolled(self, run: Any) -> None:
        self.emitted = {key: run.recorded(key).shape[1] for key in run.kept}


@given(st.lists(rates, min_size=1, max_size=4), st.integers(1, 11), st.integers(0, 2), st.booleans())
def test_the_timetable_is_what_the_engine_does(paces: list[Any], ticks: int, delay: int, ragged: bool) -> None:
    torch.manual_seed(0)
    graph, before = imprint.Graph(), imprint.Source("x")
    for i, (every, offset, rests, inner) in enumerate(paces):
        module = Module(
            f"m{i}", protos.GRUStack(hidden=2, reset_every=3), schedule=Rate(inner, every, None, rests, offset)
        )
        graph.connect(before["out"], module["in"], delay=delay)
        before = module
    watch = Watch()
    graph.observers.append(watch)
    batch: dict[str, Any] = {"x": torch.randn(3, ticks, 2)}
    if ragged:
        batch["length"] = torch.tensor([1, ticks, max(1, ticks - 2)])
    with record(graph) as recording, torch.no_grad():
        graph.rollout(batch)
    table = recording.schedule
    assert table.period == math.lcm(*(p[0] for p in paces))
    for i, (every, offset, rests, inner) in enumerate(paces):
        name = f"m{i}"
        mine = {e.tick: e for e in recording.events if e.module == name}
        emissions = [t for t in range(ticks) if by_hand(every, offset, t)]
        steps = emissions if rests else list(range(ticks))
        assert list(mine) == steps and [t for t, e in mine.items() if e.emitted] == emissions
        assert watch.emitted[f"{name}.out"] == len(emissions) and watch.emitted[f"{name}.in:drive"] == len(steps)
        assert [t for j, t in enumerate(steps) if graph[name].proto.resets_at(j)] == [t for t in mine if mine[t].reset]
        for t, event in mine.items():
            assert event.inner_steps == inner
            source = (1, 0) if i == 0 else paces[i - 1][:2]
            held = [s for s in range(max(t - delay + 1, 0)) if by_hand(*source, s)]
            assert event.reads[0].tick == (held[-1] if held else None)
            if ragged:
                assert event.rows == sum(t < n for n in batch["length"].tolist())
    assert {table.at(t) for t in range(table.period)} == {table.at(t) for t in range(table.period, 2 * table.period)}


def test_drives_sources_and_continued_rollouts() -> None:
    graph, src = imprint.Graph(), imprint.Source("x")
    enc = Module("enc", protos.GRUStack(hidden=3), schedule=Rate(emit_every=3, step_when_emits=True))
    err = Module("err", protos.Elementwise("sub→abs"), Ports(in_=imprint.InPortGroup(a=Auto, b=Auto)))
    graph.connect(src["out"], enc["in"], name="in", projection="identity")
    graph.connect(enc["in"].drive, err["in.a"], name="drive")
    graph.connect(src["out"], err["in.b"], name="raw")
    with record(graph) as recording, torch.no_grad():
        graph.rollout({"x": torch.randn(2, 4, 3)})
        graph.rollout({"x": torch.randn(2, 2, 3)}, reset=False)
        graph.step({"x": torch.randn(2, 3)})
    err_reads = [e.reads[0].tick for e in recording.events if e.module == "err"]
    assert err_reads == [None, None, 2, 2, 2, 5, 5]  # the drive of a module that rests is that of its last step
    assert [e.tick for e in recording.events if e.module == "x"] == list(range(7))
    assert [(r.first, r.ticks) for r in recording.rollouts] == [(0, 4), (4, 2), (6, 1)]
    assert "3 rollouts, 7 ticks, 2 rows" in str(recording)


def test_the_table_shows_the_period() -> None:
    graph, batch = multi_rate()
    with record(graph) as recording:
        assert str(recording) == "recording: nothing was rolled out"
        graph.rollout(batch)
    lines = str(recording).splitlines()
    assert lines[0].startswith("recording: 1 rollout, 8 ticks, 2 rows; the schedule repeats after 4 ticks")
    marks = {line.split()[0]: line.split()[1] for line in lines[3:] if line.split()[0] in graph.order}
    assert marks == {"x": "●●●●", "fast": "●●●●", "slow": "·●·●", "agg": "···●", "readout": "···●"}
    assert repr(recording.schedule).splitlines()[2] == "slow     ·●·●"
    graph, batch = multi_rate()
    graph["fast"].schedule = Rate(emit_every=40, step_when_emits=True)
    with record(graph) as recording, torch.no_grad():
        graph.rollout(batch)
    assert recording.schedule.line("fast") == " " * 32 + "…" and recording.schedule.period == 40


def test_recording_keeps_no_tensor_and_changes_no_number() -> None:
    graph, batch = multi_rate()
    graph.bind(batch)
    plain = graph.rollout(batch)["readout"]
    with record(graph) as recording:
        out = graph.rollout(batch)["readout"]
    assert torch.equal(plain, out) and not graph.observers
    held = weakref.ref(graph.run)
    graph.reset()
    del out
    for module in graph.modules_by_name.values():
        module.state.show(None, None, ())
    graph._dues = []
    gc.collect()
    assert held() is None and len(recording.events) == 40


def test_an_error_inside_the_block_ends_the_recording() -> None:
    graph, batch = multi_rate()
    with pytest.raises(imprint.errors.DataError), record(graph):
        graph.rollout({"z": batch["x"]})
    assert not graph.observers
    with pytest.raises(ArgumentError, match="not a graph"), record(torch.nn.Linear(2, 2)):  # type: ignore[arg-type]
        pass


def test_a_graph_is_recorded_by_one_block_at_a_time() -> None:
    graph, batch = multi_rate()
    other, _ = multi_rate()
    with record(graph) as outer:
        with pytest.raises(StateError, match="recorded already") as error, record(graph):
            pass
        assert "one recording for both" in str(error.value)
        graph.rollout(batch)  # the open one goes on
        with record(other) as beside, record(copy.deepcopy(graph)) as copied:
            other.rollout(batch)
    assert len(outer.rollouts) == len(beside.rollouts) == 1 and not copied.rollouts and not graph.observers
    with record(graph) as again:
        graph.rollout(batch)
        graph.rollout(batch)
    assert len(again.rollouts) == 2 and len(outer.rollouts) == 1


# -- plans


def test_a_plan_is_bitwise_the_graph() -> None:
    graph, batch = multi_rate()
    with record(graph) as trace:
        graph.rollout(batch)
    plan = trace.compile(backend="eager", fuse_projections=True, fuse_port_sums=True)
    assert isinstance(plan, Plan)
    for rows, ticks in ((2, 8), (5, 12), (1, 4)):  # other rows and ticks than those recorded
        other = batch_of(rows, ticks)
        expected = graph.rollout(other)
        grads = torch.autograd.grad(graph.loss(), list(graph.parameters()), allow_unused=True)
        losses = graph.losses()
        out = plan.rollout(other)
        assert all(torch.equal(expected[name], out[name]) for name in graph.order)
        assert plan.losses().keys() == losses.keys() and torch.equal(plan.loss(), sum(losses.values()))
        again = torch.autograd.grad(plan.loss(), list(graph.parameters()), allow_unused=True)
        assert all((a is None and b is None) or torch.equal(a, b) for a, b in zip(grads, again, strict=True))
        assert any(g is not None and g.abs().sum() > 0 for g in again)
    first = plan.rollout(batch)["readout"]
    assert not torch.equal(first, plan.rollout(batch_of(2, 8))["readout"])
    assert torch.equal(first, plan.rollout(batch, keep="emissions")["readout"])
    whole = plan.rollout(batch, reset=False)["readout"]
    assert not torch.equal(whole, first)  # it went on from the last state


def test_a_plan_trains() -> None:
    graph, batch = multi_rate()
    with record(graph) as trace:
        graph.rollout(batch)
    plan, optimizer = trace.compile(), torch.optim.Adam(graph.parameters(), 0.02)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        plan.rollout(batch)
        loss = plan.loss()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_a_plan_of_a_managed_graph_learns_as_the_graph_does() -> None:
    ends = []
    for planned in (False, True):
        torch.manual_seed(2)
        graph, batch = multi_rate()
        imprint.managers.attach(graph, "local", num_classes=3)
        with record(graph) as trace:
            graph.rollout(batch)
        assert trace.rollouts[0].learned and "learning" in str(trace)
        run = trace.compile() if planned else graph
        for _ in range(2):
            run.rollout(batch)
        ends.append([p.detach().clone() for p in graph.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_losses_are_those_of_the_plans_own_rollout() -> None:
    graph, batch = multi_rate()
    with record(graph) as trace:
        graph.rollout(batch)
    plan = trace.compile()
    with pytest.raises(StateError, match="nothing has been rolled out"):
        plan.loss()
    plan.rollout(batch)
    mine = plan.loss()
    graph.rollout(batch_of(2, 8))
    for ask in (plan.loss, plan.losses):
        with pytest.raises(StateError, match="something else since"):
            ask()
    plan.rollout(batch)
    assert torch.equal(plan.loss(), mine)


def changes() -> dict[str, tuple[Any, str]]:
    return {
        "rate": (lambda g: g.set_schedule("slow", Rate(3, 4)), "module 'slow': emit_every 2 -> 4"),
        "inner": (lambda g: g.set_schedule("slow", Rate(5, 2)), "module 'slow': inner_steps 3 -> 5"),
        "gradient": (lambda g: g.edges["fa"].set_stop_grad(False), "edge 'fa': stop_grad True -> False"),
        "manager": (lambda g: imprint.managers.attach(g, "local", num_classes=3), "a manager was attached"),
        "edge": (lambda g: g.connect(g["fast"]["out"], g["readout"]["in"]), "the graph is not bound"),
        "bound edge": (add_and_bind, "edge 'new' is new"),
    }


def add_and_bind(graph: Any) -> None:
    graph.connect(graph["slow"]["out"], graph["readout"]["in"], name="new")
    graph.bind(batch_of(2, 8))


@pytest.mark.parametrize("what", list(changes()))
def test_a_stale_plan_says_what_has_changed(what: str) -> None:
    graph, batch = multi_rate()
    with record(graph) as trace:
        graph.rollout(batch)
    plan = trace.compile()
    plan.rollout(batch)
    change, words = changes()[what]
    change(graph)
    with pytest.raises(StateError, match="not the one that was recorded") as error:
        plan.rollout(batch)
    assert words in str(error.value)
    with pytest.raises(StateError, match="not the one that was recorded"):
        trace.compile()


def test_weights_masks_and_modes_do_not_make_a_plan_stale() -> None:
    graph, batch = multi_rate()
    with record(graph) as trace:
        graph.rollout(batch)
    plan = trace.compile()
    graph.edges["fa"].constrain(mask=imprint.masks.band(1))
    graph["fast"].proto.requires_grad_(False)
    graph.eval()
    assert torch.equal(plan.rollout(batch)["readout"], graph.rollout(batch)["readout"])


def test_what_cannot_be_compiled() -> None:
    graph, batch = multi_rate()
    with record(graph) as trace:
        pass
    with pytest.raises(StateError, match="nothing was rolled out"):
        trace.compile()
    with record(graph) as trace:
        graph.rollout(batch)
        graph.set_schedule("fast", Rate(emit_every=2))
        graph.rollout(batch)
    with pytest.raises(StateError, match="changed between two rollouts") as error:
        trace.compile()
    assert "module 'fast': emit_every 1 -> 2" in str(error.value)
    with record(graph) as trace:
        graph.rollout(batch)
    for name in ("cuda", "graph", 3):
        with pytest.raises(UnknownNameError, match=r"There are: cuda_graph, eager, inductor"):
            trace.compile(backend=name)  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="did you mean 'eager'"):
        trace.compile(backend="eagre")
    with pytest.raises(ArgumentError, match="on or off"):
        trace.compile(fuse_projections="yes")  # type: ignore[arg-type]


def test_options_without_effect_say_so() -> None:
    graph, batch = multi_rate()
    with record(graph) as trace:
        graph.rollout(batch)
    text = trace.compile(fuse_port_sums=False).explain()
    assert "fuse_projections=True: no effect on eager" in text and "fuse_port_sums=False: no effect on eager" in text
    assert "slow     ·●·●" in text and "Plan(backend='eager', modules=5, edges=5, period=4)" in text


def test_a_backend_is_one_class() -> None:
    @register_backend("twice")
    class Twice(Backend):
        def __init__(self, graph: Any, schedule: Any, options: Options) -> None:
            super().__init__(graph, schedule, options)
            if not options.fuse_port_sums:
                raise ArgumentError("backend 'twice'", "it always adds", fix="fuse_port_sums=True")

        def rollout(self, batch: Any, reset: bool, keep: str) -> Any:
            self.graph.rollout(batch, reset, keep)
            return self.graph.rollout(batch, reset, keep)

    try:
        graph, batch = multi_rate()
        with record(graph) as trace:
            graph.rollout(batch)
        plan = trace.compile("twice")
        ticks = graph.clock.tick
        plan.rollout(batch)
        assert graph.clock.tick == ticks + 16 and "fuse_projections=True: honoured" in plan.explain()
        with pytest.raises(ArgumentError, match="it always adds"):
            trace.compile("twice", fuse_port_sums=False)
        with pytest.raises(UnknownNameError, match="There are: cuda_graph, eager, inductor, twice"):
            trace.compile("thrice")
        with pytest.raises(ArgumentError, match="name is taken"):
            register_backend("twice")(type("Other", (Backend,), {}))
        with pytest.raises(ArgumentError, match="not a Backend"):
            register_backend("other")(object)  # type: ignore[type-var]
    finally:
        backend.registry.pop("twice")
    assert isinstance(trace, Recording)


def test_a_recording_of_few_ticks_runs_many() -> None:
    """The schedule of one tick of a stream is that of every rollout."""
    graph, batch = multi_rate()
    graph.bind(batch)
    with record(graph) as trace, torch.no_grad():
        graph.step({"x": torch.randn(2, 6), "y": batch["y"][:, 0]})
    graph.reset()
    assert torch.equal(trace.compile().rollout(batch)["readout"], graph.rollout(batch)["readout"])
