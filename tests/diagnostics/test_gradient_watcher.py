"""The watcher's norms are those of torch by hand; where an edge stops the gradient they are exactly zero."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import imprint
from imprint.diagnostics import Gradient, GradientSummary, GradientWatcher
from imprint.errors import ArgumentError, StateError, UnknownNameError

F64 = torch.float64
Targets, Module, Rate, protos = imprint.Targets, imprint.Module, imprint.Rate, imprint.protos


def chain(stop: bool = False, own: float = 0.0, every: int = 2, delay: int = 0) -> tuple[Any, dict[str, Tensor]]:
    """x (5) -> GRU (4) -> linear head (3) that emits every second tick; a regulariser on the GRU if `own`."""
    graph = imprint.Graph(stop_grad=stop)
    src = imprint.Source("x")
    enc = Module("enc", protos.GRUStack(hidden=4))
    head = Module("head", protos.MLP([4, 3]), schedule=Rate(emit_every=every))
    graph.connect(src["out"], enc["in"], name="into")
    graph.connect(enc["out"], head["in"], name="up", delay=delay)
    head.objectives.mse(target=Targets.batch_key("y"))
    if own:
        enc.objectives.activity_l2(weight=own)
    x = torch.randn(2, 6, 5, dtype=F64)
    batch = {"x": x, "y": torch.randn(2, 6, 3, dtype=F64)}
    graph.bind(batch)
    return graph, batch


def total_loss(graph: Any) -> Tensor:
    return sum(graph.losses().values(), torch.zeros((), dtype=F64))


def learn(graph: Any, batch: dict[str, Tensor]) -> None:
    graph.rollout(batch)
    total_loss(graph).backward()


def by_hand(graph: Any, batch: dict[str, Tensor], stop: bool, own: float, delay: int = 0) -> dict[str, list[Tensor]]:
    """Gradients of the chain by name, in plain torch, tick by tick."""
    into, up = graph.edges["into"].proj, graph.edges["up"].proj
    cell, linear = graph["enc"].proto.cells[0], graph["head"].proto.layers[0][0]
    x, y = batch["x"], batch["y"]
    h, drives, outs, read, head_drives, head_outs = torch.zeros(2, 4, dtype=F64), [], [], [], [], []
    own_loss, data_loss = torch.zeros((), dtype=F64), torch.zeros((), dtype=F64)
    for t in range(6):
        drives.append(x[:, t] @ into.weight.T + into.bias)
        h = nn.GRUCell.forward(cell, drives[t], h) if isinstance(cell, nn.GRUCell) else gru(cell, drives[t], h)
        outs.append(h * 1.0)
        own_loss = own_loss + own * outs[t].square().mean() / 6
        held = outs[t - delay] if t >= delay else torch.zeros(2, 4, dtype=F64)
        read.append(held.detach() if stop else held * 1.0)
        head_drives.append(read[t] @ up.weight.T + up.bias)
        if t % 2:
            head_outs.append(head_drives[t] @ linear.weight.T + linear.bias)
            data_loss = data_loss + (head_outs[-1] - y[:, t]).square().mean() / 3
    wanted = {
        "into": list(into.parameters()), "up": list(up.parameters()), "enc": list(cell.parameters()),
        "head": list(linear.parameters()), "enc.in": drives, "enc.out": outs, "head.in": head_drives,
        "head.out": head_outs, "back of up": read,
    }  # fmt: skip
    made = {}
    for name, tensors in wanted.items():
        loss = data_loss + own_loss
        live = [v for v in tensors if v.requires_grad]
        grads = torch.autograd.grad(loss, live, allow_unused=True, retain_graph=True) if live else ()
        found = iter(grads)
        each = [next(found) if v.requires_grad else None for v in tensors]
        made[name] = [torch.zeros_like(v) if g is None else g for g, v in zip(each, tensors, strict=True)]
    return made


def gru(cell: Any, x: Tensor, h: Tensor) -> Tensor:
    """torch's GRU equations."""
    a, b = x @ cell.weight_ih.T + cell.bias_ih, h @ cell.weight_hh.T + cell.bias_hh
    (ar, az, an), (br, bz, bn) = a.chunk(3, 1), b.chunk(3, 1)
    r, z = torch.sigmoid(ar + br), torch.sigmoid(az + bz)
    return (1 - z) * torch.tanh(an + r * bn) + z * h


