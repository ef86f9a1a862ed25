"""What a recording says of ports, of learning, and of the ticks until all of it repeats."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import imprint
from imprint.credit import ETrace, Instant, Unrolled, Window
from imprint.errors import StateError
from imprint.graph.observer import Observer
from imprint.runtime import Cycle, DueSet, Learned, PortOp, Recording, explained, record

pytestmark = pytest.mark.filterwarnings("ignore:graph.loss")
Module, Rate, Targets, protos = imprint.Module, imprint.Rate, imprint.Targets, imprint.protos


def pair(**attach: Any) -> tuple[Any, Any, dict[str, Any]]:
    """x -> enc (every second tick, anew every fourth) = head (open edge); x -> slow (every third, rests) -> head."""
    graph, src = imprint.Graph(), imprint.Source("x")
    enc = Module("enc", protos.GRUStack(hidden=4, reset_every=4), schedule=Rate(emit_every=2))
    slow = Module("slow", protos.GRUStack(hidden=3), schedule=Rate(emit_every=3, step_when_emits=True))
    group = imprint.InPortGroup(a=4, b=3)
    head = Module("head", protos.MLP([7, 3]), imprint.Ports(in_=group))
    graph.connect(src["out"], enc["in"], name="xe")
    graph.connect(src["out"], slow["in"], name="xs")
    graph.connect(enc["out"], head["in.a"], name="eh", stop_grad=False)
    graph.connect(slow["out"], head["in.b"], name="sh", projection="identity")
    graph.connect(src["out"], head["in.b"], name="xh", delay=1)
    head.objectives.ce(target=Targets.batch_key("y"), num_classes=3)
    head.objectives.params_l2(weight=1e-3)
    slow.objectives.mse(target=Targets.batch_key("z"))
    batch = {"x": torch.randn(2, 12, 5), "y": torch.randint(0, 3, (2, 12)), "z": torch.randn(2, 12, 3)}
    manager = imprint.managers.attach(graph, "local", num_classes=3, **attach) if attach else None
    return graph, manager, batch


def learned_of(recording: Recording) -> dict[tuple[int, str], Learned]:
    return {(e.tick, e.module): e.learned for e in recording if e.learned is not None}


# -- events


def test_port_ops_say_what_was_projected_and_joined() -> None:
    graph, _, batch = pair()
    with record(graph) as recording:
        graph.rollout(batch)
    ops = {e.module: e.ops for e in recording}
    assert ops == {
        "x": (),
        "enc": (PortOp("linear", ("xe",), "in", (2, 5)),),
        "slow": (PortOp("linear", ("xs",), "in", (2, 5)),),
        "head": (
            PortOp("linear", ("eh",), "in.a", (2, 4)),
            PortOp("identity", ("sh",), "in.b", (2, 3)),
            PortOp("linear", ("xh",), "in.b", (2, 3)),
            PortOp("sum", ("sh", "xh"), "in.b", (2, 3)),
            PortOp("concat", ("in.a", "in.b"), "in", (2, 7)),
        ),
    }
    assert "head.in.b = sum(sh, xh) 3\n" in recording.explain() and "slow.in = linear(xs) 5" in recording.explain()


def test_ports_that_concatenate_and_groups_that_add() -> None:
    graph, src = imprint.Graph(), imprint.Source("x")
    side = Module("side", protos.MLP([12, 2]), imprint.Ports(in_default=imprint.InPort(combine="concat")))
    group = imprint.InPortGroup(layout="shared", a=6, b=6)
    shared = Module("shared", protos.GRUStack(hidden=2), imprint.Ports(in_=group))
    both = imprint.InPortGroup(a=imprint.Auto, b=imprint.Auto)
    apart = Module("apart", protos.Elementwise("sub"), imprint.Ports(in_=both))
    graph.connect(src["out"], side["in"], name="now", projection="linear")
    graph.connect(src["out"], side["in"], name="then", delay=1, projection="linear")
    for port in ("a", "b"):
        graph.connect(src["out"], shared[f"in.{port}"], name=f"s{port}")
        graph.connect(src["out"], apart[f"in.{port}"], name=f"a{port}", delay=int(port == "b"))
    with record(graph) as recording, torch.no_grad():
        graph.rollout({"x": torch.randn(3, 1, 6)})
    ops = {e.module: e.ops for e in recording}
    assert ops["side"][-1] == PortOp("concat", ("now", "then"), "in", (3, 12))
    assert [op.shape for op in ops["side"][:2]] == [(3, 6), (3, 6)]
    assert ops["shared"][-1] == PortOp("sum", ("in.a", "in.b"), "in", (3, 6))
    assert [(op.op, op.into) for op in ops["apart"]] == [("identity", "in.a"), ("identity", "in.b")]  # joined by itself


def test_learning_by_hand_with_weights_at_rest_for_four_ticks() -> None:
    graph, _, batch = pair(update=4)
    with record(graph) as recording:
        graph.rollout(batch)
    learned = learned_of(recording)
    for t in range(12):
        ends = t % 4 == 3
        mine = Learned("enc+head", {t: ("head.ce", "head.params_l2")}, int(ends), ("enc", "head") if ends else ())
        assert learned[t, "enc"] == learned[t, "head"] == mine
    slow = {t: lesson for (t, name), lesson in learned.items() if name == "slow"}
    assert slow == {
        2: Learned("slow", {2: ("slow.mse",)}, 0, ()),
        3: Learned("slow", {}, 1, ("slow",)),  # it rests, and its weights move
        5: Learned("slow", {5: ("slow.mse",)}, 0, ()),
        7: Learned("slow", {}, 1, ("slow",)),
        8: Learned("slow", {8: ("slow.mse",)}, 0, ()),
        11: Learned("slow", {11: ("slow.mse",)}, 1, ("slow",)),
    }
    assert [(e.tick, e.ran) for e in recording if e.module == "slow"] == [
        (2, True), (3, False), (5, True), (7, False), (8, True), (11, True),
    ]  # fmt: skip
    resting = next(e for e in recording if e.module == "slow" and not e.ran)
    assert (resting.inner_steps, resting.reads, resting.emitted, resting.ops) == (0, (), {}, ())
    (row,) = (line.split() for line in str(recording).splitlines() if line.startswith("slow "))
    assert row[:5] == ["slow", "●", "●", "4", "4"]  # what only learned did not run


@pytest.mark.parametrize(
    ("attach", "updates"),
    [
        ({"credit": Instant()}, {t: ("enc", "head") if t % 2 else ("head",) for t in range(12)}),
        ({"credit": Instant(), "update": "rollout"}, {11: ("enc", "head")}),
        ({"credit": Window(3)}, {2: ("enc", "head"), 5: ("enc", "head"), 8: ("enc", "head"), 11: ("enc", "head")}),
        ({"credit": Window(2), "update": 6}, {5: ("enc", "head"), 11: ("enc", "head")}),
        ({"credit": Unrolled()}, {11: ("enc", "head")}),
        ({"credit": ETrace("d_rtrl")}, dict.fromkeys(range(12), ("enc", "head"))),
    ],
    ids=lambda value: str(value) if "credit" in value else "",
)
def test_whose_weights_move_when(attach: dict[str, Any], updates: dict[int, tuple[str, ...]]) -> None:
    """Within a tick enc is reached by the head's loss only where it emits; traces and windows reach further back."""
    graph, _, batch = pair(**attach)
    with record(graph) as recording:
        graph.rollout(batch)
    heads = {t: lesson for (t, name), lesson in learned_of(recording).items() if name == "head"}
    assert {t: lesson.moved for t, lesson in heads.items() if lesson.updates} == updates
    assert sorted(t for lesson in heads.values() for t in lesson.terms) == list(range(12))
    if isinstance(attach["credit"], Window):
        assert all(max(lesson.terms) == t for t, lesson in heads.items())  # a block is learned from at its end
    else:
        assert all(list(lesson.terms) == [t] for t, lesson in heads.items())


