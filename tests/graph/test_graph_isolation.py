"""What learns from what: backpropagation through time when all edges are open, nothing upstream when they are not;
weights stay inside their constraints, and padding neither learns nor counts.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from imprint import Graph, Module, Ports, Rate, Source, Targets, masks, protos
from imprint.credit import Credit, Instant, Unrolled, Window
from imprint.graph.learner import Learner
from imprint.graph.learning import Learning
from imprint.managers import attach
from imprint.rules import Local

from references.graph_draws import plans
from references.graph_learning import CREDITS, Adam, NaiveLearning, late_for_window, naive_block
from references.graph_plans import Plan, batch_of, bound

EVERY_CREDIT = [
    (Instant(), "tick"), (Instant(), 3), (Instant(), "rollout"), (Window(2), 2), (Window(3), 6), (Window(2), "rollout"),
    (Unrolled(), "rollout"),
]  # fmt: skip


def momentum(params: Any) -> torch.optim.Optimizer:
    """Remembers all that was ever learned."""
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)


def weights(graph: Graph, names: tuple[str, ...]) -> dict[str, Tensor]:
    """A copy of those of some modules: their protos, objectives and incoming edges."""
    made = {}
    for name in names:
        for owner in (graph[name], *graph[name].incoming):
            made |= {f"{name}/{k}/{i}": p.detach().clone() for i, (k, p) in enumerate(owner.named_parameters())}
    return made


# -- backpropagation through time


class Net(nn.Module):
    """Two recurrent layers and a readout in plain torch, each behind a projection; the second hears the readout."""

    def __init__(self) -> None:
        super().__init__()
        self.p1, self.r1 = nn.Linear(3, 4), nn.GRU(4, 6, batch_first=True)
        self.p2, self.back, self.r2 = nn.Linear(6, 4), nn.Linear(3, 4), nn.LSTMCell(4, 5)
        self.p3, self.read = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, 3]`` logits."""
        below, _ = self.r1(self.p1(x))
        state, out, made = None, x.new_zeros(len(x), 3), []
        for t in range(x.shape[1]):
            state = self.r2(self.p2(below[:, t]) + self.back(out), state)
            out = self.read(self.p3(state[0]))
            made.append(out)
        return torch.stack(made, 1)


def recurrent_graph() -> Graph:
    """The same net as a graph."""
    graph = Graph()
    src = Source("x")
    low = Module("low", protos.GRUStack(6), Ports(4))
    high = Module("high", protos.LSTMStack(5), Ports(4))
    head = Module("head", protos.MLP([5, 3]))
    graph.connect(src["out"], low["in"], name="p1")
    graph.connect(low["out"], high["in"], name="p2")
    graph.connect(head["out"], high["in"], delay=1, name="back")
    graph.connect(high["out"], head["in"], name="p3")
    head.objectives.ce(target=Targets.batch_key("y"), num_classes=3)
    return graph


TWINS = {
    "p1": "edges.p1.proj", "p2": "edges.p2.proj", "p3": "edges.p3.proj", "back": "edges.back.proj",
    "read": "nodes.head.proto.layers.0.0", "r1": "nodes.low.proto.cells.0", "r2": "nodes.high.proto.cells.0",
}  # fmt: skip


@pytest.mark.parametrize("how", ["backprop", "opened", "stopped"])
@pytest.mark.parametrize("ragged", [False, True])
def test_all_edges_open_is_backpropagation_through_time(how: str, ragged: bool) -> None:
    """Three rollouts under ``Unrolled`` move every weight as torch.nn does; with stopped edges they do not."""
    graph, net = recurrent_graph(), Net().double()
    draw = torch.Generator().manual_seed(5)
    batches = []
    for _ in range(3):
        batch = {"x": torch.randn(4, 7, 3, generator=draw, dtype=torch.float64)}
        batch["y"] = torch.randint(0, 3, (4, 7), generator=draw)
        batches.append(batch | ({"length": torch.tensor([7, 3, 5, 1])} if ragged else {}))
    graph.bind(batches[0])
    if how == "opened":
        graph.open_edges()
    rule: Any = "backprop" if how == "backprop" else Local(fill=None)
    attach(graph, rule, credit=Unrolled(), optimizer=lambda p: torch.optim.Adam(p, lr=0.02, eps=1e-4))
    ours = dict(graph.named_parameters())
    twin = {
        f"{TWINS[name.split('.')[0]]}.{name.split('.')[1].removesuffix('_l0')}": p for name, p in net.named_parameters()
    }
    with torch.no_grad():
        for name, p in twin.items():
            p.copy_(ours[name])
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02, eps=1e-4)
    for batch in batches:
        out = graph.rollout(batch)["head"]
        logits = net(batch["x"])
        counts = torch.arange(7) < batch.get("length", torch.full((4,), 7))[:, None]
        torch.testing.assert_close(out[counts], logits[counts], rtol=0, atol=1e-10 if how != "stopped" else 1.0)
        optimizer.zero_grad()
        F.cross_entropy(logits[counts], batch["y"][counts]).backward()
        optimizer.step()
    for name, p in twin.items():
        if how == "stopped":
            continue
        torch.testing.assert_close(ours[name].detach(), p.detach(), rtol=0, atol=1e-10, msg=name)
    if how == "stopped":
        assert max(float((ours[name] - p).abs().max().detach()) for name, p in twin.items()) > 1e-3


