"""Maps [B, C, H, W] or tokens [B, ..., E]: what a unit's output is decides how its objective reads it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import imprint

K, B, C = 3, 4, 5


class StdConv(nn.Conv2d):
    """A convolution whose weights are standardised; its name does not end as torch's do."""

    def forward(self, input: Tensor) -> Tensor:
        weight = (self.weight - self.weight.mean()) / self.weight.std()
        return F.conv2d(input, weight, self.bias, padding=1)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(C, 2, 3, 3) / 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel, padding=1)


class Windows(nn.Module):
    """Acts on the last dimension of a grid of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(2), nn.Linear(2, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x))


class Gated(nn.Module):
    """Squeeze and excitation: linear layers inside, and none of them makes the output's last dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.gate = Functional(), nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return h * torch.sigmoid(self.gate(h.mean((2, 3))))[..., None, None]


class Net(nn.Module):
    def __init__(self, unit: nn.Module, channels_last: bool) -> None:
        super().__init__()
        self.unit, self.channels_last, self.out = unit, channels_last, nn.Linear(C, K)

    def forward(self, x: Tensor) -> Tensor:
        h = self.unit(x)
        return self.out(h.mean((1, 2) if self.channels_last else (2, 3)))


UNITS = {
    "derived": (lambda: StdConv(2, C, 3), False),
    "functional": (Functional, False),
    "gated": (Gated, False),
    "torch": (lambda: nn.Conv2d(2, C, 3, padding=1), False),
    "windows": (Windows, True),
}


@pytest.mark.parametrize("kind", UNITS)
@pytest.mark.parametrize("rule", ["local_ce", "sim"])
def test_maps_and_tokens_are_told_apart_by_what_is_inside(kind: str, rule: str) -> None:
    make, tokens = UNITS[kind]
    manager = imprint.attach(Net(make(), tokens), rule, layers=["unit"])
    shape = (B, 6, 8, 2) if tokens else (B, 2, 6, 8)
    manager.step(torch.randn(shape), torch.arange(B) % K)
    objective = manager.units["unit"].unit.objective
    assert manager.units["unit"].unit.channels_last is tokens
    if rule == "local_ce":  # maps of 240 numbers are kept whole, tokens are read through their mean
        assert objective.linear.in_features == (C if tokens else C * 6 * 8)
    else:
        assert isinstance(objective.projection, nn.Linear if tokens else nn.Conv2d)
        assert objective.projection.weight.shape[0] == C