def test_without_a_manager_in_eval_and_frozen_nothing_learns() -> None:
    graph, _, batch = pair()
    with record(graph) as recording:
        graph.rollout(batch)
    assert not learned_of(recording)
    assert "learning: no manager; loss() is the sum of slow.mse, head.ce, head.params_l2" in recording.explain()
    graph, manager, batch = pair(update="tick")
    with record(graph) as recording, torch.no_grad():
        graph.rollout(batch)
    assert not learned_of(recording) and "learning: a manager is attached, and did not learn" in recording.explain()
    graph.rollout(batch)
    manager.freeze("enc+head")
    weights = [p.clone() for p in graph["head"].parameters()]
    with record(graph) as recording:
        graph.rollout(batch)
    assert {name for _, name in learned_of(recording)} == {"slow"}
    assert all(torch.equal(a, b) for a, b in zip(weights, graph["head"].parameters(), strict=True))
    rows = {line.split()[0]: line for line in recording.explain().splitlines() if line.split()}
    assert "none: frozen" in rows["enc+head"] and rows["enc+head"].split()[-3:] == ["0", "ticks", "0"]
    assert rows["slow"].split()[-3:] == ["4", "ticks", "4"]
    assert {due.learns for due in Cycle(recording.schedule, recording.rollouts[0].groups).sets()} == {(), ("slow",)}


