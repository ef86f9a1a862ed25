"""Backpropagation's gradient is found beside a training without leaving a trace in it."""

from __future__ import annotations

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import imprint
from imprint.diagnostics import backprop_gradients, cosine
from imprint.diagnostics.alignment import plain_copy

from references.states import differences


class Net(nn.Module):
    """Dropout, running statistics, a shared and a parametrised weight, and a memory of its last call."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.4))
        self.b = parametrizations.weight_norm(nn.Linear(6, 6))
        self.c = nn.Linear(6, 3)
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x) * random.random()
        self.last = h
        return self.c(self.b(self.b(h)))


def test_it_is_autograds_gradient_with_the_next_random_numbers_and_nothing_is_changed() -> None:
    model, x, y = Net(), torch.randn(8, 5), torch.randint(3, (8,))
    model(x).sum().backward()  # the last activation has a graph, and there are gradients
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    twin = Net()
    twin.load_state_dict(model.state_dict())
    state, rng, python = copy.deepcopy(model.state_dict()), torch.get_rng_state(), random.getstate()
    found = backprop_gradients(model, x, y, F.cross_entropy)
    assert differences(state, model.state_dict()) == [] and torch.equal(rng, torch.get_rng_state())
    assert python == random.getstate() and model.last is not None and model.last.grad_fn is not None
    assert all(torch.equal(p.grad, grads[n]) for n, p in model.named_parameters() if p.grad is not None)
    F.cross_entropy(twin(x), y).backward()
    assert found.keys() == {n for n, _ in twin.named_parameters()}
    for name, p in twin.named_parameters():
        assert torch.equal(found[name], p.grad), name
    again = backprop_gradients(model, x, y, F.cross_entropy)
    assert differences(found, again)  # twin has drawn numbers since


def test_attached_or_not_it_is_the_same() -> None:
    x, y = torch.randn(8, 5), torch.randint(3, (8,))
    model = Net()
    expected = backprop_gradients(model, x, y, F.cross_entropy)
    rng, python = torch.get_rng_state(), random.getstate()
    manager = imprint.attach(model, "local_ce", layers=["a", "b"], example=x, num_classes=3)
    torch.set_rng_state(rng)
    random.setstate(python)
    assert differences(backprop_gradients(model, (x,), y, manager.task_loss), expected) == []
    assert differences(backprop_gradients(model, {"x": x}, y, F.cross_entropy), expected) == []
    copied = plain_copy(model)
    assert type(copied) is Net and type(copied.a) is nn.Sequential and copied.c.weight is model.c.weight


def test_what_the_loss_does_not_reach_is_left_out_and_cosines_take_it_as_zero() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    model.register_parameter("idle", nn.Parameter(torch.ones(1)))
    x = torch.randn(4, 2)
    found = backprop_gradients(model, x, None, lambda out, y: out.sum())
    assert list(found) == ["0.weight", "1.weight"]
    assert backprop_gradients(model, x, None, lambda out, y: torch.zeros(())) == {}
    assert cosine(found, {}) is None
    assert cosine(found, found) == pytest.approx(1.0)
    one, other = {"a": torch.tensor([1.0, 0.0])}, {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([3.0**0.5])}
    assert cosine(one, other) == pytest.approx(0.5)
    assert cosine(one, {"a": torch.tensor([0.0, 1.0])}) == 0.0
    assert cosine({"a": torch.zeros(2)}, one).isnan()
    assert cosine({"a": torch.tensor([1e-30])}, {"a": torch.tensor([-1e-30])}).isnan()  # lost in single precision
    assert cosine({"x": torch.ones(1)}, one) == 0.0


def test_training_under_autocast_is_not_changed_by_it() -> None:
    ends = []
    for monitors in ([], [imprint.monitors.metrics.Alignment(every=1), "linear_probe"]):
        torch.manual_seed(0)
        random.seed(0)
        manager = imprint.attach(Net(), "local_ce", layers=["a", "b"], monitors=monitors)
        for _ in range(3):
            with torch.autocast("cpu", torch.bfloat16):
                manager.step(torch.randn(8, 5), torch.randint(3, (8,)))
        ends.append(manager.state_dict())
        table = manager.metrics()
    assert differences(*ends) == []
    assert 0 < table["task"]["alignment"] < 1.0001 and 0 <= table["a"]["linear_probe"] <= 1