def numbers(grads: list[Tensor]) -> tuple[float, float, float]:
    flat = torch.cat([g.flatten() for g in grads])
    return flat.norm().item(), flat.abs().max().item(), (flat == 0).double().mean().item()


def close(g: Gradient, grads: list[Tensor]) -> bool:
    return (g.norm, g.max_abs, g.zero_fraction) == pytest.approx(numbers(grads), rel=1e-10, abs=1e-14)


@pytest.mark.parametrize(("stop", "own", "delay"), [(False, 0.0, 0), (False, 0.3, 1), (True, 0.3, 0), (True, 0.0, 2)])
def test_numbers_are_those_of_torch_by_hand(stop: bool, own: float, delay: int) -> None:
    graph, batch = chain(stop, own, delay=delay)
    with GradientWatcher(graph) as watcher:
        learn(graph, batch)
        summary = watcher.pop_summary()
    expected = by_hand(graph, batch, stop, own, delay)
    for section, names in (("modules", ["enc", "head"]), ("edges", ["into", "up"]),
                           ("ports", ["enc.in", "enc.out", "head.in", "head.out"])):  # fmt: skip
        assert list(summary.section(section)) == names
        for name in names:
            assert close(summary.section(section)[name], expected[name]), name
    assert summary.edges["up"].handed_back == pytest.approx(numbers(expected["back of up"])[0], rel=1e-10, abs=0)
    assert summary.edges["into"].handed_back == 0.0  # the data wants no gradient
    other = by_hand(graph, batch, stop, own + 1.0, delay)  # a different loss must not fit
    assert not close(summary.ports["enc.out"], other["enc.out"]) and not close(summary.modules["enc"], other["enc"])


def test_tick_by_tick_gives_the_numbers_of_the_whole_sequence_at_once() -> None:
    found = []
    for watched in (False, True):
        torch.manual_seed(3)
        graph, batch = chain(every=3)
        if watched:  # a state objective makes modules go tick by tick
            for module in (graph["enc"], graph["head"]):
                module.objectives.add(lambda view: view.h.sum() * 0.0, data=False)
            graph["enc"].objectives.state_l2(weight=0.0)
        with GradientWatcher(graph) as watcher:
            learn(graph, batch)
            found.append(watcher.pop_summary())
    for section in ("modules", "edges", "ports"):
        for name, g in found[0].section(section).items():
            twin = found[1].section(section)[name]
            assert (g.norm, g.max_abs) == pytest.approx((twin.norm, twin.max_abs), rel=1e-10), name
            assert g.norm > 0
    assert found[0].edges["up"].handed_back == pytest.approx(found[1].edges["up"].handed_back, rel=1e-10)


def test_a_stopped_edge_makes_ports_exactly_zero_and_an_open_one_does_not() -> None:
    for stop in (True, False):
        graph, batch = chain(stop)
        with GradientWatcher(graph) as watcher:
            learn(graph, batch)
            summary = watcher.pop_summary()
        upstream = [summary.ports["enc.out"], summary.ports["enc.in"], summary.modules["enc"], summary.edges["into"]]
        if stop:
            assert [(g.norm, g.max_abs, g.zero_fraction) for g in upstream] == [(0.0, 0.0, 1.0)] * 4
        else:
            assert all(g.norm > 1e-4 and g.zero_fraction < 1 for g in upstream)
        assert (summary.edges["up"].handed_back == 0.0) is stop
        assert summary.ports["head.in"].norm > 1e-3 and summary.modules["head"].norm > 1e-3


def test_a_module_with_an_objective_of_its_own_shows_that_its_stopped_edge_hands_nothing_back() -> None:
    graph, batch = chain(stop=True, own=0.5)
    with GradientWatcher(graph) as watcher:
        learn(graph, batch)
        summary = watcher.pop_summary()
    assert summary.ports["enc.out"].norm > 1e-3 and summary.edges["up"].handed_back == 0.0