def test_no_lesson_where_nobody_has_a_target() -> None:
    graph, _, batch = pair(update=3)
    batch["y"][:, 3:6] = -100  # a whole period without labels
    with record(graph) as recording:
        graph.rollout(batch)
    heads = {t: lesson for (t, name), lesson in learned_of(recording).items() if name == "head"}
    assert sorted(heads) == [0, 1, 2, 6, 7, 8, 9, 10, 11]
    assert [t for t, lesson in heads.items() if lesson.updates] == [2, 8, 11]


def late(update: Any = "tick") -> tuple[Any, dict[str, Any]]:
    """enc learns to foresee what slow holds two ticks later."""
    graph, src = imprint.Graph(), imprint.Source("x")
    enc, slow = Module("enc", protos.GRUStack(hidden=3)), Module("slow", protos.GRUStack(hidden=3))
    graph.connect(src["out"], enc["in"])
    graph.connect(src["out"], slow["in"])
    enc.objectives.mse(target=Targets.port_output(slow, shift=2))
    imprint.managers.attach(graph, "local", fill=None, update=update)
    return graph, {"x": torch.randn(2, 6, 4)}


def test_late_targets_are_learned_from_when_they_have_come() -> None:
    graph, batch = late()
    with record(graph) as recording:
        graph.rollout(batch)
    learned = learned_of(recording)
    assert {t: list(lesson.terms) for (t, _), lesson in learned.items()} == {2: [0], 3: [1], 4: [2], 5: [3]}
    assert all(lesson.updates == 1 and lesson.moved == ("enc",) for lesson in learned.values())
    assert "mse, 2 ticks late" in recording.explain() and "only run: slow" in recording.explain()
    assert repr(learned[2, "enc"]) == "Learned(enc: learns enc.mse@0; updates enc)"


# -- against the optimizers themselves


class Steps(Observer):
    """Which modules' weights every optimizer step had a gradient for, by the rollout that it was taken in."""

    def __init__(self) -> None:
        self.taken: list[tuple[int, str, frozenset[str]]] = []
        self.rollout, self.hooked = -1, False

    def rolling(self, run: Any, learns: bool) -> None:
        self.rollout += 1
        if not self.hooked:
            self.hooked = True
            for prop in run.graph.manager.propagators.values():
                prop.probes.append(self.Probe(self, run.graph))

    class Probe(imprint.propagators.Probe):
        def __init__(self, steps: Steps, graph: Any) -> None:
            modules = [graph[name] for name in graph.order]
            owners = [(m, o) for m in modules for o in (m, *m.incoming)]
            self.steps, self.owner = steps, {id(p): m.name for m, o in owners for p in o.parameters()}

        def updated(self, prop: Any, grads: Any) -> None:
            held = {id(p) for o in prop.optimizers for group in o.param_groups for p in group["params"]}
            owners = [self.owner.get(id(prop.params[k])) for k in grads if id(prop.params[k]) in held]
            self.steps.taken.append((self.steps.rollout, prop.name, frozenset(filter(None, owners))))


paces = st.lists(st.tuples(st.integers(1, 3), st.integers(0, 2), st.booleans(), st.booleans()), min_size=2, max_size=4)
ways = st.sampled_from(
    [(Instant(), "tick"), (Instant(), 3), (Instant(), "rollout"), (ETrace(), "tick"), (ETrace(), 2),
     (ETrace(block=4), 3), (Window(2), 4), (Window(3), "rollout"), (Unrolled(), None)]
)  # fmt: skip


