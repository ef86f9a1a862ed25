"""Steps through a GradScaler: the same numbers while nothing overflows, and a rest where something does."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler

import imprint
from imprint.diagnostics import audit_isolation
from imprint.errors import ArgumentError, CheckpointError
from imprint.managers.learning_pass import UPDATES

SCALE = 2.0**10
sgd = functools.partial(torch.optim.SGD, lr=0.05)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 3))


def batch(seed: int) -> tuple[Tensor, Tensor]:
    own = torch.Generator().manual_seed(seed)
    return torch.randn(6, 6, generator=own), torch.randint(3, (6,), generator=own)


def trained(rule: str, scaler: GradScaler | None, steps: int = 4, **options: Any) -> imprint.Manager:
    model = net()
    torch.manual_seed(1)
    made = {"optimizer": sgd, "num_classes": 3} | options
    manager = imprint.attach(model, rule, scaler=scaler, **made)
    for i in range(steps):
        manager.step(*batch(i))
    return manager


def weights(manager: imprint.Manager) -> list[Tensor]:
    return [p.detach().clone() for p in manager.model.parameters()]


def far(one: imprint.Manager, other: imprint.Manager) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(weights(one), weights(other), strict=True))


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("rule", ["local_ce", "sigprop", "forward_forward", "dfa", "fa", "pepita", "backprop"])
def test_a_scale_changes_nothing(rule: str, update: str) -> None:
    """It is a power of two, and goes out again exactly."""
    plain = trained(rule, None, update=update)
    assert far(plain, trained(rule, GradScaler("cpu", init_scale=SCALE), update=update)) == 0.0
    assert far(plain, trained(rule, None, update=update, steps=0)) > 1e-4


@pytest.mark.parametrize(
    "options", [{"accumulate": 2}, {"grad_clip": 0.05}, {"optimizer": torch.optim.Adam}, {"optimizer": None}], ids=str
)
def test_with_other_options(options: dict[str, Any]) -> None:
    """Gathered, clipped, and with the default optimizer, which is fused."""
    plain, scaled = (trained("local_ce", s, **options) for s in (None, GradScaler("cpu", init_scale=SCALE)))
    assert far(plain, scaled) < 1e-7


class Steep(torch.autograd.Function):
    """The identity, with a gradient that overflows once it is scaled."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * 1e38


class Overflows(nn.Linear):
    steep = False

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return Steep.apply(out) if self.steep else out


@pytest.mark.parametrize("update", UPDATES)
def test_a_unit_whose_gradient_overflows_rests_and_the_scale_shrinks(update: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), Overflows(8, 8), nn.Tanh(), nn.Linear(8, 3))
    scaler = GradScaler("cpu", init_scale=SCALE)
    manager = imprint.attach(model, "local_ce", update=update, scaler=scaler, grad_clip=1.0, optimizer=sgd)
    for i in range(2):
        manager.step(*batch(i))
    before = copy.deepcopy(model.state_dict())
    model[2].steep = True
    manager.step(*batch(2))
    assert scaler.get_scale() == SCALE / 2
    for name, moved in (("0.weight", True), ("2.weight", False), ("4.weight", True)):
        assert torch.equal(before[name], model.state_dict()[name]) is not moved, name
    model[2].steep = False
    manager.step(*batch(3))
    assert not torch.equal(before["2.weight"], model[2].weight) and scaler.get_scale() == SCALE / 2
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("update", UPDATES)
def test_steps_go_on_after_one_that_failed(update: str) -> None:
    scaler = GradScaler("cpu", init_scale=SCALE)
    manager = trained("local_ce", scaler, update=update)
    x, y = batch(8)
    with pytest.raises(imprint.errors.NonFiniteError):
        manager.step(torch.cat([x[:3] * torch.nan, x[3:]]), y)

    def fail(*_: Any) -> None:
        raise KeyError("in the middle of the batch")

    hook = manager.model[4].register_forward_hook(fail)
    with pytest.raises(KeyError):
        manager.step(x, y)
    hook.remove()
    before = weights(manager)
    manager.step(x, y)
    assert not any(torch.equal(a, b) for a, b in zip(before, weights(manager), strict=True))
    assert scaler.get_scale() == SCALE


def test_small_gradients_in_half_precision_survive() -> None:
    """Under float16 they vanish without a scale."""

    def learned(scaler: GradScaler | None) -> float:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
        start = model[0].weight.detach().clone()
        manager = imprint.attach(
            model, "backprop", scaler=scaler, task_loss=lambda out, y: 1e-7 * nn.functional.cross_entropy(out, y),
            optimizer=functools.partial(torch.optim.SGD, lr=1e6),
        )  # fmt: skip
        with torch.autocast("cpu", torch.float16):
            manager.step(*batch(0))
        return float((model[0].weight.detach() - start).abs().max())

    assert learned(GradScaler("cpu", init_scale=2.0**16)) > 10 * learned(None)


def test_its_state_is_saved_and_a_state_without_it_is_refused() -> None:
    manager = trained("local_ce", GradScaler("cpu", init_scale=SCALE, growth_interval=3))
    state = copy.deepcopy(manager.state_dict())
    assert state["scaler"]["scale"] == 2 * SCALE
    other = trained("local_ce", GradScaler("cpu"), steps=0)
    other.load_state_dict(state)
    assert other.options.scaler is not None and other.options.scaler.get_scale() == 2 * SCALE
    for each in (manager, other):
        torch.manual_seed(3)
        each.step(*batch(9))
    assert far(manager, other) == 0.0
    with pytest.raises(CheckpointError, match="scaler="):
        trained("local_ce", None, steps=0).load_state_dict(state)


def test_an_audit_leaves_the_scale_alone() -> None:
    scaler = GradScaler("cpu", init_scale=SCALE, growth_interval=1)
    manager = trained("local_ce", scaler, steps=1)
    scale = scaler.get_scale()
    assert audit_isolation(manager, *batch(5), strict=True).ok and scaler.get_scale() == scale
    manager.step(*batch(6))
    assert scaler.get_scale() == 2 * scale


def test_bad_options() -> None:
    with pytest.raises(ArgumentError, match=r"is no torch\.amp\.GradScaler"):
        imprint.attach(net(), "local_ce", scaler=2.0)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="scaler="):
        trained("local_ce", GradScaler("cpu"), steps=0).compile("eager")
