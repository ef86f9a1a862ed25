"""A step from which nothing can learn is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import imprint
from imprint.errors import ArgumentError, LabelError, ShapeError


def make(rule: Any, **options: Any) -> imprint.Manager:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    return imprint.attach(net, rule, **({"num_classes": 3} | options))


X, Y = torch.randn(6, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize("bound", [False, True])
def test_targets_are_demanded_where_only_the_task_loss_learns(bound: bool) -> None:
    manager = make("backprop")
    if bound:
        manager.step(X, Y)
    before = manager.steps
    with pytest.raises(LabelError, match="targets are missing"):
        manager.step(X)
    assert manager.steps == before
    with imprint.no_learning():
        assert manager.step(X).shape == (6, 3)


def test_targets_are_demanded_once_every_unit_is_frozen() -> None:
    manager = make("sim", layers=["0"])
    manager.step(X, Y)
    manager.freeze("0")
    with pytest.raises(LabelError, match="targets are missing"):
        manager.step(X)
    weight = manager.model[2].weight.detach().clone()
    manager.step(X, Y)
    assert not torch.equal(manager.model[2].weight, weight)


def detached(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(output.detach(), y)


@pytest.mark.parametrize("rule", ["local_ce", "backprop"])
def test_a_task_loss_without_a_graph_is_refused(rule: str) -> None:
    manager = make(rule, task_loss=detached, layers=["0"])
    with pytest.raises(ArgumentError, match="without a graph"):
        manager.step(X, Y)
    assert manager.steps == 0


@pytest.mark.parametrize("first", ["labelled", "unlabelled"])
def test_a_batch_without_labels_has_no_part_in_what_accumulates(first: str) -> None:
    def sgd(params: list[torch.Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(params, 0.1)

    one, two = (make("backprop", optimizer=sgd, accumulate=n) for n in (1, 2))
    one.step(X, Y)
    order = [Y, torch.full_like(Y, -100), Y]
    for y in order if first == "labelled" else order[1:] + order[:1]:
        two.step(X, y)
    assert two.gathered == 0 and two.steps == 3
    for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
        torch.testing.assert_close(a, b)  # the mean of the same batch twice is the batch


def test_a_size_that_a_later_unit_refuses_comes_after_earlier_units_have_learned() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    manager = imprint.attach(net, "sim", layers=["0", "3"], num_classes=3)
    x = torch.randn(6, 1, 8, 8)
    manager.step(x, Y)
    first, last = (net[i].weight.detach().clone() for i in (0, 3))
    with pytest.raises(ShapeError):
        manager.step(torch.randn(6, 1, 9, 9), Y)
    assert torch.equal(net[3].weight, last) and manager.steps == 1
    assert not torch.equal(net[0].weight, first)  # as manager.step says