def chain(paces: list[Any], credit: Any, update: Any, shift: int) -> Any:
    """Modules in a row, some behind open edges, the last one an operation without weights."""
    graph, made = imprint.Graph(), []
    before: Any = imprint.Source("x")
    for i, (every, offset, rests, opened) in enumerate(paces):
        proto = protos.GRUStack(hidden=3, reset_every=3) if i % 2 == 0 else protos.MLP([3, 3])
        module = Module(f"m{i}", proto, schedule=Rate(1, every, None, rests, offset))
        graph.connect(before["out"], module["in"], stop_grad=not (opened and i > 0))
        made.append(module)
        before = module
    last = Module("last", protos.Elementwise("tanh"), imprint.Ports(in_=imprint.InPortGroup(a=3)))
    graph.connect(before["out"], last["in.a"], stop_grad=False, projection="identity")
    made[0].objectives.mse(target=Targets.batch_key("z"))
    late = Targets.port_output(made[0], shift=shift)
    last.objectives.mse(target=Targets.batch_key("z") if isinstance(credit, Window) else late)
    made[-1].objectives.params_l2(weight=1e-3)
    kind = {} if update is None else {"update": update}
    imprint.managers.attach(graph, "local", fill=None, credit=credit, **kind)
    return graph


@given(paces, ways, st.integers(0, 2), st.integers(4, 13), st.booleans())
def test_updates_are_those_that_the_optimizers_took(
    paces: list[Any], way: Any, shift: int, ticks: int, ragged: bool
) -> None:
    torch.manual_seed(0)
    graph = chain(paces, way[0], way[1], shift)
    batch: dict[str, Any] = {"x": torch.randn(2, ticks, 3), "z": torch.randn(2, ticks, 3)}
    if ragged:
        batch["length"] = torch.tensor([ticks - 2, ticks])
    steps = Steps()
    graph.observers.append(steps)
    with record(graph) as recording:
        graph.rollout(batch)
        graph.rollout(batch, reset=False)
    for number, ran in enumerate(recording.rollouts):
        lessons = [lesson for each in ran.lessons.values() for lesson in each]
        for name in graph.manager.propagators:
            taken = [moved for n, group, moved in steps.taken if (n, group) == (number, name)]
            mine = [lesson for lesson in lessons if lesson.group == name]
            assert sum(lesson.updates for lesson in mine) == len(taken)
            if all(lesson.updates <= 1 for lesson in mine):
                assert [frozenset(lesson.moved) for lesson in mine if lesson.updates] == taken


@given(paces, ways.filter(lambda way: way[1] not in ("rollout", None) and not isinstance(way[0], Window)),
       st.integers(0, 2))  # fmt: skip
def test_in_a_stream_every_tick_is_known(paces: list[Any], way: Any, shift: int) -> None:
    torch.manual_seed(0)
    graph = chain(paces, way[0], way[1], shift)
    x, z = torch.randn(11, 2, 3), torch.randn(11, 2, 3)
    graph.bind({"x": x.transpose(0, 1), "z": z.transpose(0, 1)})
    steps = Steps()
    graph.observers.append(steps)
    with record(graph) as recording:
        for t in range(11):
            graph.step({"x": x[t], "z": z[t]})
    said = {(t, lesson.group): lesson for ran in recording.rollouts for t, each in ran.lessons.items()
            for lesson in each}  # fmt: skip
    assert [ran.first for ran in recording.rollouts] == list(range(11))
    moved = {key: frozenset(lesson.moved) for key, lesson in said.items() if lesson.updates}
    assert moved == {(t, group): names for t, group, names in steps.taken}


# -- the cycle


def test_due_sets_of_two_rates_a_reset_and_an_update() -> None:
    graph, _, batch = pair(update=4)
    with record(graph) as recording:
        graph.rollout(batch)
    cycle = Cycle(recording.schedule, recording.rollouts[0].groups)
    assert cycle.length == 12 and recording.schedule.period == 6
    assert cycle.reasons == {2: ["enc emits"], 3: ["slow emits"], 4: ["enc starts anew", "update"]}
    by_hand: dict[DueSet, list[int]] = {}
    for t in range(12):
        rest = t % 3 != 2
        due = DueSet(
            ("enc", "head") if rest else ("enc", "slow", "head"),
            tuple(n for n, due in (("x", True), ("enc", t % 2 == 1), ("slow", not rest), ("head", True)) if due),
            ("enc",) * (t % 4 == 0),
            ("enc+head",) if rest else ("enc+head", "slow"),
            ("enc+head", "slow") * (t % 4 == 3),
        )
        by_hand.setdefault(due, []).append(t)
    assert cycle.sets() == by_hand and sorted(by_hand.values()) == [
        [0, 4],
        [1, 9],
        [2],
        [3, 7],
        [5],
        [6, 10],
        [8],
        [11],
    ]
    for t in range(1, 12):  # and so it was
        events = {e.module: e for e in recording if e.tick == t}
        due = cycle.at(t)
        assert tuple(n for n in recording.schedule.order if n in events and events[n].reset) == due.resets
        assert tuple(n for n, e in events.items() if e.emitted) == due.emits
        lessons = recording.rollouts[0].lessons.get(t, ())
        assert tuple(x.group for x in lessons if x.terms) == due.learns
        assert tuple(x.group for x in lessons if x.updates) == due.updates


