"""Known limits of attached models that no other test pins; see docs/findings.md."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import imprint
from imprint.errors import StateError

K, B = 3, 6


class Skipping(nn.Module):
    """A residual layer that is left out in some passes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, K)
        self.skip: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.stem(x))
        if not (self.skip and self.skip.pop(0)):
            h = h + torch.tanh(self.block(h))
        return self.head(h)


def test_a_layer_skipped_in_a_step_learns_nothing_in_it() -> None:
    model = Skipping()
    manager = imprint.attach(model, "local_ce", num_classes=K)
    x, y = torch.randn(B, 4), torch.arange(B) % K
    for _ in range(2):  # heads start at zero, so the first step moves them alone
        manager.step(x, y)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.skip = [True]
    manager.step(x, y)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"stem.weight", "stem.bias", "head.weight", "head.bias"}


def test_a_layer_skipped_in_the_context_pass_alone_is_refused() -> None:
    model = Skipping()
    manager = imprint.attach(model, "sigprop", num_classes=K)
    x, y = torch.randn(B, 4), torch.arange(B) % K
    manager.step(x, y)
    model.skip = [True, False]
    with pytest.raises(StateError, match=r"unit 'block'[\s\S]*not called in the context pass"):
        manager.step(x, y)
    manager.step(x, y)


def test_a_unit_that_is_silent_stays_silent_under_sigprop() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, K))
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    before = model[0].weight.detach().clone()
    manager = imprint.attach(model, "sigprop", num_classes=K)
    for _ in range(3):
        manager.step(torch.randn(B, 4), torch.arange(B) % K)
    assert torch.equal(model[0].weight, before)
    with torch.no_grad():
        model[0].bias.zero_()
    manager.step(torch.randn(B, 4), torch.arange(B) % K)
    assert not torch.equal(model[0].weight, before)


class Reads(TorchDispatchMode):
    """Counts numbers that Python reads from tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("rule", ["local_ce", "sigprop"])
def test_every_unit_reads_one_number_a_step(rule: str) -> None:
    def reads(depth: int) -> int:
        blocks = [nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(depth)]
        manager = imprint.attach(nn.Sequential(*blocks, nn.Linear(4, K)), rule, num_classes=K)
        x, y = torch.randn(B, 4), torch.arange(B) % K
        manager.step(x, y)
        with Reads() as counter:
            manager.step(x, y)
        return counter.count

    assert reads(5) - reads(2) == 3
