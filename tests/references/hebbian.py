"""Hebbian rules by hand: one sample, one patch, one unit at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from references.descent import Adam, Descent, cross_entropy

Rule = Callable[..., list[tuple[float, float]]]
"""From the outputs of units that compete to how much of the input each takes up, and of its weight it forgets."""


def hebb(u: list[float], control: str = "") -> list[tuple[float, float]]:
    """Output times input."""
    return [(math.tanh(v) if control == "behind the activation" else v, 0.0) for v in u]


def oja(u: list[float], control: str = "") -> list[tuple[float, float]]:
    """Output times input; forgets by the output's square."""
    return [(v, abs(v) if control == "wrong decay" else v * v) for v in u]


def instar(u: list[float], control: str = "") -> list[tuple[float, float]]:
    """Positive output times the way from weight to input."""
    return [(v, v) if v > 0 or control == "negative, too" else (0.0, 0.0) for v in u]


def krotov(u: list[float], k: int = 2, delta: float = 0.4, control: str = "") -> list[tuple[float, float]]:
    """The strongest learns, the k-th is pushed away."""
    order = sorted(range(len(u)), key=lambda i: -u[i])
    g = [0.0] * len(u)
    g[order[0]] = 1.0
    g[order[-1 if control == "last" else k - 1]] = -delta
    return [(a, a if control == "wrong decay" else a * v) for a, v in zip(g, u, strict=True)]


def softhebb(u: list[float], beta: float = 1.0, control: str = "") -> list[tuple[float, float]]:
    """Softmax, with a minus for all but the strongest."""
    top = max(u)
    shares = [math.exp(beta * (v - top)) for v in u]
    winner = u.index(top)
    y = [s / sum(shares) for s in shares]
    if control != "all for":
        y = [v if i == winner else -v for i, v in enumerate(y)]
    return [(a, 0.0 if control == "no decay" else a * v) for a, v in zip(y, u, strict=True)]


RULES: dict[str, Rule] = {"hebb": hebb, "oja": oja, "instar": instar, "krotov": krotov, "softhebb": softhebb}


def patches(layer: nn.Module, x: Tensor) -> Iterator[tuple[int, Tensor]]:
    """``(group, patch)`` of all samples and positions; what lies outside is zero."""
    if isinstance(layer, nn.Linear):
        for v in x.reshape(-1, x.shape[-1]):
            yield 0, v
        return
    kernel, dims = layer.kernel_size, len(layer.kernel_size)
    if layer.padding == "same":
        before = [d * (k - 1) // 2 for d, k in zip(layer.dilation, kernel, strict=True)]
        space = list(x.shape[2:])
    else:
        before = [0] * dims if layer.padding == "valid" else list(layer.padding)
        space = [
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, p, d, k, s in zip(x.shape[2:], before, layer.dilation, kernel, layer.stride, strict=True)
        ]
    width = x.shape[1] // layer.groups
    for sample in x:
        for position in itertools.product(*map(range, space)):
            for group in range(layer.groups):
                seen = []
                for channel in range(group * width, (group + 1) * width):
                    for offset in itertools.product(*map(range, kernel)):
                        at = [
                            position[i] * layer.stride[i] + offset[i] * layer.dilation[i] - before[i]
                            for i in range(dims)
                        ]
                        inside = all(0 <= a < n for a, n in zip(at, x.shape[2:], strict=True))
                        seen.append(sample[(channel, *at)] if inside else sample.new_zeros(()))
                yield group, torch.stack(seen)


@torch.no_grad()
def change(layer: nn.Module, x: Tensor, rule: str, control: str = "", **options: Any) -> Tensor:
    """The change of a layer's weight, the mean over samples and positions."""
    rows, grown, count = layer.weight.flatten(1), torch.zeros_like(layer.weight.flatten(1)), 0
    groups = getattr(layer, "groups", 1)
    units = len(rows) // groups
    own = "" if control in ("sum", "after", "chained") else control
    for group, v in patches(layer, x):
        mine = range(group * units, (group + 1) * units)
        u = [float(rows[i] @ v + (0.0 if layer.bias is None else layer.bias[i])) for i in mine]
        for i, (takes, forgets) in zip(mine, RULES[rule](u, control=own, **options), strict=True):
            grown[i] += takes * v - forgets * rows[i]
        count += 1
    return (grown if control == "sum" else grown / (count // groups)).view_as(layer.weight)


class NormScaled:
    """Each unit by its distance from length one, its change by the largest one of the layer."""

    def __init__(self, params: Any, lr: float = 0.08, power: float = 0.5) -> None:
        self.params, self.lr, self.power = list(params), lr, power

    @torch.no_grad()
    def step(self) -> None:
        """One step."""
        for p in self.params:
            if p.grad is None:
                continue
            largest = max(abs(v) for v in p.grad.flatten().tolist())
            for row, g in zip(p, p.grad, strict=True):
                length = math.sqrt(sum(v * v for v in row.flatten().tolist()))
                row -= self.lr * (abs(length - 1) + 1e-10) ** self.power * g / largest
            p.grad = None


def train(
    units: Sequence[nn.Sequential],
    classifier: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    descent: Descent,
    rule: str = "hebb",
    own: Callable[[Any], Any] | None = None,
    control: str = "",
    **options: Any,
) -> None:
    """Train in place: the first layer of each unit learns; the classifier by `descent`, or Adam beside an `own` one.

    Wrong on purpose, besides what a rule calls so: ``"sum"`` (no mean) and ``"after"``.
    """
    steps = [(own or descent)(u.parameters()) for u in units]
    last = descent(classifier.parameters()) if own is None else Adam(classifier.parameters(), 5e-4)
    for x, y in batches:
        h = x
        for unit, optimizer in zip(units, steps, strict=True):
            with torch.no_grad():
                grown = change(unit[0], h, rule, control, **options)
                out = unit(h)
                unit[0].weight.grad = -grown
                optimizer.step()
                h = unit(h) if control == "after" else out
        cross_entropy(classifier(h), y).backward()
        last.step()