def test_the_text() -> None:
    graph, _, batch = pair(update=4)
    with record(graph) as recording:
        graph.rollout(batch)
    assert recording.explain() == TEXT


TEXT = """\
schedule: repeats after 6 ticks (● emits, · only steps)
  x     ●●●●●●
  enc   ·●·●·●
  slow    ●  ●
  head  ●●●●●●

hyper-period: 12 ticks, the least common multiple of 2 (enc emits), 3 (slow emits), 4 (enc starts anew, update)
  a reset at tick 0 is one from the second hyper-period on: in the first, states are new as they are

due sets: 8 in 12 ticks
  count  ticks  due
  -----  -----  ------------------------------------------------------------------------------------------
      2  0, 4   step enc, head; emit x, head; reset enc; learn enc+head
      2  1, 9   step enc, head; emit x, enc, head; learn enc+head
      1  2      step enc, slow, head; emit x, slow, head; learn enc+head, slow
      2  3, 7   step enc, head; emit x, enc, head; learn enc+head; update enc+head, slow
      1  5      step enc, slow, head; emit x, enc, slow, head; learn enc+head, slow
      2  6, 10  step enc, head; emit x, head; learn enc+head
      1  8      step enc, slow, head; emit x, slow, head; reset enc; learn enc+head, slow
      1  11     step enc, slow, head; emit x, enc, slow, head; learn enc+head, slow; update enc+head, slow

port ops, at every tick at which a module steps:
  enc.in = linear(xe) 5
  head.in.a = linear(eh) 4
  head.in.b = identity(sh) 3
  head.in.b = linear(xh) 3
  head.in.b = sum(sh, xh) 3
  head.in = concat(in.a, in.b) 7
  slow.in = linear(xs) 5

learning: 2 groups
  group     objectives      credit     update  optimizers   learned  updates
  --------  --------------  ---------  ------  ----------  --------  -------
  enc+head  head.ce         Instant()  4       Adam        12 ticks        3
            head.params_l2
  slow      slow.mse        Instant()  4       Adam         4 ticks        3"""


def test_windows_rollouts_and_last_emissions_are_no_ticks() -> None:
    graph, _, batch = pair(credit=Window(3), update=6)
    with record(graph) as recording:
        graph.rollout(batch)
    cycle = Cycle(recording.schedule, recording.rollouts[0].groups)
    assert cycle.length == 12 and cycle.reasons[3] == ["slow emits", "credit"] and cycle.reasons[6] == ["update"]
    assert [t for t in range(12) if cycle.at(t).learns] == [2, 5, 8, 11]
    assert [t for t in range(12) if cycle.at(t).updates] == [5, 11]
    assert "Window(k=3)" in recording.explain()
    graph, _, batch = pair(credit=Unrolled())
    with record(graph) as recording:
        graph.rollout(batch)
    cycle = Cycle(recording.schedule, recording.rollouts[0].groups)
    assert not any(due.learns or due.updates for due in cycle.sets()) and "Unrolled()" in recording.explain()
    graph, src = imprint.Graph(), imprint.Source("x")
    head = Module("head", protos.MLP([4, 3]))
    graph.connect(src["out"], head["in"])
    head.objectives.ce(target=Targets.batch_key("y"), num_classes=3, at="last")
    imprint.managers.attach(graph, "local", num_classes=3)
    with record(graph) as recording:
        graph.rollout({"x": torch.randn(2, 5, 4), "y": torch.tensor([0, 2]), "length": torch.tensor([3, 5])})
    assert sorted(t for t, _ in learned_of(recording)) == [2, 4]  # the last tick of each row
    assert list(Cycle(recording.schedule, recording.rollouts[0].groups).sets()) == [DueSet(("head",), ("x", "head"))]
    assert "head.ce at the last emission" in recording.explain()


def test_a_late_target_moves_learning_and_updates_in_the_cycle() -> None:
    graph, batch = late(update=3)
    with record(graph) as recording:
        graph.rollout(batch)
    cycle = Cycle(recording.schedule, recording.rollouts[0].groups)
    assert cycle.length == 3 and [t for t in range(3) if cycle.at(t).updates] == [1]  # ticks 2, 5 … end periods
    assert [t for (t, _), lesson in learned_of(recording).items() if lesson.updates] == [4, 5]  # no target of 6 or 7


