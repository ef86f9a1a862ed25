"""Weights put in place of others after bind learn as those did; modules put in place of others are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import imprint
from imprint.errors import StateError

RULES = ["sigprop", "local_ce", "predsim", "backprop"]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.fc = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.second(self.first(x).relu()).relu())


def unbound(rule: str = "local_ce", **options: Any) -> imprint.Manager:
    torch.manual_seed(0)
    made = {"num_classes": 3, "optimizer": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)} | options
    return imprint.attach(Net(), rule, layers=["first", "second"], **made)


def make(rule: str = "local_ce", **options: Any) -> imprint.Manager:
    return unbound(rule, **options).bind(*data(0))


def data(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, 4, generator=generator), torch.randint(3, (6,), generator=generator)


def assigned(manager: imprint.Manager) -> None:
    state = {k: v.clone() for k, v in manager.model.state_dict().items()}
    manager.model.load_state_dict(state, assign=True)


def one_by_one(manager: imprint.Manager) -> None:
    for path in ("first", "fc"):
        layer = manager.model.get_submodule(path)
        layer.weight = nn.Parameter(layer.weight.detach().clone())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("replace", [assigned, one_by_one])
def test_replaced_weights_go_on_learning_as_those_before(rule: str, replace: Callable[[imprint.Manager], None]) -> None:
    kept, other = make(rule), make(rule)
    for manager in (kept, other):
        manager.step(*data(1))
    before = dict(other.model.named_parameters())
    replace(other)
    assert any(p is not before[k] for k, p in other.model.named_parameters())
    start = {k: p.detach().clone() for k, p in other.model.named_parameters()}
    for manager in (kept, other):  # the second step moves by momentum of the first
        for seed in (2, 3):
            manager.step(*data(seed))
    for (name, mine), its in zip(other.model.named_parameters(), kept.model.parameters(), strict=True):
        assert torch.equal(mine, its) and not torch.equal(mine, start[name]), name
        assert mine.grad is None


def test_gathered_gradient_is_spent_on_the_new_weights() -> None:
    kept, other = make(accumulate=2), make(accumulate=2)
    for manager in (kept, other):
        manager.step(*data(1))
        if manager is other:
            assigned(other)
        manager.step(*data(2))
    assert all(map(torch.equal, kept.model.parameters(), other.model.parameters()))


def test_a_state_saved_after_a_replacement_names_the_new_weights() -> None:
    manager = make()
    manager.step(*data(1))
    assigned(manager)
    saved = manager.state_dict()
    assert torch.equal(saved["model"]["fc.weight"], manager.model.fc.weight)
    assert set(saved["units"]["first"]["optimizers"][0]["state"]) >= {"first.weight", "first.bias"}
    manager.load_state_dict(saved)
    manager.step(*data(2))


def test_weights_of_another_dtype_bring_heads_and_momentum_along() -> None:
    manager = make()
    manager.step(*data(1))
    manager.model.load_state_dict({k: v.double() for k, v in manager.model.state_dict().items()}, assign=True)
    x, y = data(2)
    before = manager.model.first.weight.detach().clone()
    assert manager.step(x.double(), y).dtype == torch.float64
    assert not torch.equal(manager.model.first.weight, before)
    state = manager.optimizers["first"].state[manager.model.first.weight]
    assert state["momentum_buffer"].dtype == torch.float64


def tied(manager: imprint.Manager) -> None:
    manager.model.second.weight = nn.Parameter(torch.zeros(8, 8))
    manager.model.second.bias = manager.model.first.bias


def new_layer(manager: imprint.Manager) -> None:
    manager.model.second = nn.Linear(8, 8)


def new_head(manager: imprint.Manager) -> None:
    manager.model.fc = nn.Linear(8, 3)


def another_size(manager: imprint.Manager) -> None:
    manager.model.fc.weight = nn.Parameter(torch.zeros(4, 8))


def no_bias(manager: imprint.Manager) -> None:
    manager.model.fc.bias = None


def one_more(manager: imprint.Manager) -> None:
    manager.model.extra = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("change", "named"),
    [(new_layer, "module 'second'"), (new_head, "module 'fc'"), (another_size, "parameter 'fc.weight'"),
     (no_bias, "parameter 'fc.bias'"), (tied, "parameter 'second.bias'"), (one_more, "module 'extra'")],
)  # fmt: skip
def test_what_cannot_be_followed_is_refused_and_nothing_learns(
    change: Callable[[imprint.Manager], None], named: str
) -> None:
    manager = make()
    manager.step(*data(1))
    change(manager)
    before = {k: v.clone() for k, v in manager.model.state_dict().items()}
    for act in (lambda: manager.step(*data(2)), manager.state_dict, lambda: manager.bind(*data(2))):
        with pytest.raises(StateError, match=named) as caught:
            act()
        assert caught.value.fix
    assert all(torch.equal(v, before[k]) for k, v in manager.model.state_dict().items())
    assert manager.steps == 1


def test_a_frozen_weight_stays_without_an_optimizer() -> None:
    manager = unbound()
    manager.model.first.bias.requires_grad_(False)
    manager.step(*data(1))
    manager.model.first.bias = nn.Parameter(torch.ones(8))
    with pytest.raises(StateError, match="wants gradient"):
        manager.step(*data(2))
    manager.model.first.bias.requires_grad_(False)
    manager.step(*data(2))
    assert torch.equal(manager.model.first.bias, torch.ones(8))


def test_a_module_without_weights_may_be_exchanged() -> None:
    manager = imprint.attach(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), "local_ce", layers=["0"])
    manager.step(*data(1))
    manager.model[1] = nn.Identity()
    before = [p.detach().clone() for p in manager.model.parameters()]
    x, y = data(2)
    expected = nn.functional.linear(nn.functional.linear(x, *before[:2]), *before[2:])
    torch.testing.assert_close(manager.step(x, y), expected)
    assert not any(map(torch.equal, before, manager.model.parameters()))