def test_zero_fraction_counts_exact_zeros() -> None:
    """Two of three hidden units are dead: their rows and columns have no gradient."""
    graph, src = imprint.Graph(stop_grad=False), imprint.Source("x")
    net = Module("net", protos.MLP([2, 3, 1], act="relu"))
    graph.connect(src["out"], net["in"], name="into", projection="identity")
    net.objectives.mse(target=Targets.batch_key("y"))
    batch = {"x": torch.ones(1, 1, 2, dtype=F64), "y": torch.zeros(1, 1, 1, dtype=F64)}
    graph.bind(batch)
    first, last = net.proto.layers[0][0], net.proto.layers[1][0]
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, 1.0], [-1.0, -1.0], [-1.0, -1.0]]))
        first.bias.zero_()
        last.weight.fill_(1.0)
        last.bias.zero_()
    with GradientWatcher(graph) as watcher:
        learn(graph, batch)
        summary = watcher.pop_summary()
    # out = relu(2) = 2, dJ/dout = 2 * 2 = 4; first: weight (4, 4), bias 4; last: weight 2 * 4, bias 4
    g = summary.modules["net"]
    assert (g.norm, g.max_abs) == (pytest.approx((4 * 4**2 + 8**2) ** 0.5), 8.0)
    assert g.zero_fraction == pytest.approx(8 / 13) and g.elements == 13
    assert summary.ports["net.out"].norm == 4.0 and summary.edges["into"].elements == 0


def test_norms_are_means_over_backward_passes_and_a_pass_that_misses_a_module_counts_as_zero() -> None:
    graph, batch = chain(stop=True, own=0.5)
    with GradientWatcher(graph) as watcher:
        norms, peaks = [], []
        for scale in (1.0, 3.0):
            graph.zero_grad()
            graph.rollout(batch)
            (total_loss(graph) * scale).backward()
            grads = [p.grad for p in graph["enc"].proto.parameters()]
            norms.append(numbers(grads)[0])
            peaks.append(numbers(grads)[1])
        graph.rollout(batch)
        graph.losses()["head.mse"].backward()  # does not reach the encoder
        summary = watcher.pop_summary()
        enc = summary.modules["enc"]
        assert summary.updates == enc.updates == 3
        assert (enc.norm, enc.max_abs) == pytest.approx((sum(norms) / 3, max(peaks)), rel=1e-10)
        assert enc.zero_fraction == pytest.approx(1 / 3) and summary.ports["enc.out"].zero_fraction == pytest.approx(
            1 / 3
        )
        assert watcher.pop_summary().modules["enc"] == Gradient(0.0, 0.0, 1.0, 0, 0)  # forgotten


def test_watching_changes_no_number_and_leaves_grad_alone() -> None:
    for build, tolerance in ((chain, 0.0), (looped, 1e-13)):  # in cycles autograd adds in another order
        ends = []
        for watched in (False, True):
            torch.manual_seed(5)
            graph, batch = build()
            watcher = GradientWatcher(graph) if watched else None
            optimizer = torch.optim.SGD(graph.parameters(), 0.05, momentum=0.9)
            for _ in range(3):
                optimizer.zero_grad()
                learn(graph, batch)
                optimizer.step()
            ends.append([p.detach().clone() for p in graph.parameters()] + [p.grad.clone() for p in graph.parameters()])
            assert watcher is None or watcher.pop_summary().modules["enc"].norm > 0
        assert all((a - b).abs().max() <= tolerance for a, b in zip(*ends, strict=True))


def looped() -> tuple[Any, dict[str, Tensor]]:
    """The chain with a delayed way back, so that both modules go tick by tick."""
    graph, batch = chain()
    graph.connect(graph["head"]["out"], graph["enc"]["in"], name="back", delay=1)
    graph.bind(batch)
    return graph, batch


def attach(graph: Any, rule: Any = "local", **options: Any) -> Any:
    return imprint.managers.attach(graph, rule, optimizer=lambda p: torch.optim.SGD(p, 0.1), **options)