def test_a_very_long_cycle_is_looked_at_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, _, batch = pair(update=7)
    with record(graph) as recording:
        graph.rollout(batch)
    for module in (explained, imprint.runtime.cycle):
        monkeypatch.setattr(module, "MOST", 10)
    assert "in 84 ticks, the first 10 looked at" in recording.explain()
    assert sum(map(len, Cycle(recording.schedule, recording.rollouts[0].groups).sets().values())) == 10


def test_resets_of_modules_that_rest_and_of_protos_with_a_rule_of_their_own() -> None:
    class Odd(protos.GRUStack):
        def resets_at(self, tick: int) -> bool:
            return tick in (1, 2, 5)

    graph, src = imprint.Graph(), imprint.Source("x")
    rests = Module("rests", protos.GRUStack(hidden=2, reset_every=3), schedule=Rate(1, 2, None, True, 1))
    odd = Module("odd", Odd(hidden=2))
    graph.connect(src["out"], rests["in"])
    graph.connect(src["out"], odd["in"])
    with record(graph) as recording, torch.no_grad():
        graph.rollout({"x": torch.randn(2, 20, 3)})
    table = recording.schedule
    resets = [e.tick for e in recording if e.module == "rests" and e.reset]
    assert resets == [6, 12, 18] == [t for t in range(20) if table.resets("rests", t)]
    assert [e.tick for e in recording if e.module == "odd" and e.reset] == [1, 2, 5]
    assert Cycle(table).length == 6 and not any(table.resets("odd", t) for t in range(20))
    assert "not in it: resets of odd" in recording.explain()
    blueprint = recording.rollouts[0].blueprint
    assert {m.name: m.reset_every for m in blueprint.modules} == {"x": None, "rests": 3, "odd": 0}


# -- as a list, and what is kept


def test_it_is_a_list_of_events() -> None:
    graph, _, batch = pair()
    with record(graph) as recording:
        assert len(recording) == 0
        with pytest.raises(StateError, match="nothing was rolled out"):
            recording.explain()
        graph.rollout(batch)
        assert len(recording) == 12 * 3 + 4
        graph.rollout(batch)
    assert len(recording) == 2 * (12 * 3 + 4) and list(recording) == recording.events
    assert recording[0].module == "x" and recording[-1] == recording.events[-1]
    assert [e.module for e in recording[:3]] == ["x", "enc", "head"]
    graph.set_schedule("slow", Rate(emit_every=2))
    with record(graph) as recording:
        graph.rollout(batch)
        graph.set_schedule("slow", Rate())
        graph.rollout(batch)
    with pytest.raises(StateError, match="changed between two rollouts"):
        recording.explain()


def test_recording_changes_no_number_that_is_learned() -> None:
    ends = []
    for recorded in (False, True):
        torch.manual_seed(4)
        graph, _, batch = pair(update=3)
        for _ in range(2):
            if recorded:
                with record(graph) as recording:
                    graph.rollout(batch)
                recording.explain()
            else:
                graph.rollout(batch)
        ends.append([p.detach().clone() for p in graph.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    assert not _tensors(recording.rollouts) and not _tensors(recording.events)


def _tensors(value: Any) -> list[Any]:
    """All tensors that a value leads to, but for what code leads to."""
    seen: dict[int, Any] = {}
    left = [value]
    while left:
        each = left.pop()
        if id(each) not in seen and not isinstance(each, (type, type(gc))) and not callable(each):
            seen[id(each)] = each
            left += gc.get_referents(each)
    return [each for each in seen.values() if isinstance(each, torch.Tensor)]


def test_a_rule_that_compares_data_with_a_signal_learns_too() -> None:
    graph, src = imprint.Graph(), imprint.Source("x")
    enc, head = Module("enc", protos.GRUStack(hidden=4)), Module("head", protos.MLP([4, 3]))
    graph.connect(src["out"], enc["in"])
    graph.connect(enc["out"], head["in"])
    head.objectives.ce(target=Targets.batch_key("y"), num_classes=3)
    imprint.managers.attach(graph, "sigprop", num_classes=3)
    with record(graph) as recording:
        graph.rollout({"x": torch.randn(4, 3, 5), "y": torch.randint(0, 3, (4, 3))})
    learned = learned_of(recording)
    assert {name for _, name in learned} >= {"enc"} and all(x.updates == 1 for x in learned.values())
