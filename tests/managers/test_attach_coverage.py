"""Classes of parameters: unit, task, frozen, orphan; the task loss, the opened unit, freezing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import imprint
from imprint.errors import CoverageError, LabelError, ShapeError

from references.wrapped import Naive, distance, sgd

K, B = 3, 8


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(B, 4).double(), torch.randint(K, (B,))


class Body(nn.Module):
    """A stem, two blocks, a head; `skip` around the blocks; a free parameter."""

    def __init__(self, skip: bool = False) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 5)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(5, 5), nn.Tanh()) for _ in range(2)])
        self.head = nn.Linear(5, K)
        self.shift = nn.Parameter(torch.zeros(5))
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        s = h = self.stem(x) + self.shift
        for block in self.blocks:
            h = block(h)
        return self.head(h + s if self.skip else h)


def test_a_skip_path_around_all_blocks_makes_the_stem_a_task_parameter() -> None:
    model = Body(skip=True).double()
    naive = Naive(model, ("blocks.0", "blocks.1"), K)
    manager = imprint.attach(model, "local_ce", layers=r"blocks\.\d", optimizer=sgd)
    for _ in range(3):
        x, y = batch()
        assert torch.allclose(manager.step(x, y), naive.step((x,), y), rtol=0, atol=1e-12)
    assert manager.bound["task"] == ("shift", "stem.weight", "stem.bias", "head.weight", "head.bias")
    assert manager.bound["opened"] is None and manager.bound["orphans"] == ()
    assert distance(naive, model) < 1e-12
    assert "task: 48 in shift, stem.weight, stem.bias, head.weight, head.bias [SGD(lr=0.1)]" in repr(manager)


def test_without_the_skip_the_stem_is_an_orphan_with_two_fixes() -> None:
    manager = imprint.attach(Body().double(), "local_ce", layers=r"blocks\.\d")
    with pytest.raises(CoverageError) as caught:
        manager.step(*batch())
    text = str(caught.value)
    assert "parameter 'shift'" in text and "3 orphans" in text and "layers=" in text
    assert "exclude=['shift', 'stem.weight', 'stem.bias']" in text and "strict=False" in text
    assert manager.bound is None and manager.phase.name == "off"


@pytest.mark.parametrize("fix", ["exclude", "layers", "not strict"])
def test_either_fix_works(fix: str) -> None:
    options: dict[str, Any] = {
        "exclude": {"layers": r"blocks\.\d", "exclude": ["shift", "stem.weight", "stem.bias"]},
        "layers": {"layers": r"stem|blocks\.\d", "exclude": "shift"},
        "not strict": {"layers": r"blocks\.\d", "strict": False},
    }[fix]
    model = Body().double()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    manager = imprint.attach(model, "local_ce", **options)
    for _ in range(2):
        manager.step(*batch())
    still = {k for k, v in model.state_dict().items() if torch.equal(v, before[k])}
    left = ("shift", "stem.weight", "stem.bias")
    assert still == ({"shift"} if fix == "layers" else set(left))
    assert manager.bound["frozen"] == {"exclude": left, "layers": ("shift",), "not strict": ()}[fix]
    assert manager.bound["orphans"] == (left if fix == "not strict" else ())
    assert ("orphans: 30 in shift, stem.weight, stem.bias" in repr(manager)) == (fix == "not strict")


def test_exclude_reaches_parameters_inside_units() -> None:
    model = Body(skip=True).double()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    manager = imprint.attach(model, "local_ce", layers=r"blocks\.\d", exclude=r".*bias|blocks\.1", grad_clip=0.1)
    for _ in range(3):
        manager.step(*batch())
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {"stem.weight", "shift", "blocks.0.0.weight", "head.weight"}
    assert list(manager.units) == ["blocks.0"]
    assert {"stem.bias", "blocks.0.0.bias", "blocks.1.0.weight", "head.bias"} <= set(manager.bound["frozen"])


def test_a_unit_all_of_whose_weights_are_excluded_is_frozen() -> None:
    model = Body(skip=True).double()
    manager = imprint.attach(
        model, "local_ce", layers=r"blocks\.\d", exclude=[r"blocks\.0\.0\.weight", r"blocks\.0\.0\.bias"]
    )
    manager.step(*batch())
    assert list(manager.units) == ["blocks.0", "blocks.1"] and list(manager.optimizers) == ["blocks.1", "task"]


def test_weights_that_want_no_gradient_are_frozen_and_get_no_head() -> None:
    model = Body().double()
    model.stem.requires_grad_(False)
    model.blocks[0].requires_grad_(False)
    model.shift.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    manager = imprint.attach(model, "local_ce", optimizer=sgd)
    naive = Naive(model, (("blocks.1.0", "blocks.1.1"),), K)
    naive.task = [p for p in naive.task if p.requires_grad]
    for _ in range(3):
        x, y = batch()
        manager.step(x, y), naive.step((x,), y)
    assert list(manager.optimizers) == ["blocks.1.0", "head"]
    for k in before:
        assert torch.equal(model.state_dict()[k], before[k]) == k.startswith(("stem", "blocks.0", "shift"))
    assert distance(naive, model) < 1e-12
    assert "(frozen)" in repr(manager).splitlines()[2]


def test_the_last_unit_opens_where_no_parameter_is_the_tasks() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, K)).double()
    naive = Naive(model, (("0", "1"), "2"), K, opened="2")
    manager = imprint.attach(model, "local_ce", optimizer=sgd)
    for _ in range(3):
        x, y = batch()
        manager.step(x, y), naive.step((x,), y)
    assert manager.bound["opened"] == "2" and manager.units["2"].open and distance(naive, model) < 1e-12
    assert "task loss" in repr(manager)


def test_a_parameter_free_head_opens_the_unit_before_it() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2 * K)
            self.side = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.side(x)  # called last but one, yet the output does not come from it
            return F.avg_pool1d(torch.relu(self.b(torch.relu(self.a(x)))), 2)

    model = Pooled().double()
    naive = Naive(model, ("a", "b", "side"), K, opened="b")
    manager = imprint.attach(model, "local_ce", optimizer=sgd)
    for _ in range(3):
        x, y = batch()
        manager.step(x, y), naive.step((x,), y)
    assert manager.bound["opened"] == "b" and distance(naive, model) < 1e-12


def test_a_frozen_last_layer_does_not_open() -> None:
    """The units before it learn from their own losses, and nothing from the task."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, K)).double()
    model[2].requires_grad_(False)
    manager = imprint.attach(model, "local_ce", optimizer=sgd)
    naive = Naive(model, (("0", "1"),), K, frozen="2")
    for _ in range(3):
        x, y = batch()
        manager.step(x, y), naive.step((x,), y)
    assert manager.bound["opened"] is None and distance(naive, model) < 1e-12 and list(manager.optimizers) == ["0"]


