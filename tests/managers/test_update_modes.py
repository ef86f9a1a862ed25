"""When units step is a matter of memory alone: the three modes leave the same numbers, for every rule."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import imprint
from imprint.diagnostics import audit_isolation
from imprint.errors import ArgumentError, NonFiniteError
from imprint.managers.learning_pass import UPDATES
from imprint.rules import registry

RULES = sorted(n for n, r in registry.items() if "layers" in r.worlds and r.learns)
sgd = functools.partial(torch.optim.SGD, lr=0.05)


class Net(nn.Module):
    """Convolutions with BatchNorm, dropout and activations that write into what they are given, inside and outside."""

    def __init__(self) -> None:
        super().__init__()
        self.units = nn.ModuleList([
            nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(inplace=True), nn.BatchNorm2d(4)),
            nn.Sequential(nn.Conv2d(4, 5, 3, padding=1), nn.Dropout(0.3)),
            nn.Sequential(nn.Flatten(), nn.Linear(80, 7)),
        ])  # fmt: skip
        self.between, self.head = nn.ReLU(inplace=True), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        for unit in self.units:
            x = self.between(unit(x))
        return self.head(x)


def trained(
    rule: str, update: str, steps: int = 4, **options: Any
) -> tuple[imprint.Manager, list[Tensor], dict[str, Tensor]]:
    torch.manual_seed(0)
    made = {"optimizer": sgd, "num_classes": 3, "layers": r"units\.\d"} | options
    manager = imprint.attach(Net().double(), rule, update=update, **made)
    outputs = []
    for i in range(steps):
        y = torch.randint(3, (6,))
        y[i % 6] = -100
        outputs.append(manager.step(torch.randn(6, 2, 4, 4).double(), y))
    heads = {f"{n}:{k}": v for n, a in manager.units.items() for k, v in a.unit.objective.state_dict().items()}
    return manager, outputs, manager.model.state_dict() | heads


def same(one: Any, other: Any, tolerance: float = 1e-12) -> bool:
    (_, outputs, state), (_, others, theirs) = one, other
    assert state.keys() == theirs.keys() and len(state) > 8
    pairs = [*zip(outputs, others, strict=True), *((state[k], theirs[k]) for k in state)]
    return all(torch.allclose(a.double(), b.double(), rtol=tolerance, atol=tolerance) for a, b in pairs)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_learns_the_same_in_every_mode(rule: str) -> None:
    plain = trained(rule, "immediate")
    assert same(plain, trained(rule, "deferred")) and same(plain, trained(rule, "summed"))
    start = trained(rule, "immediate", steps=0)[0].model.state_dict()
    assert any(not torch.allclose(v.double(), start[k].double(), atol=1e-6) for k, v in plain[2].items() if k in start)


@pytest.mark.parametrize("rule", ["local_ce", "sigprop", "forward_forward", "dfa", "fa", "pepita", "efp"])
@pytest.mark.parametrize("options", [{"accumulate": 2}, {"grad_clip": 0.05}, {"optimizer": torch.optim.Adam}], ids=str)
def test_with_other_options(rule: str, options: dict[str, Any]) -> None:
    plain = trained(rule, "immediate", **options)
    # forward-forward's data pass sees what the context has taught, in all modes; while gradient is gathered, nothing
    assert same(plain, trained(rule, "deferred", **options), 1e-9)
    assert same(plain, trained(rule, "summed", **options), 1e-9)
    assert not same(plain, trained(rule, "immediate"))


@pytest.mark.parametrize("rule", ["sigprop", "predsim"])
def test_a_learned_context_and_mixed_rules(rule: str) -> None:
    rules = {r"units\.[01]": rule, r"units\.2": "dfa"}
    run = functools.partial(trained, rules, layers=None, **({"learned": True} if rule == "sigprop" else {}))
    plain = run("immediate")
    assert same(plain, run("deferred")) and same(plain, run("summed"))


def test_when_weights_move(monkeypatch: pytest.MonkeyPatch) -> None:
    """Immediate: between the units' calls; else after the last one; and summed has one backward pass."""
    backwards = []
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: backwards.append(1) or grad(*a, **k))
    found = {}
    for update in UPDATES:
        manager, _, _ = trained("local_ce", update, steps=1)
        moved: list[bool] = []
        before = manager.model.units[0][0].weight.detach().clone()
        look = lambda *_, m=manager, b=before, s=moved: s.append(not torch.equal(b, m.model.units[0][0].weight))
        manager.model.head.register_forward_hook(look)
        backwards.clear()
        manager.step(torch.randn(6, 2, 4, 4).double(), torch.randint(3, (6,)))
        found[update] = moved, len(backwards)
    assert found == {"immediate": ([True], 4), "deferred": ([False], 4), "summed": ([False], 1)}


@pytest.mark.parametrize("update", UPDATES)
def test_a_step_that_fails_leaves_what_it_can(update: str) -> None:
    manager, _, _ = trained("local_ce", update, steps=2)
    before = copy.deepcopy(manager.model.state_dict())
    last = manager.units["units.2"].unit.objective
    with torch.no_grad():
        last.linear.bias.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match=r"units\.2"):
        manager.step(torch.randn(6, 2, 4, 4).double(), torch.randint(3, (6,)))
    first = torch.equal(before["units.0.0.weight"], manager.model.units[0][0].weight)
    assert first is (update != "immediate"), "units before the one that fails have stepped already"
    assert torch.equal(before["units.2.1.weight"], manager.model.units[2][1].weight)
    for prop in manager.propagators.values():
        assert prop.ticks == 0 and not prop.carry
        assert prop.diff is imprint.credit.eager
    with torch.no_grad():
        last.linear.bias.zero_()
    manager.step(torch.randn(6, 2, 4, 4).double(), torch.randint(3, (6,)))
    assert not torch.equal(before["units.2.1.weight"], manager.model.units[2][1].weight)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("rule", ["local_ce", "dfa", "pepita", "efp"])
def test_the_audit_moves_nothing(rule: str, update: str) -> None:
    manager, _, state = trained(rule, update)
    before = copy.deepcopy(state)
    assert audit_isolation(manager, torch.randn(6, 2, 4, 4).double(), torch.randint(3, (6,)), strict=True).ok
    after = manager.model.state_dict()
    assert all(torch.equal(after[k], before[k]) for k in after)


@pytest.mark.parametrize("update", ["tick", 3, "sum", None, True])
def test_unknown_modes(update: Any) -> None:
    with pytest.raises(ArgumentError, match="unknown update="):
        imprint.attach(Net(), "local_ce", update=update)
