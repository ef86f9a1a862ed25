"""Losses, metrics, clipping, schedules and optimizers of a graph's manager, computed by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import imprint
from imprint import Graph, Module, Source, Targets, attach, protos
from imprint.credit import Instant, Unrolled, Window

F64 = torch.float64
ROWS, TICKS = 4, 6
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def data(seed: int, ticks: int = TICKS) -> dict[str, Tensor]:
    own = torch.Generator().manual_seed(seed)
    made = {"x": (ROWS, ticks, 2), "v": (ROWS, ticks, 3)}
    return {k: torch.randn(*shape, dtype=F64, generator=own) for k, shape in made.items()}


def linear() -> tuple[Graph, Module]:
    """x -> m, a linear map, to come near v."""
    torch.manual_seed(0)
    graph, src, module = Graph(), Source("x"), Module("m", protos.MLP([2, 3]))
    graph.connect(src["out"], module["in"], projection="identity")
    module.objectives.mse(target=Targets.batch_key("v"))
    return graph.bind(data(0)), module


class Hand:
    """The same map trained by hand: ``w -= lr * share * g``, period by period.

    Attributes:
        loss, norm, ratio: one number a period.
    """

    def __init__(self, module: Module, period: int, lr: float = 0.1, clip: float | None = None) -> None:
        self.params = [p.detach().clone() for p in module.proto.parameters()]  # type: ignore[union-attr]
        self.period, self.lr, self.clip = period, lr, clip
        self.loss: list[float] = []
        self.norm: list[float] = []
        self.ratio: list[float] = []

    def objective(self, x: Tensor, v: Tensor) -> Tensor:
        w, b = self.params
        total = torch.zeros((), dtype=F64)
        for row in range(x.shape[0]):
            for t in range(x.shape[1]):
                total = total + ((w @ x[row, t] + b - v[row, t]) ** 2).sum() / 3
        return total / (x.shape[0] * x.shape[1])

    def roll(self, batch: dict[str, Tensor]) -> None:
        for first in range(0, batch["x"].shape[1], self.period):
            part = slice(first, first + self.period)
            for p in self.params:
                p.requires_grad_(True)
            loss = self.objective(batch["x"][:, part], batch["v"][:, part])
            grads = torch.autograd.grad(loss, self.params)
            norm = sum(float((g * g).sum()) for g in grads) ** 0.5
            share = 1.0 if self.clip is None else min(1.0, self.clip / (norm + 1e-6))
            before = [p.detach() for p in self.params]
            self.params = [p - self.lr * share * g for p, g in zip(before, grads, strict=True)]
            step = sum(float(((p - q) ** 2).sum()) for p, q in zip(self.params, before, strict=True)) ** 0.5
            size = sum(float((p * p).sum()) for p in before) ** 0.5
            self.loss.append(loss.item())
            self.norm.append(norm)
            self.ratio.append(step / size)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


WAYS: dict[str, tuple[dict[str, Any], int]] = {
    "tick": ({}, 1),
    "1": ({"update": 1}, 1),
    "2": ({"update": 2}, 2),
    "4, the last one short": ({"update": 4}, 4),
    "rollout": ({"update": "rollout"}, TICKS),
    "window": ({"credit": Window(2)}, 2),
    "two windows": ({"credit": Window(2), "update": 4}, 4),
    "windows, rollout": ({"credit": Window(4), "update": "rollout"}, TICKS),
    "unrolled": ({"credit": Unrolled()}, TICKS),
}


@pytest.mark.parametrize("clip", [None, 0.2])
@pytest.mark.parametrize("name", WAYS)
def test_metrics_losses_and_clipping(name: str, clip: float | None) -> None:
    """The means over update periods, since the last look; losses are of the last rollout."""
    options, period = WAYS[name]
    graph, module = linear()
    hand = Hand(module, period, clip=clip)
    manager = attach(
        graph, optimizer=lambda p: torch.optim.SGD(p, 0.1), grad_clip=clip,
        monitors=("loss", "grad_norm", "update_ratio"), **options,
    )  # fmt: skip
    for seed in (1, 2):
        graph.rollout(data(seed))
        done = len(hand.loss)
        hand.roll(data(seed))
        assert manager.losses() == {"m": pytest.approx(mean(hand.loss[done:]), abs=1e-12)}
        torch.testing.assert_close(graph.loss(), torch.tensor(mean(hand.loss[done:]), dtype=F64), **CLOSE)
    found = {"loss": mean(hand.loss), "grad_norm": mean(hand.norm), "update_ratio": mean(hand.ratio)}
    assert manager.metrics(reset=False) == {"m": pytest.approx(found, abs=1e-12)}
    assert manager.metrics() == {"m": pytest.approx(found, abs=1e-12)} and manager.metrics() == {}
    for got, want in zip(module.proto.parameters(), hand.params, strict=True):  # type: ignore[union-attr]
        torch.testing.assert_close(got.detach(), want, **CLOSE)
    graph.rollout(data(3))
    done = len(hand.loss)
    hand.roll(data(3))
    assert manager.metrics()["m"]["loss"] == pytest.approx(mean(hand.loss[done:]), abs=1e-12)
    assert clip is None or any(norm > clip for norm in hand.norm), "the clipping acts"


def test_the_hand_notices_another_period() -> None:
    """The negative control: another period, clip or rate ends elsewhere."""
    graph, module = linear()
    hands = [Hand(module, 2), Hand(module, 3), Hand(module, 2, clip=0.2), Hand(module, 2, lr=0.11)]
    attach(graph, optimizer=lambda p: torch.optim.SGD(p, 0.1), update=2)
    graph.rollout(data(1))
    got = next(module.proto.parameters()).detach()  # type: ignore[union-attr]
    distances = []
    for hand in hands:
        hand.roll(data(1))
        distances.append((hand.params[0] - got).abs().max().item())
    assert distances[0] < 1e-12 and min(distances[1:]) > 1e-4


def test_losses_of_recurrent_modules_do_not_depend_on_how_they_are_computed() -> None:
    """As rows of one batch or tick by tick: one loss a period."""
    found = []
    for options in ({"update": "rollout"}, {"credit": Unrolled()}):
        torch.manual_seed(0)
        graph, src, module = Graph(), Source("x"), Module("m", protos.GRUStack(hidden=3))
        graph.connect(src["out"], module["in"])
        module.objectives.mse(target=Targets.batch_key("v"))
        manager = attach(graph, optimizer=lambda p: torch.optim.SGD(p, 0.0), **options)
        out = manager.step(data(1))["m"]
        want = (out - data(1)["v"]).square().mean().item()
        assert manager.losses()["m"] == pytest.approx(want, abs=1e-12)
        found.append(manager.metrics()["m"]["loss"])
        assert found[-1] == pytest.approx(want, abs=1e-12)


def test_losses_over_a_stream() -> None:
    """Metrics gather whole periods, however they arrive."""
    graph, module = linear()
    hand = Hand(module, 2)
    manager = attach(graph, optimizer=lambda p: torch.optim.SGD(p, 0.1), update=2)
    batch = data(1)
    for t in range(TICKS):
        graph.step({"x": batch["x"][:, t], "v": batch["v"][:, t]})
    hand.roll(batch)
    assert manager.metrics()["m"]["loss"] == pytest.approx(mean(hand.loss), abs=1e-12)


def pair(opened: bool) -> Graph:
    """x -> a -> b, linear maps of targets u and v."""
    torch.manual_seed(0)
    graph, src = Graph(), Source("x")
    a, b = Module("a", protos.MLP([2, 3], act="tanh")), Module("b", protos.MLP([3, 3]))
    graph.connect(src["out"], a["in"], projection="identity")
    graph.connect(a["out"], b["in"], projection="identity").set_stop_grad(not opened)
    a.objectives.mse(target=Targets.batch_key("u"), weight=0.5)
    a.objectives.activity_l2(weight=0.3)
    a.objectives.params_l2(weight=0.01)
    b.objectives.mse(target=Targets.batch_key("v"))
    b.objectives.params_l1(weight=0.02)
    return graph.bind(pair_data(0))


def pair_data(seed: int) -> dict[str, Tensor]:
    return {**data(seed), "u": data(seed + 50)["v"]}


def pair_losses(graph: Graph, batch: dict[str, Tensor], opened: bool) -> tuple[Tensor, Tensor]:
    """Of a and b over all ticks."""
    (wa, ba), (wb, bb) = (list(graph[n].proto.parameters()) for n in "ab")
    h = torch.tanh(batch["x"] @ wa.T + ba)
    out = (h if opened else h.detach()) @ wb.T + bb
    a = 0.5 * (h - batch["u"]).square().mean() + 0.3 * h.square().mean() + 0.01 * sum((p**2).sum() for p in (wa, ba))
    return a, (out - batch["v"]).square().mean() + 0.02 * sum(p.abs().sum() for p in (wb, bb))


@pytest.mark.parametrize("opened", [False, True], ids=["stopped", "open"])
@pytest.mark.parametrize("credit", [Instant(), Unrolled()], ids=repr)
def test_a_step_of_two_modules(opened: bool, credit: Any) -> None:
    """Losses by group, one optimizer a member with its own rate, one norm for the whole group; no gradient is left."""
    graph = pair(opened)
    rates, clip = {"a": 0.1, "b": 0.3}, 0.4
    names = iter("ab")
    manager = attach(
        graph, credit=credit, update="rollout", grad_clip=clip, monitors=("loss", "grad_norm", "update_ratio"),
        optimizer=lambda p: torch.optim.SGD(p, rates[next(names)]),
    )  # fmt: skip
    before = {n: [p.detach().clone() for p in graph[n].proto.parameters()] for n in "ab"}  # type: ignore[union-attr]
    parts = pair_losses(graph, pair_data(1), opened)
    params = {n: list(graph[n].proto.parameters()) for n in "ab"}  # type: ignore[union-attr]
    grads = {
        n: torch.autograd.grad(sum(parts), params[n], retain_graph=True) for n in "ab"  # type: ignore[arg-type]
    }  # fmt: skip
    graph.rollout(pair_data(1))
    groups = {"a+b": "ab"} if opened else {"a": "a", "b": "b"}
    loss = dict(zip("ab", (v.item() for v in parts), strict=True))
    assert manager.losses() == {
        g: pytest.approx(sum(loss[n] for n in members), abs=1e-12) for g, members in groups.items()
    }
    assert float(graph.loss()) == pytest.approx(sum(loss.values()), abs=1e-12)
    metrics = manager.metrics()
    for group, members in groups.items():
        norm = sum(float((g * g).sum()) for n in members for g in grads[n]) ** 0.5
        assert metrics[group]["grad_norm"] == pytest.approx(norm, abs=1e-12)
        for n in members:
            for p, was, g in zip(params[n], before[n], grads[n], strict=True):
                want = was - rates[n] * min(1.0, clip / (norm + 1e-6)) * g
                torch.testing.assert_close(p.detach(), want, **CLOSE)
    assert all(p.grad is None for p in graph.parameters())


def test_an_outer_optimizer_moves_nothing_that_learned() -> None:
    """Gradients are gone after a rollout, so decay and momentum outside have nothing to act on."""
    graph = pair(False)
    outer = torch.optim.SGD(graph.parameters(), 0.1, momentum=0.9, weight_decay=0.5)
    attach(graph)
    for seed in (1, 2):
        graph.rollout(pair_data(seed))
        kept = [p.detach().clone() for p in graph.parameters()]
        outer.step()
        assert all(torch.equal(p, k) for p, k in zip(graph.parameters(), kept, strict=True))


SCHEDULES: dict[str, tuple[Callable[[Any], Any], list[float]]] = {
    "step": (lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5), [0.1, 0.05, 0.025]),
    "plateau": (lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, factor=0.1, patience=0), [0.1, 0.1, 0.01]),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name: str) -> None:
    """Stepped by the manager, acting on the next rollouts."""
    make, rates = SCHEDULES[name]
    graph, module = linear()
    hand = Hand(module, 2)
    manager = attach(graph, optimizer=lambda p: torch.optim.SGD(p, 0.1), update=2, scheduler=make)
    for seed, rate in enumerate(rates):
        hand.lr = rate
        graph.rollout(data(seed))
        hand.roll(data(seed))
        manager.step_schedulers(*([1.0] if name == "plateau" else []))
    for got, want in zip(module.proto.parameters(), hand.params, strict=True):  # type: ignore[union-attr]
        torch.testing.assert_close(got.detach(), want, **CLOSE)


def test_heads_count_in_the_gradient_but_not_in_the_ratio() -> None:
    """A head that starts at zero would make any ratio infinite."""
    torch.manual_seed(0)
    graph, src, module = Graph(), Source("x"), Module("m", protos.MLP([2, 3]))
    graph.connect(src["out"], module["in"], projection="identity")
    batch = {"x": data(1)["x"], "y": torch.tensor([0, 1, 2, 1])}
    graph.bind(batch)
    rule = imprint.rules.LocalCE(zero_init=False)
    manager = attach(
        graph, rule, num_classes=3, update="rollout", optimizer=lambda p: torch.optim.SGD(p, 0.1),
        monitors=("grad_norm", "update_ratio"),
    ).bind(batch)  # fmt: skip
    (w, b), head = module.proto.parameters(), manager.filled["m.head"].objective.linear  # type: ignore[union-attr]
    logits = (batch["x"] @ w.T + b) @ head.weight.T + head.bias
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["y"].repeat_interleave(TICKS))
    grads = torch.autograd.grad(loss, [w, b, head.weight, head.bias])
    size = float((w.detach() ** 2).sum() + (b.detach() ** 2).sum()) ** 0.5
    graph.rollout(batch)
    norms = [float((g * g).sum()) for g in grads]
    want = {"grad_norm": sum(norms) ** 0.5, "update_ratio": 0.1 * sum(norms[:2]) ** 0.5 / size}
    assert manager.metrics() == {"m": pytest.approx(want, abs=1e-12)}