def local_pair() -> tuple[Any, dict[str, Tensor]]:
    """Two linear modules, each with its own target."""
    graph, src = imprint.Graph(), imprint.Source("x")
    a, b = Module("a", protos.MLP([3, 4])), Module("b", protos.MLP([4, 2]))
    graph.connect(src["out"], a["in"], name="into", projection="identity")
    graph.connect(a["out"], b["in"], name="up", projection="identity")
    a.objectives.mse(target=Targets.batch_key("ya"))
    b.objectives.mse(target=Targets.batch_key("yb"))
    batch = {
        "x": torch.randn(2, 4, 3, dtype=F64),
        "ya": torch.randn(2, 4, 4, dtype=F64),
        "yb": torch.randn(2, 4, 2, dtype=F64),
    }
    graph.bind(batch)
    return graph, batch


@pytest.mark.parametrize("period", [1, 2])
def test_with_a_manager_an_update_is_a_step_of_a_module(period: int) -> None:
    graph, batch = local_pair()
    start = {n: [p.detach().clone() for p in graph[n].proto.parameters()] for n in ("a", "b")}
    attach(graph, update="tick" if period == 1 else period)
    with GradientWatcher(graph) as watcher:
        graph.rollout(batch)
        summary = watcher.pop_summary()
    (wa, ca), (wb, cb) = start["a"], start["b"]
    norms: dict[str, list[float]] = {"a": [], "b": [], "a.out": [], "b.out": []}
    for first in range(0, 4, period):
        weights = [v.clone().requires_grad_() for v in (wa, ca, wb, cb)]
        outs: dict[str, list[Tensor]] = {"a.out": [], "b.out": []}
        loss = torch.zeros((), dtype=F64)
        for t in range(first, first + period):
            h = batch["x"][:, t] @ weights[0].T + weights[1]
            o = h.detach() @ weights[2].T + weights[3]
            outs["a.out"].append(h)
            outs["b.out"].append(o)
            loss = loss + ((h - batch["ya"][:, t]).square().mean() + (o - batch["yb"][:, t]).square().mean()) / period
        for name, tensors in (("a", weights[:2]), ("b", weights[2:]), *outs.items()):
            norms[name].append(numbers(list(torch.autograd.grad(loss, tensors, retain_graph=True)))[0])
        grads = torch.autograd.grad(loss, weights)
        wa, ca, wb, cb = (v.detach() - 0.1 * g for v, g in zip(weights, grads, strict=True))
    assert torch.allclose(
        wa, graph["a"].proto.layers[0][0].weight, rtol=0, atol=1e-12
    )  # the reference learned the same
    for name, values in norms.items():
        g = summary.section("ports" if "." in name else "modules")[name]
        assert g.updates == 4 // period and g.norm == pytest.approx(sum(values) / len(values), rel=1e-10), name
        assert g.norm != pytest.approx(values[0], rel=1e-4)  # it is a mean, not the first
    assert summary.edges["up"].handed_back == 0.0 and summary.ports["a.in"].norm == 0.0
    assert all(p.grad is None for p in graph.parameters())


def test_within_a_gradient_group_the_open_edge_hands_back_and_between_groups_none_does() -> None:
    for stop in (True, False):
        graph, batch = chain(stop)
        attach(graph, imprint.rules.Local(fill="predict"))
        with GradientWatcher(graph) as watcher:
            graph.rollout(batch)
            summary = watcher.pop_summary()
        assert (summary.edges["up"].handed_back == 0.0) is stop
        assert summary.modules["enc"].norm > 0 and summary.modules["head"].norm > 0


WINDOW, UNROLLED = {"credit": imprint.credit.Window(2)}, {"credit": imprint.credit.Unrolled()}
CREDITS = [("local", {}), ("local", WINDOW), ("local", UNROLLED), ("local_ce", {}), ("predict_input", {"update": 3}),
           ("sigprop", {}), ("backprop", {})]  # fmt: skip


