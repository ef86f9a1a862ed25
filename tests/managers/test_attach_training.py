"""Optimizers, schedules, clipping, accumulation: each unit has its own, equal to plain torch on wrappers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import imprint
from imprint.errors import ArgumentError, StateError

from references.wrapped import Naive, distance, sgd

K, B = 3, 8
UNITS = (("stem.0", "stem.1"), ("body.0", "body.1"))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(4, 6), nn.Tanh())
        self.body = nn.Sequential(nn.Linear(6, 5), nn.Tanh())
        self.head = nn.Linear(5, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)))


def batch(rows: int = B) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, 4).double(), torch.randint(K, (rows,))


def pair(**options: Any) -> tuple[Net, imprint.Manager, Naive]:
    builder, clip = options.pop("builder", sgd), options.get("grad_clip")
    model = Net().double()
    naive = Naive(model, UNITS, K, builder=builder, clip=clip)
    return model, imprint.attach(model, "local_ce", layers=r"stem\..|body\..", optimizer=builder, **options), naive


def groups(params: list[Tensor]) -> torch.optim.Optimizer:
    big = [p for p in params if p.dim() > 1]
    return torch.optim.AdamW(
        [{"params": big, "weight_decay": 0.1}, {"params": [p for p in params if p.dim() < 2], "lr": 0.003}], 0.01
    )


BUILDERS: dict[str, Callable[[list[Tensor]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "sgd fused": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, fused=True),
    "adam": lambda p: torch.optim.Adam(p, 0.01, eps=1e-3, foreach=True),
    "adam fused": lambda p: torch.optim.Adam(p, 0.01, eps=1e-3, fused=True),
    "adamw groups": groups,
    "adamw amsgrad": lambda p: torch.optim.AdamW(p, 0.01, eps=1e-3, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, eps=1e-3),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.01, eps=1e-3),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_any_optimizer(name: str) -> None:
    model, manager, naive = pair(builder=BUILDERS[name])
    for _ in range(5):
        x, y = batch()
        manager.step(x, y), naive.step((x,), y)
    assert distance(naive, model) < (1e-12 if "adam" not in name else 1e-9)
    assert list(manager.optimizers) == ["stem.0", "body.0", "task"]
    assert {type(o) for o in manager.optimizers.values()} == {type(BUILDERS[name]([torch.ones(1, requires_grad=True)]))}


def test_the_default_optimizer_is_the_rules_adam() -> None:
    model = Net().double()
    naive = Naive(model, UNITS, K, builder=lambda p: torch.optim.Adam(p, 5e-4))
    manager = imprint.attach(model, "local_ce", layers=r"stem\..|body\..")
    for _ in range(4):
        x, y = batch()
        manager.step(x, y), naive.step((x,), y)
    assert distance(naive, model) < 1e-8


def test_gradients_and_outer_optimizers_are_left_alone() -> None:
    model, manager, _ = pair()
    manager.step(*batch())
    assert all(p.grad is None for p in model.parameters())
    outer = torch.optim.AdamW(model.parameters(), 0.1, weight_decay=0.5)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x, y = batch()
    F.cross_entropy(model(x), y).backward()
    outer.step()
    assert {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])} == {"head.weight", "head.bias"}


def test_a_builder_that_returns_none_leaves_its_unit() -> None:
    model, before = Net().double(), {}
    manager = imprint.attach(
        model, "local_ce", optimizer=lambda p: None if any(v.shape == (6, 4) for v in p) else sgd(p)
    )
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for _ in range(3):
        manager.step(*batch())
    assert list(manager.optimizers) == ["body.0", "head"]
    assert {k for k, v in model.state_dict().items() if torch.equal(v, before[k])} == {"stem.0.weight", "stem.0.bias"}
    row = next(line for line in repr(manager).splitlines() if line.startswith("stem.0"))
    assert row.split()[2] == "-"


@pytest.mark.parametrize("rule", ["sigprop", "forward_forward"])
def test_a_unit_without_optimizer_has_no_part_in_the_context_either(rule: str) -> None:
    model = Net().double()
    manager = imprint.attach(
        model, rule, num_classes=K, optimizer=lambda p: None if any(v.shape == (6, 4) for v in p) else sgd(p)
    )
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for _ in range(2):
        manager.step(*batch())
    assert {k for k, v in model.state_dict().items() if torch.equal(v, before[k])} == {"stem.0.weight", "stem.0.bias"}


def test_a_builder_gets_the_parameters_of_one_unit() -> None:
    seen: list[set[tuple[int, ...]]] = []

    def build(params: list[Tensor]) -> torch.optim.Optimizer:
        seen.append({tuple(p.shape) for p in params})
        return sgd(params)

    pair(builder=build)[1].step(*batch())
    head = {(K, 6), (K,)}, {(K, 5), (K,)}
    assert seen == [{(6, 4), (6,)} | head[0], {(5, 6), (5,)} | head[1], head[1]]


@pytest.mark.parametrize("what", ["foreign", "foreign group", "lbfgs", "none of it", "error"])
def test_builders_that_are_refused(what: str) -> None:
    model = Net().double()
    builders: dict[str, Any] = {
        "foreign": lambda p: torch.optim.SGD(model.parameters(), 0.1),
        "foreign group": lambda p: torch.optim.SGD([{"params": p}, {"params": model.head.weight, "lr": 1.0}], 0.1),
        "lbfgs": lambda p: torch.optim.LBFGS(p, 0.1),
        "none of it": lambda p: "sgd",
        "error": lambda p: torch.optim.SGD(p, lr=-1),
    }
    manager = imprint.attach(model, "local_ce", optimizer=builders[what], layers=r"stem|body")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    match = {
        "foreign": r"optimizer= of unit 'stem'[\s\S]*other units[\s\S]*lambda params",
        "foreign group": r"optimizer= of unit 'stem'[\s\S]*other units",
        "lbfgs": r"optimizer= of unit 'stem'[\s\S]*closure[\s\S]*LBFGS", "none of it": r"unit 'stem'[\s\S]*str",
        "error": "Invalid learning rate",
    }[what]  # fmt: skip
    with pytest.raises(ValueError if what == "error" else ArgumentError, match=match):
        manager.step(*batch())
    assert manager.bound is None and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with pytest.raises((ValueError, ArgumentError)):
        manager.step(*batch())  # and again: nothing is half made
    manager.options.optimizer = sgd
    manager.step(*batch())


def test_an_optimizer_that_gains_foreign_parameters_later() -> None:
    model, manager, _ = pair()
    manager.step(*batch())
    before = model.head.weight.clone()
    manager.optimizers["stem.0"].add_param_group({"params": [model.head.weight]})
    manager.freeze("body.0")
    manager.step(*batch())  # its gradient is None while the unit steps, so it is not moved twice
    naive = F.cross_entropy
    assert naive is F.cross_entropy and not torch.equal(model.head.weight, before)


def test_a_scheduler_for_each_unit() -> None:
    make = lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5)
    model, manager, naive = pair(scheduler=make)
    for i in range(6):
        x, y = batch()
        manager.step(x, y), naive.step((x,), y)
        manager.step_schedulers()
        for optimizer in [u.optimizer for u in naive.units] + [naive.task_optimizer]:
            optimizer.param_groups[0]["lr"] *= 0.5 ** (i % 2)
    assert {o.param_groups[0]["lr"] for o in manager.optimizers.values()} == {0.1 / 8}
    assert distance(naive, model) < 1e-12
    assert {k: len(v) for k, v in manager.schedulers.items() if v} == {"stem.0": 1, "body.0": 1, "task": 1}


def test_a_scheduler_that_reads_a_metric() -> None:
    manager = pair(scheduler=lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0, factor=0.1))[1]
    manager.step(*batch())
    for metric in (1.0, 2.0):
        manager.step_schedulers(metric)
    assert [o.param_groups[0]["lr"] for o in manager.optimizers.values()] == pytest.approx([0.01] * 3)
    with pytest.raises(StateError, match="bind"):
        pair()[1].step_schedulers()


@pytest.mark.parametrize("clip", [0.05, 0.3, 100.0])
def test_clipping_is_per_unit(clip: float) -> None:
    model, manager, naive = pair(grad_clip=clip)
    free = Naive(model, UNITS, K)
    for _ in range(4):
        x, y = batch()
        manager.step(x, y), naive.step((x,), y), free.step((x,), y)
    assert distance(naive, model) < 1e-12
    assert (distance(free, model) < 1e-12) == (clip == 100.0)


@pytest.mark.parametrize("rule", ["local_ce", "sigprop"])
def test_accumulation_is_the_mean_gradient(rule: str) -> None:
    model = Net().double()
    naive = Naive(model, UNITS, K, rule="ce" if rule == "local_ce" else "contrast", clip=0.2)
    manager = imprint.attach(
        model, rule, num_classes=K, layers=r"stem\..|body\..", optimizer=sgd, accumulate=3, grad_clip=0.2
    )
    context = None
    for i in range(6):
        before = {k: v.clone() for k, v in model.state_dict().items()}
        x, y = batch(B + i)
        manager.bind(x, y) if i == 0 else None
        if rule == "sigprop":
            context = (dict(manager.context.stream.named_parameters())["weight0"].detach(),)
        manager.step(x, y), naive.learn((x,), y, context)
        if i % 3 == 2:
            naive.update(1 / 3)
        else:
            assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        manager.predict(x)  # predictions in the middle disturb nothing
        manager.predict(x, by="local")
    assert manager.steps == 6 and distance(naive, model) < 1e-12


def test_an_unfinished_accumulation_is_the_mean_of_what_there_is() -> None:
    model, manager, naive = pair(accumulate=4)
    for _ in range(3):
        x, y = batch()
        manager.step(x, y), naive.learn((x,), y)
    manager.update(), naive.update(1 / 3)
    assert distance(naive, model) < 1e-12
    manager.update()  # nothing is left to do
    assert distance(naive, model) < 1e-12
    for _ in range(4):
        x, y = batch()
        manager.step(x, y), naive.learn((x,), y)
    naive.update(1 / 4)
    assert distance(naive, model) < 1e-12


def test_accumulation_of_a_block_called_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.head = nn.Linear(4, 4), nn.Linear(4, K)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.block(torch.tanh(self.block(x)))))

    model = Twice().double()
    naive = Naive(model, ("block",), K)
    manager = imprint.attach(model, "local_ce", layers="block", optimizer=sgd, accumulate=2)
    for i in range(6):
        x, y = batch()
        manager.step(x, y), naive.learn((x,), y)
        if i % 2:
            naive.update(1 / 2)
    assert distance(naive, model) < 1e-12


def test_no_learning_only_runs() -> None:
    model, manager, _ = pair()
    manager.step(*batch())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x, y = batch()
    with imprint.no_learning():
        out = manager.step(x, y)
    assert torch.equal(out, model(x)) and not out.requires_grad and manager.steps == 1
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_bare_call_is_inference_through_the_boundaries() -> None:
    model, manager, _ = pair()
    plain = Net().double()
    plain.load_state_dict(model.state_dict())
    x, y = batch()
    for _ in range(2):
        out = model(x)
        assert torch.equal(out, plain(x))
        F.cross_entropy(out, y).backward()
        assert model.stem[0].weight.grad is None and model.head.weight.grad is not None
        model.zero_grad()
        manager.step(x, y)
        plain.load_state_dict(model.state_dict())


def test_inference_mode() -> None:
    """Predictions and bare calls run there as anywhere, joined layers included."""
    model, manager, _ = pair()
    manager.step(*batch())
    x, _ = batch()
    expected = model(x).detach(), manager.predict(x, by="local")
    with torch.inference_mode():
        assert torch.equal(model(x), expected[0]) and torch.equal(manager.predict(x), expected[0])
        assert torch.equal(manager.predict(x, by="local"), expected[1])
    manager.step(*batch())
    sigprop = imprint.attach(Net().double(), "sigprop", num_classes=K)
    sigprop.step(*batch())
    expected = sigprop.predict(x), sigprop.predict(x, by="local")
    with torch.inference_mode():
        assert torch.equal(sigprop.predict(x), expected[0]) and torch.equal(sigprop.predict(x, by="local"), expected[1])
