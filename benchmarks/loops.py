"""Nets of GRUs with local heads, by hand in torch: what graphs and their plans are measured beside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 10


class Link(nn.Module):
    """One of a chain: a projection, a GRU and a head."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.enter, self.cell = nn.Linear(features, features), nn.GRUCell(features, hidden)
        self.head = nn.Linear(hidden, CLASSES)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.cell(self.enter(x), h)


class Chain(nn.Module):
    """Links that learn on their own: each sees what is below it as data, and its own past too."""

    def __init__(self, features: int, hidden: int, modules: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.links = nn.ModuleList(Link(hidden if i else features, hidden) for i in range(modules))

    def states(self, x: Tensor) -> list[Tensor]:
        return [x.new_zeros(len(x), self.hidden) for _ in self.links]

    def ticks(self, x: Tensor, y: Tensor) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        """States and losses of all links, tick by tick."""
        states = self.states(x)
        for t in range(x.shape[1]):
            below, losses = x[:, t], []
            for i, link in enumerate(self.links):
                states[i] = link(below, states[i])
                losses.append(F.cross_entropy(link.head(states[i]), y))
                below = states[i] = states[i].detach()
            yield states, losses


def rolled(chain: Chain, batch: dict[str, Tensor], update: int = 1, one: bool = False, fused: bool = False) -> Any:
    """A rollout of a chain that steps every `update` ticks.

    Each link has its backward pass and its Adam, or all have `one`; the default Adam, or the `fused` one.
    """
    parts = [chain] if one else list(chain.links)
    optimizers = [adam(part, fused) for part in parts]

    def step() -> list[Tensor]:
        last: list[Tensor] = []
        for t, (last, losses) in enumerate(chain.ticks(batch["x"], batch["y"]), 1):  # noqa: B007
            for loss in [sum(losses[1:], losses[0])] if one else losses:
                (loss / update if update > 1 else loss).backward()
            if t % update == 0:
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
        return last

    return step


class Sequence(nn.Module):
    """The same widths with ``nn.GRU``, one layer for all ticks after the other, and one head at the end."""

    def __init__(self, features: int, hidden: int, modules: int) -> None:
        super().__init__()
        widths = [hidden if i else features for i in range(modules)]
        self.enter = nn.ModuleList(nn.Linear(width, width) for width in widths)
        self.layers = nn.ModuleList(nn.GRU(width, hidden) for width in widths)
        self.head = nn.Linear(hidden, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for enter, layer in zip(self.enter, self.layers, strict=True):
            x = layer(enter(x))[0]
        return x

    def like(self, chain: Chain) -> Sequence:
        """With a chain's weights."""
        for enter, layer, link in zip(self.enter, self.layers, chain.links, strict=True):
            enter.load_state_dict(link.enter.state_dict())
            layer.load_state_dict({f"{name}_l0": v for name, v in link.cell.state_dict().items()})
        self.head.load_state_dict(chain.links[-1].head.state_dict())
        return self


def through_time(net: Sequence, batch: dict[str, Tensor], fused: bool) -> Callable[[], Any]:
    """Backpropagation through time: a loss at every tick, one Adam step for all of them."""
    optimizer = adam(net, fused)

    def step() -> None:
        out = net.head(net(batch["x"].transpose(0, 1)))
        F.cross_entropy(out.flatten(0, 1), batch["y"].repeat(len(out))).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def adam(net: nn.Module, fused: bool = False) -> torch.optim.Optimizer:
    return torch.optim.Adam(net.parameters(), 1e-3, fused=True) if fused else torch.optim.Adam(net.parameters(), 1e-3)