@pytest.mark.parametrize(("rule", "options"), CREDITS, ids=lambda v: str(v))
def test_a_manager_learns_bitwise_the_same_while_it_is_watched(rule: str, options: dict[str, Any]) -> None:
    ends = []
    for watched in (False, True):
        torch.manual_seed(1)
        graph, src = imprint.Graph(), imprint.Source("x")
        enc, head = Module("enc", protos.GRUStack(hidden=6)), Module("head", protos.MLP([6, 3]))
        graph.connect(src["out"], enc["in"])
        graph.connect(enc["out"], head["in"])
        head.objectives.ce(target=Targets.batch_key("y"), num_classes=3)
        batch = {"x": torch.randn(4, 6, 5), "y": torch.tensor([0, 1, 2, 1])}
        watcher = GradientWatcher(graph) if watched else None  # before bind, and before the manager
        attach(graph, rule, **options)
        for _ in range(2):
            graph.rollout(batch)
        ends.append([p.detach().clone() for p in graph.parameters()])
        if watcher is not None:
            summary = watcher.pop_summary()
            assert summary.updates > 0 and all(g.norm > 0 for g in summary.modules.values())
            assert all(g.norm > 0 for n, g in summary.ports.items() if n != "enc.in" or rule == "backprop")
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_what_learns_nothing_is_not_counted() -> None:
    graph, batch = chain()
    with GradientWatcher(graph) as watcher:
        with torch.no_grad():
            graph.rollout(batch)
        learn(graph, batch)
        with torch.no_grad():
            graph.rollout(batch)
        graph.rollout(batch)  # nobody asks for its gradient
        learn(graph, batch)
        summary = watcher.pop_summary()
        assert summary.updates == 2 and summary.ports["enc.out"].elements == 2 * 2 * 6 * 4
    graph, batch = local_pair()
    manager = attach(graph)
    with GradientWatcher(graph) as watcher:
        manager.predict(batch)
        with imprint.no_learning():
            graph.rollout(batch)
            total_loss(graph).backward()  # the manager's, not the user's, gradients are what is watched
        graph.rollout(batch)
        summary = watcher.pop_summary()
        assert summary.updates == 4 and summary.ports["a.out"].elements == 4 * 2 * 4


def test_new_edges_thawed_weights_and_replaced_parameters_are_seen() -> None:
    graph, batch = chain()
    with GradientWatcher(graph) as watcher:
        graph["enc"].proto.requires_grad_(False)
        learn(graph, batch)
        frozen = watcher.pop_summary().modules["enc"]
        assert frozen.elements == 0 and frozen.norm == 0.0 and frozen.updates == 1
        graph["enc"].proto.requires_grad_(True)
        learn(graph, batch)
        assert watcher.pop_summary().modules["enc"].norm > 0
        graph.connect(graph["head"]["out"], graph["enc"]["in"], name="back", delay=1)
        learn(graph, batch)
        assert watcher.pop_summary().edges["back"].norm > 0
        graph.load_state_dict(
            {k: v.clone() if isinstance(v, Tensor) else v for k, v in graph.state_dict().items()}, assign=True
        )
        learn(graph, batch)
        assert watcher.pop_summary().modules["enc"].norm > 0


def test_close_lets_go_of_everything_and_copies_are_not_watched() -> None:
    graph, batch = chain()
    watcher = GradientWatcher(graph)
    learn(graph, batch)
    twin = copy.deepcopy(graph)
    again = pickle.loads(pickle.dumps(twin))
    for other in (twin, again):
        assert not other.observers and all(m.tap is None for m in [*other.modules_by_name.values(), *other.all_edges])
        learn(other, batch)
    assert watcher.pop_summary().updates == 1
    learn(graph, batch)
    watcher.close()
    watcher.close()
    learn(graph, batch)
    assert watcher.pop_summary().updates == 1 and not graph.observers
    assert all(m.tap is None for m in [*graph.modules_by_name.values(), *graph.all_edges])
    assert not any(p._backward_hooks for p in graph.parameters())
    graph, batch = local_pair()
    manager = attach(graph)
    with GradientWatcher(graph):
        graph.rollout(batch)
    assert not any(isinstance(p, GradientWatcher) for prop in manager.propagators.values() for p in prop.probes)


