"""What rules make of the digits in a few epochs, by their defaults: enough, or too little for a known reason."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import imprint
from imprint.data import load_h5

DIGITS = Path(__file__).parents[2] / "examples/data/digits.h5"
BETTER = ("cwcomp", "dfa", "dgl", "efp", "infopro", "local_ce", "pepita", "predsim", "sigprop", "sim", "symba")


@functools.cache
def data() -> imprint.data.Data:
    return load_h5(DIGITS).normalized()


@functools.cache
def accuracy(rule: str, norm: bool = False, epochs: int = 4) -> float:
    """Of a net with two hidden layers of 128 rectifiers, with BatchNorm (without weights) in front of each or not."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Flatten()]
    for width in (64, 128):
        layers += [nn.BatchNorm1d(width, affine=False)] if norm else []
        layers += [nn.Linear(width, 128), nn.ReLU()]
    hidden = [f"{i}|{i + 1}" for i, m in enumerate(layers) if isinstance(m, nn.Linear)]
    manager = imprint.attach(nn.Sequential(*layers, nn.Linear(128, 10)), dict.fromkeys(hidden, rule), num_classes=10)
    for _ in range(epochs):
        for rows in torch.randperm(len(data().x_train)).split(32):
            manager.step(data().x_train[rows], data().y_train[rows])
    return manager.evaluate((data().x_test, data().y_test))["accuracy"]


@pytest.mark.parametrize("rule", BETTER)
def test_better_than_random_features(rule: str) -> None:
    """The same classifier on hidden layers that rest."""
    assert accuracy(rule) > accuracy("frozen") + 0.05


@pytest.mark.parametrize("rule", ["hebb", "oja", "instar", "krotov"])
def test_hebbian_rules_need_inputs_without_a_mean(rule: str) -> None:
    assert accuracy(rule, norm=True) > 0.7
    assert rule == "krotov" or accuracy(rule) < 0.3


def test_softhebb_needs_its_own_start() -> None:
    """Published: weights of deviation 25 / sqrt(fan-in)."""

    def trained(scale: float) -> float:
        torch.manual_seed(0)
        layer = nn.Linear(64, 128, bias=False)
        nn.init.normal_(layer.weight, std=scale)
        model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64, affine=False), layer, nn.ReLU(), nn.Linear(128, 10))
        manager = imprint.attach(model, {"2|3": "softhebb"}, num_classes=10)
        for _ in range(4):
            for rows in torch.randperm(len(data().x_train)).split(32):
                manager.step(data().x_train[rows], data().y_train[rows])
        return manager.evaluate((data().x_test, data().y_test))["accuracy"]

    assert trained(25 / 8) > 0.7 and accuracy("softhebb") < 0.3


def test_signs_of_errors_need_normalisation() -> None:
    assert accuracy("sdfa") < 0.5 and accuracy("sdfa", norm=True) > 0.8


@pytest.mark.parametrize("rule", ["softhebb", "krotov"])
def test_clipping_has_no_effect_on_scaled_steps(rule: str) -> None:
    def moved(**options: Any) -> torch.Tensor:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
        manager = imprint.attach(model, {"0": rule}, num_classes=10, **options)
        manager.step(data().x_train[:32].flatten(1), data().y_train[:32])
        return model[0].weight.detach()

    torch.testing.assert_close(moved(), moved(grad_clip=1e-6), rtol=1e-3, atol=1e-6)
