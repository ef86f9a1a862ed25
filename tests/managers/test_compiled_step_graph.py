"""An attached model's step as a CUDA graph, emulated."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from imprint.errors import StateError
from imprint.managers import Manager, attach


def manager(**options: object) -> Manager:
    """A small net with BatchNorm, and how its step runs."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    made = attach(net.double(), "local_ce", num_classes=3)
    if options:
        made.compile(**options)  # type: ignore[arg-type]
    return made


def test_replays_learn_the_same() -> None:
    """Outputs, weights and running statistics, batch by batch."""
    eager, replayed = manager(), manager(backend="cuda_graph", allow_emulation=True)
    start = {k: v.clone() for k, v in eager.model.state_dict().items()}
    x, y = torch.randn(4, 10, 6, dtype=torch.float64), torch.randint(3, (4, 10))
    for xs, ys in zip(x, y, strict=True):
        torch.testing.assert_close(replayed.step(xs, ys), eager.step(xs, ys), rtol=1e-12, atol=1e-12)
    for name, v in eager.model.state_dict().items():
        torch.testing.assert_close(replayed.model.state_dict()[name], v, rtol=1e-12, atol=1e-12, msg=name)
        assert not torch.equal(v, start[name]), name


def test_without_a_device_it_is_refused() -> None:
    """Unless emulation was asked for."""
    with pytest.raises(StateError, match=r"needs a CUDA device"):
        manager(backend="cuda_graph")