def test_one_watcher_a_graph_and_graphs_only() -> None:
    graph, _ = chain()
    with GradientWatcher(graph), pytest.raises(StateError, match="watched already"):
        GradientWatcher(graph)
    GradientWatcher(graph).close()
    with pytest.raises(ArgumentError, match="not a graph"):
        GradientWatcher(nn.Linear(2, 2))  # type: ignore[arg-type]


def test_sections_can_be_left_out() -> None:
    graph, batch = chain()
    with GradientWatcher(graph, track_ports=False, track_edges=False) as watcher:
        learn(graph, batch)
        summary = watcher.pop_summary()
        assert list(summary.modules) == ["enc", "head"] and not summary.edges and not summary.ports
        assert all(m.tap is None for m in graph.modules_by_name.values())


def test_top_k_keeps_the_largest() -> None:
    graph, batch = chain()
    with GradientWatcher(graph) as watcher:
        learn(graph, batch)
        whole = watcher.pop_summary()
        learn(graph, batch)
        top = watcher.pop_summary(top_k=2)
        order = sorted(whole.ports, key=lambda n: -whole.ports[n].norm)
        assert list(top.ports) == order[:2] and top.left_out["ports"] == 2 and "… and 2 more" in str(top)
        assert whole.left_out["ports"] == 0 and "more" not in str(whole)
        for wrong in (0, -1, True, 1.5):
            with pytest.raises(ArgumentError, match="not a count"):
                watcher.pop_summary(top_k=wrong)  # type: ignore[arg-type]


def test_the_summary_prints_and_gives_plain_numbers() -> None:
    graph, batch = chain(stop=True)
    with GradientWatcher(graph) as watcher:
        learn(graph, batch)
        summary = watcher.pop_summary()
    lines = str(summary).splitlines()
    assert lines[0] == "gradients over 1 update"
    assert [*lines[1].split()] == ["module", "norm", "max", "|g|", "zeros"]
    assert lines[3].split() == ["enc", "0", "0", "100.0%"]
    assert any(line.split()[:1] == ["up"] and line.split()[-1] == "0" for line in lines)
    plain = summary.to_dict()
    assert plain["modules"]["head"]["norm"] == summary.modules["head"].norm and plain["updates"] == 1
    assert plain["edges"]["up"]["handed_back"] == 0.0 and "handed_back" not in plain["modules"]["head"]
    with pytest.raises(UnknownNameError, match="did you mean 'modules'"):
        summary.section("module")
    assert str(GradientSummary({}, {}, {}, 0)) == "gradients over 0 updates"


class Waits(TorchDispatchMode):
    """Counts how often the host reads a number from the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("managed", [False, True])
def test_nothing_waits_for_the_device_before_the_summary_is_read(managed: bool) -> None:
    run: Callable[[Any, Any], Any] = (lambda g, b: g.rollout(b)) if managed else learn
    counts = []
    for watched in (False, True):
        graph, batch = local_pair()
        if managed:
            attach(graph)
        watcher = GradientWatcher(graph) if watched else None
        run(graph, batch)
        with Waits() as waits:
            run(graph, batch)
        counts.append(waits.count)
        if watcher is not None:
            assert watcher.pop_summary().modules["a"].norm > 0
    assert counts[0] == counts[1]
    with Waits() as waits:  # the counter counts
        torch.ones(1).item()
    assert waits.count == 1


def test_gathered_parts_of_any_kind_add_up() -> None:
    from imprint.diagnostics.gathered import Gathered, read

    gathered = Gathered()
    parts = [torch.tensor([3.0, 0.0]), torch.zeros(0), torch.tensor([[0.0, 4.0]]).to_sparse()]
    for part in parts:
        gathered.add(part)
    gathered.close(4)
    gathered.add(torch.tensor([1e30, 1e30], dtype=torch.float32))  # its square is no float32
    gathered.close(2)
    assert read([gathered.norms, None, gathered.nonzero]) == [pytest.approx(5 + 2**0.5 * 1e30, rel=1e-6), 0.0, 4.0]
    assert gathered.elements == 6 and gathered.updates == 2
    assert [a for a, _ in itertools.pairwise(read([torch.tensor(2), torch.tensor(0.5), None]))] == [2.0, 0.5]