def test_only_what_the_loss_reads_is_the_tasks() -> None:
    """An output beside the logits is in no loss, unless an own one reads it."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head, self.aside = nn.Linear(4, 5), nn.Linear(5, K), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.tanh(self.body(x))
            return self.head(h), self.aside(h)

    manager = imprint.attach(Two().double(), "local_ce", layers="body")
    with pytest.raises(CoverageError, match=r"'aside\.weight'"):
        manager.step(*batch())
    model = Two().double()
    own = lambda out, y: F.cross_entropy(out[0], y) + out[1].square().mean()
    manager = imprint.attach(model, "local_ce", layers="body", task_loss=own, num_classes=K, optimizer=sgd)
    assert manager.bind(*batch()).bound["task"] == ("head.weight", "head.bias", "aside.weight", "aside.bias")
    x, y = batch()
    h = torch.tanh(model.body(x)).detach()
    weights = [
        p.detach().clone().requires_grad_()
        for p in (model.head.weight, model.head.bias, model.aside.weight, model.aside.bias)
    ]
    loss = own((h @ weights[0].T + weights[1], h @ weights[2].T + weights[3]), y)
    expected = [p - 0.1 * g for p, g in zip(weights, torch.autograd.grad(loss, weights), strict=True)]
    manager.step(x, y)
    for p, e in zip([*model.head.parameters(), *model.aside.parameters()], expected, strict=True):
        assert torch.allclose(p, e, rtol=0, atol=1e-12)


@pytest.mark.parametrize("loss", ["vector", "number"])
def test_a_task_loss_that_is_no_scalar_tensor(loss: str) -> None:
    losses = {
        "vector": lambda o, y: F.cross_entropy(o, y, reduction="none"),
        "number": lambda o, y: float(F.cross_entropy(o.detach(), y)),
    }
    manager = imprint.attach(
        Body(True).double(), "local_ce", layers=r"blocks\.\d", num_classes=K, task_loss=losses[loss]
    )
    with pytest.raises(ShapeError, match=r"task_loss[\s\S]*scalar"):
        manager.step(*batch())


def test_backprop_units_behind_local_ones() -> None:
    model = Body(skip=False).double()
    manager = imprint.attach(
        model, {"stem": "local_ce", r"blocks\.\d": "backprop", "head": "backprop"}, exclude="shift", optimizer=sgd
    )
    naive = Naive(model, ("stem",), K)
    naive.task = [p for p in naive.task if p is not naive.model.shift]
    for _ in range(3):
        x, y = batch()
        manager.step(x, y), naive.step((x,), y)
    assert distance(naive, model) < 1e-12 and manager.bound["task"] == () and manager.bound["opened"] is None


def test_backprop_units_that_the_task_loss_cannot_reach() -> None:
    manager = imprint.attach(
        Body().double(), {"stem": "backprop", r"blocks\.\d": "local_ce", "head": "local_ce"}, exclude="shift"
    )
    with pytest.raises(CoverageError, match=r"unit 'stem'[\s\S]*does not reach it[\s\S]*'backprop'"):
        manager.step(*batch())


def test_a_frozen_unit_stays_and_lets_no_gradient_through() -> None:
    model = Body(skip=True).double()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    manager = imprint.attach(model, {"stem": imprint.Frozen(), r"blocks\.\d": "local_ce"}, strict=False)
    for _ in range(2):
        manager.step(*batch())
    assert all(torch.equal(v, before[k]) == k.startswith("stem") for k, v in model.state_dict().items())
    assert list(manager.optimizers) == ["blocks.0", "blocks.1", "task"]


@pytest.mark.parametrize("rule", ["local_ce", "sigprop", "backprop"])
def test_freezing_and_unfreezing_in_mid_training(rule: str) -> None:
    model = Body(skip=True).double()
    manager = imprint.attach(model, rule, num_classes=K, layers=r"blocks\.\d", scheduler=None)
    manager.step(*batch()), manager.step(*batch())

    def moved() -> set[str]:
        before = {k: v.clone() for k, v in model.state_dict().items()}
        manager.step(*batch())
        return {
            k.split(".")[1]
            for k, v in model.state_dict().items()
            if k.startswith("b") and not torch.equal(v, before[k])
        }

    assert moved() == {"0", "1"}
    state = {k: v.clone() for k, v in next(iter(manager.optimizers["blocks.0"].state.values())).items()}
    manager.freeze(r"blocks\.0")
    assert moved() == {"1"} and "(frozen)" in repr(manager)
    assert manager.predict(batch()[0], by="local", layers=r"blocks\.0").shape == (B, K) if rule != "backprop" else True
    after = next(iter(manager.optimizers["blocks.0"].state.values()))
    assert all(torch.equal(after[k], state[k]) for k in state)
    manager.unfreeze(".*")
    assert moved() == {"0", "1"} and "(frozen)" not in repr(manager)
    model.blocks[1].requires_grad_(False)
    assert moved() == {"0"}
    model.blocks[1].requires_grad_(True)
    assert moved() == {"0", "1"}


def test_freezing_all_units_leaves_the_task() -> None:
    model = Body(skip=True).double()
    manager = imprint.attach(model, "local_ce", layers=r"blocks\.\d")
    manager.step(*batch())
    manager.freeze(".*")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    manager.step(*batch())
    assert {k for k, v in model.state_dict().items() if torch.equal(v, before[k])} == {
        k for k in before if k.startswith("b")
    }
    with pytest.raises(KeyError, match=r"'blocks\.7'[\s\S]*blocks\.0"):
        manager.freeze("blocks.7")


def test_a_step_without_targets() -> None:
    """Refused where a unit needs them, and where only the task loss, which needs them, would learn."""
    model = Body(skip=True).double()
    manager = imprint.attach(model, "backprop", layers=r"blocks\.\d")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x, _ = batch()
    with pytest.raises(LabelError, match=r"targets are missing[\s\S]*task loss[\s\S]*manager\.step\(x, y\)"):
        manager.step(x)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    manager = imprint.attach(Body(skip=True).double(), "local_ce", layers=r"blocks\.\d", num_classes=K)
    with pytest.raises(
        LabelError, match=r"targets are missing[\s\S]*'blocks\.0' \(local_ce\)[\s\S]*manager\.step\(x, y\)"
    ):
        manager.step(x)
    manager.freeze(".*")
    with pytest.raises(LabelError, match="task loss"):
        manager.step(x)


def test_a_rule_without_labels_learns_from_the_input_alone() -> None:
    from dataclasses import dataclass

    class Energy(imprint.objectives.Objective):
        needs_labels = False

        def forward(self, view: Any) -> Tensor:
            return (view.h.square().mean(1) - 1).square().mean()

    @dataclass(frozen=True)
    class Unsupervised(imprint.Rule):
        def objective(self) -> Energy:
            return Energy()

    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, K)).double()
    manager = imprint.attach(model, Unsupervised(), optimizer=lambda p: torch.optim.SGD(p, 0.1))
    x, _ = batch()
    weight, bias = (p.detach().clone().requires_grad_() for p in model[0].parameters())
    h = torch.tanh(x @ weight.T + bias)
    grads = torch.autograd.grad((h.square().mean(1) - 1).square().mean(), (weight, bias))
    before = model[2].weight.clone()
    manager.step(x)
    for p, old, g in zip(model[0].parameters(), (weight, bias), grads, strict=True):
        assert torch.allclose(p, old - 0.1 * g, rtol=0, atol=1e-12)
    assert manager.bound["opened"] is None and not torch.equal(model[2].weight, before)
