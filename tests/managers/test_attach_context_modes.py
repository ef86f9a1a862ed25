"""How a unit learns from its context (kept, again, together) changes memory and time, never the numbers."""

import copy

import pytest
import torch
from torch import Tensor, nn

import imprint

K = 4


class Net(nn.Module):
    """`write` scales in place what the second unit has read, as a careless residual connection does."""

    def __init__(self, norm: bool, write: bool) -> None:
        super().__init__()
        layer = lambda i: nn.Sequential(nn.Linear(i, 8), *[nn.BatchNorm1d(8)] * norm, nn.Tanh())
        self.a, self.b, self.c, self.head = layer(6), layer(8), layer(8), nn.Linear(8, K)
        self.write = write

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        z = self.b(h)
        h = h.mul_(0.5) if self.write else h * 0.5
        return self.head(self.c(torch.relu_(z)) + h if self.write else self.c(torch.relu(z)) + h)


def trained(model: nn.Module, mode: str | None = None) -> tuple[list[Tensor], dict[str, str]]:
    torch.manual_seed(1)
    model = copy.deepcopy(model)
    manager = imprint.attach(
        model, "sigprop", layers="[abc]", num_classes=K, optimizer=lambda p: torch.optim.SGD(p, 0.1)
    )
    x, y = torch.randn(12, 6, dtype=torch.float64), torch.arange(12) % K
    manager.bind(x, y)
    modes = {name: agent.unit.context_mode for name, agent in manager.units.items()}
    for agent in manager.units.values() if mode else ():
        agent.unit.context_mode = mode
    for _ in range(4):
        manager.step(x, y)
    return [p.detach() for p in model.parameters()] + list(model.buffers()), modes


@pytest.mark.parametrize("norm", [False, True])
def test_modes_agree(norm: bool) -> None:
    model = Net(norm, write=False).double()
    expected, modes = trained(model)
    assert set(modes.values()) == ({"kept", "again"} if norm else {"together"})
    for mode in ("kept", "again") if norm else ("kept", "again", "together"):
        torch.testing.assert_close(trained(model, mode)[0], expected, rtol=1e-11, atol=1e-12)
    if norm:  # rows that depend on each other must not share a product
        wrong = trained(model, "together")[0]
        assert max(float((a - b).abs().max()) for a, b in zip(wrong, expected, strict=True)) > 1e-3


@pytest.mark.parametrize("norm", [False, True])
def test_writing_into_a_units_input_or_output_changes_nothing(norm: bool) -> None:
    plain, writing = Net(norm, write=False).double(), Net(norm, write=True).double()
    writing.load_state_dict(plain.state_dict())
    found, modes = trained(writing)
    assert modes["b"] == ("again" if norm else "together")
    torch.testing.assert_close(found, trained(plain)[0], rtol=1e-11, atol=1e-12)
