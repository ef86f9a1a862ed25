"""Dropout, BatchNorm, random numbers: what the two streams share and what they do not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import imprint

K, B = 3, 8


class Net(nn.Module):
    def __init__(self, dropout: float = 0.0, affine: bool = True) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4, affine=False)
        self.a = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, affine=affine), nn.ReLU(), nn.Dropout(dropout))
        self.between = nn.BatchNorm1d(6, affine=False)
        self.b = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5, momentum=None), nn.Tanh(), nn.Dropout(dropout))
        self.head = nn.Linear(5, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.between(self.a(self.norm(x)))))


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(B, 4).double(), torch.randint(K, (B,))


RULES = ["sigprop", "local_ce", "forward_forward", "predsim", "drtp", "backprop"]


@pytest.mark.parametrize("rule", RULES)
def test_running_statistics_are_of_the_data_alone(rule: str) -> None:
    """With weights that do not move they equal those of plain forward passes; binding adds nothing to them."""
    model, plain = Net().double(), Net().double()
    plain.load_state_dict(model.state_dict())
    manager = imprint.attach(model, rule, num_classes=K, layers="a|b", optimizer=lambda p: torch.optim.SGD(p, 0.0))
    for _ in range(3):
        x, y = batch()
        out = manager.step(x, y)
        manager.predict(x), manager.predict(x, by="local") if rule not in ("drtp", "backprop") else None
        if rule == "forward_forward":  # the data pass carries the neutral label, and units see their input normalised
            assert manager.context is not None
            continue
        expected = plain(x)
        assert torch.allclose(out, expected, rtol=0, atol=1e-12)
    if rule != "forward_forward":
        for (name, mine), theirs in zip(model.named_buffers(), plain.buffers(), strict=True):
            assert torch.allclose(mine, theirs, rtol=0, atol=1e-12), name
    assert int(model.a[1].num_batches_tracked) == int(model.between.num_batches_tracked) == 3


@pytest.mark.parametrize("rule", ["sigprop", "forward_forward"])
def test_context_rows_have_no_part_in_the_statistics_of_a_batch(rule: str) -> None:
    """The data's outputs do not depend on the context at all."""
    outputs = []
    start = Net().double().state_dict()
    x, y = batch()
    for seed in (1, 2):
        model = Net().double()
        model.load_state_dict(start)
        torch.manual_seed(seed)
        manager = imprint.attach(model, rule, num_classes=K, layers="a|b", optimizer=lambda p: torch.optim.SGD(p, 0.0))
        outputs.append(manager.step(x, y))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("mode", ["eval at bind", "frozen at bind"])
def test_a_norm_that_is_switched_to_training_after_bind_sees_the_data_alone(mode: str) -> None:
    """Rows may be stacked where they do not depend on each other; whether they do is asked of the training mode."""
    model, plain = Net().double(), Net().double()
    plain.load_state_dict(model.state_dict())
    manager = imprint.attach(model, "sigprop", num_classes=K, layers="a|b", optimizer=lambda p: torch.optim.SGD(p, 0.0))
    (model if mode == "eval at bind" else nn.ModuleList([model.a[1], model.b[1]])).eval()
    x, y = batch()
    manager.bind(x, y)
    model.train()
    assert torch.allclose(manager.step(x, y), plain(x), rtol=0, atol=1e-12)
    assert torch.allclose(model.a[1].running_mean, plain.a[1].running_mean, rtol=0, atol=1e-12)
    assert torch.allclose(model.b[1].running_var, plain.b[1].running_var, rtol=0, atol=1e-12)


def test_a_frozen_norm_stays_as_it_is() -> None:
    model = Net().double()
    manager = imprint.attach(model, "sigprop", num_classes=K, layers="a|b")
    model.a[1].eval()
    before = {k: v.clone() for k, v in model.a[1].named_buffers()}
    for _ in range(2):
        manager.step(*batch())
    assert all(torch.equal(v, before[k]) for k, v in model.a[1].named_buffers())
    manager.predict(batch()[0])
    assert not model.a[1].training and model.b[1].training


class Masks(nn.Module):
    """Keeps the dropout masks it drew."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 64)
        self.masks: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        mask = (torch.rand(len(x), 64, dtype=x.dtype) > 0.5).to(x.dtype)
        self.masks.append(mask)
        return self.linear(x) * mask


def test_data_and_context_draw_different_masks() -> None:
    model = nn.Sequential(Masks(), nn.Linear(64, K)).double()
    manager = imprint.attach(model, "sigprop", num_classes=K, layers="0|1")
    x, y = batch()
    manager.bind(x, y)
    model[0].masks.clear()
    manager.step(x, y)
    rows = torch.cat(list(model[0].masks))
    assert len(rows) >= K + B and len(rows.unique(dim=0)) == len(rows)


@pytest.mark.parametrize("rule", RULES)
def test_the_same_seed_gives_the_same_run(rule: str) -> None:
    def run(seed: int) -> list[Tensor]:
        torch.manual_seed(7)
        model = Net(dropout=0.3).double()
        data = [batch() for _ in range(3)]
        torch.manual_seed(seed)
        manager = imprint.attach(model, rule, num_classes=K, layers="a|b")
        for x, y in data:
            manager.step(x, y)
        return [*model.state_dict().values(), torch.rand(1)]

    first, again, other = run(1), run(1), run(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_binding_uses_up_no_random_numbers_of_dropout() -> None:
    """The probe gives back what it draws: a bind before the first step changes nothing."""

    def run(bind: bool) -> list[Tensor]:
        torch.manual_seed(3)
        model = Net(dropout=0.3).double()
        data = [batch() for _ in range(2)]
        manager = imprint.attach(model, "local_ce", layers="a|b")
        if bind:
            manager.bind(*data[0])
        for x, y in data:
            manager.step(x, y)
        return list(model.state_dict().values())

    assert all(torch.equal(a, b) for a, b in zip(run(True), run(False), strict=True))


def test_dropout_of_a_local_unit_is_that_of_its_emission() -> None:
    """The loss and what is passed on come from one run of the unit, with one mask."""
    model = nn.Sequential(Masks(), nn.Linear(64, K)).double()
    manager = imprint.attach(model, "local_ce", layers="0|1")
    x, y = batch()
    manager.bind(x, y)
    model[0].masks.clear()
    emitted: list[Tensor] = []
    model[0].register_forward_hook(lambda m, a, out: emitted.append(out))
    manager.step(x, y)
    assert len(model[0].masks) == 1 and torch.equal(emitted[0] == 0, model[0].masks[0] == 0)


def test_predictions_are_pure() -> None:
    model = Net(dropout=0.5).double()
    manager = imprint.attach(model, "sigprop", num_classes=K, layers="a|b")
    x, y = batch()
    manager.step(x, y)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    rng = torch.get_rng_state()
    first = [manager.predict(x), manager.predict(x, by="local")]
    assert torch.equal(torch.get_rng_state(), rng) and model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(
        torch.equal(a, b) for a, b in zip(first, [manager.predict(x), manager.predict(x, by="local")], strict=True)
    )