# -- isolation


def chain(last: str) -> Graph:
    """Three modules in a row behind stopped edges, and a cycle; `last` is what the third is asked for."""
    graph = Graph()
    src = Source("x")
    one = Module("one", protos.GRUStack(5, layers=2), Ports(4))
    two = Module("two", protos.LSTMStack(4), schedule=Rate(emit_every=2, inner_steps=2))
    three = Module("three", protos.MLP([4, 6, 3], act="tanh"))
    graph.connect(src["out"], one["in"])
    graph.connect(one["out"], two["in"])
    graph.connect(two["out"], three["in"])
    one.objectives.mse(target=Targets.batch_key("one"))
    one.objectives.params_l2("recurrent_params", weight=0.01)
    two.objectives.mse(target=Targets.port_drive(one, "in"))
    if last == "ce":
        three.objectives.ce(target=Targets.batch_key("y"), num_classes=3)
    elif last == "mse":
        three.objectives.mse(target=Targets.batch_key("three"), weight=1e3)
    elif last == "contrastive":
        three.objectives.contrastive(target=Targets.port_output(one))
    elif last == "drive":
        three.objectives.mse(target=Targets.batch_key("three"))
        three.objectives.add(lambda view: (view.drive["in"] ** 2).sum() * 1e3)
    return graph


def chain_batch(seed: int) -> dict[str, Tensor]:
    """For :func:`chain`."""
    draw = torch.Generator().manual_seed(seed)
    make = lambda *shape: torch.randn(*shape, generator=draw, dtype=torch.float64)
    y = torch.randint(0, 3, (3, 8), generator=draw)
    return {"x": make(3, 8, 4), "one": make(3, 5), "three": make(3, 3), "y": y, "length": torch.tensor([8, 5, 6])}


def chain_trained(last: str, credit: Credit | None, update: Any) -> dict[str, Tensor]:
    """Weights of the first two modules after three rollouts; by plain autograd without a credit."""
    graph = chain(last)
    torch.manual_seed(4)
    graph.bind(chain_batch(0))
    start = weights(graph, ("one", "two"))
    if credit is None:
        optimizer = momentum(graph.parameters())
        for i in range(3):
            graph.rollout(chain_batch(i))
            optimizer.zero_grad()
            graph.loss().backward()
            optimizer.step()
    else:
        attach(graph, Local(fill=None), credit=credit, update=update, optimizer=momentum)
        for i in range(3):
            graph.rollout(chain_batch(i))
    after = weights(graph, ("one", "two"))
    assert all(not torch.equal(start[k], after[k]) for k in start), "all of them learn"
    return after


@pytest.mark.parametrize(("credit", "update"), [*EVERY_CREDIT, (None, None)], ids=repr)
def test_objectives_downstream_leave_updates_upstream_alone(credit: Credit | None, update: Any) -> None:
    """Bitwise, whatever the last module is asked for."""
    want = chain_trained("ce", credit, update)
    for last in ("mse", "contrastive", "drive"):
        got = chain_trained(last, credit, update)
        assert got.keys() == want.keys()
        for name, value in want.items():
            assert torch.equal(got[name], value), (last, name)


def test_an_open_edge_lets_them_through() -> None:
    """The measure of isolation sees what crosses."""
    found = []
    for last in ("ce", "mse"):
        graph = chain(last)
        torch.manual_seed(4)
        graph.bind(chain_batch(0))
        graph["three"].incoming[0].set_stop_grad(False)
        attach(graph, Local(fill=None), credit=Instant(), optimizer=momentum)
        graph.rollout(chain_batch(0))
        found.append((weights(graph, ("one",)), weights(graph, ("two",))))
    assert all(torch.equal(found[0][0][k], found[1][0][k]) for k in found[0][0])
    assert not all(torch.equal(found[0][1][k], found[1][1][k]) for k in found[0][1])


