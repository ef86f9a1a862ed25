"""Buffers are copied where something may write to them, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import imprint
from imprint.propagators.buffers import Buffers


class Net(nn.Module):
    """A large constant, a counter, running statistics, and a table that is written to past version counters."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.out = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)
        self.register_buffer("mask", torch.ones(64, 4))
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("table", torch.zeros(4))
        self.register_buffer("empty", None)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
            self.table.data.add_(1.0)
        return self.out(self.norm(self.fc(x)).relu() * self.mask[: len(x)])


def make(rule: str = "sigprop") -> imprint.Manager:
    torch.manual_seed(0)
    return imprint.attach(Net(), rule, layers=["fc"], num_classes=3)


def batch(seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, 4, generator=generator), torch.randint(3, (6,), generator=generator)


@pytest.fixture
def cloned() -> Iterator[list[int]]:
    """Sizes of what is cloned."""
    sizes: list[int] = []
    clone = Tensor.clone

    def counting(self: Tensor, **options: object) -> Tensor:
        sizes.append(self.numel())
        return clone(self, **options)

    with mock.patch.object(Tensor, "clone", counting):
        yield sizes


@pytest.mark.parametrize("rule", ["sigprop", "local_ce"])
def test_a_constant_is_copied_in_the_first_step_alone(rule: str, cloned: list[int]) -> None:
    manager = make(rule).bind(*batch())
    cloned.clear()
    manager.step(*batch())
    assert 256 in cloned
    cloned.clear()
    for seed in (2, 3):
        manager.step(*batch(seed))
    assert 256 not in cloned and cloned
    manager.model.mask.mul_(0.5)  # written to from outside
    manager.step(*batch())
    assert 256 in cloned
    cloned.clear()
    manager.step(*batch())
    assert 256 not in cloned


def test_the_context_pass_leaves_no_trace_in_any_buffer() -> None:
    manager = make()
    for n in (1, 2, 3):
        manager.step(*batch(n))
        assert manager.model.calls == n and manager.model.norm.num_batches_tracked == n
        assert torch.equal(manager.model.table, torch.full((4,), float(n)))


def test_a_failed_step_gives_all_written_buffers_back() -> None:
    manager = make("local_ce")
    for n in (1, 2):
        manager.step(*batch(n))
    before = {k: v.clone() for k, v in manager.model.named_buffers()}
    x, y = batch()
    with pytest.raises(imprint.errors.NonFiniteError):
        manager.step(x * torch.nan, y)
    assert all(torch.equal(v, before[k]) for k, v in manager.model.named_buffers())


def test_a_norm_that_is_switched_on_later_is_lent() -> None:
    manager = make()
    manager.model.norm.eval()
    manager.step(*batch())
    manager.model.norm.train()
    for n in (1, 2):
        manager.step(*batch(n))
        assert manager.model.norm.num_batches_tracked == n


def test_a_part_learns_of_constants_from_the_whole(cloned: list[int]) -> None:
    net = Net()
    whole = Buffers([net])
    part = whole.of([net])
    with whole.kept_on_error():
        pass
    cloned.clear()
    with part.borrowed():
        assert net.empty is None
    assert 256 not in cloned