# -- constraints


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.3),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.5),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.1),
}


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
@pytest.mark.parametrize(
    ("credit", "update"), [(Instant(), "tick"), (Instant(), 3), (Window(2), 2), (Unrolled(), None)]
)
def test_weights_stay_inside_their_constraints(optimizer: str, credit: Credit, update: Any) -> None:
    """After every step of any optimizer: masks of edges, bounds, recurrent weights."""
    graph = chain("mse")
    first, second, third = (graph[n].incoming[0] for n in ("one", "two", "three"))
    first.constrain(mask=masks.band(1), max_abs=0.2)
    second.constrain(max_abs=0.1)
    graph["three"].set_input_mask(mask=masks.keep_every_kth(2))
    graph["one"].constrain("recurrent_params", mask=masks.lower(), max_abs=0.05)
    torch.manual_seed(4)
    graph.bind(chain_batch(0))
    looks = []

    def inside(view: Any) -> Tensor:
        looks.append(view.tick)
        assert (first.proj.weight[masks.band(1)(4, 4) == 0] == 0).all()
        assert first.proj.weight.abs().max() <= 0.2
        assert second.proj.weight.abs().max() <= 0.1
        assert (third.proj.weight[:, 1::2] == 0).all()
        assert third.proj.weight[:, ::2].abs().min() > 0
        for weight in graph["one"].iter_parameters_by_tag("recurrent_params"):
            assert weight.abs().max() <= 0.05
            assert all((gate.triu(1) == 0).all() for gate in weight.chunk(3))
        return view.h.sum() * 0

    graph["three"].objectives.add(inside)
    graph.bind(chain_batch(0))
    before = weights(graph, ("one", "two", "three"))
    attach(
        graph,
        Local(fill=None),
        credit=credit,
        optimizer=OPTIMIZERS[optimizer],
        **({"update": update} if update else {}),
    )
    for i in range(3):
        graph.rollout(chain_batch(i))
        inside(type("View", (), {"tick": -1, "h": torch.zeros(1)}))
    after = weights(graph, ("one", "two", "three"))
    assert len(looks) == 3 * 8 + 3
    assert sum(not torch.equal(before[k], after[k]) for k in before) >= len(before) - 2, "they move"


# -- padding


def same(a: Tensor, b: Tensor, what: str) -> None:
    """To 1e-12."""
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12, msg=lambda text: f"{what}: {text}")


def repadded(plan: Plan, batch: dict[str, Tensor], more: int, seed: int) -> dict[str, Tensor]:
    """Other values past the length of each row, and `more` ticks of them."""
    draw = torch.Generator().manual_seed(seed)
    made = dict(batch)
    for key, values in batch.items():
        if key == "length" or values.dim() < 2 or values.shape[1] != plan.ticks:
            continue
        if key not in plan.sources and not any(
            t.target[1] == "tick" for m in plan.modules for i, t in enumerate(m.terms) if f"{m.name}_{i}" == key
        ):
            continue
        noise = torch.randn(len(values), plan.ticks + more, *values.shape[2:], generator=draw, dtype=torch.float64) * 50
        if not values.is_floating_point():
            noise = values[:, :1].expand(-1, plan.ticks + more).clone()
        for row, length in enumerate(batch["length"].tolist()):
            noise[row, :length] = values[row, :length]
        if key in plan.sources:
            noise[int(batch["length"].argmin()), int(batch["length"].min()) :] = torch.nan
        made[key] = noise
    return made


@settings(
    max_examples=25, derandomize=True, deadline=None, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)  # fmt: skip
@given(plans(learns=True, styles=("row", "tick")), st.sampled_from(CREDITS), st.integers(0, 3))
def test_padding_neither_learns_nor_counts(plan: Plan, how: tuple[Credit, Any], more: int) -> None:
    """Other values past the end of rows, and more of them, change no weight, no emission of a row, no loss."""
    credit, update = how
    batch = batch_of(plan)
    batch["length"] = torch.tensor([plan.ticks, 4, 5][: plan.rows]).clamp(max=plan.ticks)
    found = []
    for each in (batch, repadded(plan, batch, 0, 1), repadded(plan, batch, more, 2)):
        graph = bound(plan, batch)
        if late_for_window(NaiveLearning(graph, naive_block(credit), update, Adam()), credit):
            return
        attach(
            graph,
            Local(fill=None),
            credit=credit,
            update=update,
            optimizer=lambda p: torch.optim.Adam(p, 0.02, eps=1e-4),
        )
        out = graph.rollout(each)
        found.append((out, graph.losses(), dict(graph.named_parameters())))
    for out, losses, params in found[1:]:
        for key in found[0][0]:
            same(out[key], found[0][0][key], key)
        for name, loss in found[0][1].items():
            same(losses[name], loss, name)
        for name, p in found[0][2].items():
            same(params[name].detach(), p.detach(), name)


# -- a tape that is replayed


@pytest.mark.parametrize(
    ("credit", "update"), [(Window(2), 2), (Window(2), 4), (Window(3), "rollout"), (Unrolled(), "rollout")]
)
def test_a_replayed_tape_equals_a_live_one(credit: Credit, update: Any) -> None:
    """``Window`` and ``Unrolled`` as pure functions of their tape move weights as the eager graph does."""
    found = []
    for replayed in (False, True):
        graph = chain("contrastive")
        graph["two"].incoming[0].set_stop_grad(False)
        torch.manual_seed(4)
        graph.bind(chain_batch(0))
        manager = attach(graph, Local(fill=None), credit=credit, update=update, optimizer=momentum).bind(chain_batch(0))
        if replayed:
            learners = []
            for group in graph.learning.live:
                group.prop.credit = credit
                learners.append(Learner(group.unit, group.prop, manager.update))
            graph.learning = Learning(graph, learners, [], graph.learning.rest, 1, manager.update)
        for i in range(3):
            graph.rollout(chain_batch(i))
        found.append(weights(graph, ("one", "two", "three")))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=0, atol=1e-12, msg=name)
