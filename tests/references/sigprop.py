"""Signal propagation by hand: loops over samples, classes and positions, plain autograd, nothing of imprint.

One step of a chain, as the method's reference implementation orders it: a unit runs on the data, then, in a second
call, on the context; it finds its loss, takes its step, and hands on what it had computed *before* the step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """Dot product of two samples: over channels, averaged over positions."""
    if a.dim() <= 1:
        return (a * b).sum()
    a, b = a.flatten(1), b.flatten(1)
    total = a.new_zeros(())
    for s in range(a.shape[1]):
        total = total + (a[:, s] * b[:, s]).sum()
    return total / a.shape[1]


def log_probabilities(h: Tensor, t: Tensor) -> list[Tensor]:
    """log softmax over the context rows, for each sample."""
    made = []
    for i in range(len(h)):
        row = torch.stack([similarity(h[i], t[j]) for j in range(len(t))])
        made.append(row - row.exp().sum().log())
    return made


def target_rows(t0: Tensor) -> list[list[float]]:
    return [[float(similarity(t0[i], t0[j])) for j in range(len(t0))] for i in range(len(t0))]


def best(row: list[float]) -> list[int]:
    """Where the maximum is reached, rounding apart."""
    top = max(row)
    return [j for j, v in enumerate(row) if abs(v - top) <= 1e-9 * max(map(abs, row))]


def v1(h: Tensor, t: Tensor, t0: Tensor, y: Tensor) -> Tensor:
    logs = log_probabilities(h, t)
    return sum((-logs[i][int(y[i])] for i in range(len(h))), h.new_zeros(())) / len(h)


def v9(h: Tensor, t: Tensor, t0: Tensor, y: Tensor) -> Tensor:
    logs, rows = log_probabilities(h, t), target_rows(t0)
    total = h.new_zeros(())
    for i in range(len(h)):
        for j in best(rows[i]):
            total = total - logs[i][j]
    return total / len(h)


def v14(h: Tensor, t: Tensor, t0: Tensor, y: Tensor) -> Tensor:
    logs, rows = log_probabilities(h, t), target_rows(t0)
    lot = torch.rand(len(h), len(t))  # the tie that draws the largest number wins
    total = h.new_zeros(())
    for i in range(len(h)):
        total = total - logs[i][max(best(rows[i]), key=lambda j, i=i: float(lot[i, j]))]
    return total / len(h)


def v15(k: int) -> Callable[..., Tensor]:
    def loss(h: Tensor, t: Tensor, t0: Tensor, y: Tensor) -> Tensor:
        logs, rows = log_probabilities(h, t), target_rows(t0)
        total = h.new_zeros(())
        for i in range(len(h)):
            order = torch.tensor(rows[i], dtype=t0.dtype).topk(min(k, len(t))).indices
            for j in order.tolist():
                total = total - logs[i][j]
        return total / len(h)

    return loss


@dataclass
class Unit:
    """One link: a module on both streams, its loss, its optimizer. Without a loss it does not learn."""

    module: nn.Module
    loss: Callable[..., Tensor] | None = None
    optimizer: torch.optim.Optimizer | None = None


@dataclass
class Chain:
    """A signal (a module for the context, one for the data), links, and a classifier trained by backprop.

    Args:
        emit: ``"before"`` the step, or ``"after"`` (wrong: the control).
        backward: ``"local"``, or ``"joint"`` (wrong: one backward pass through all links).
    """

    context: nn.Module
    input: nn.Module
    signal: Unit
    units: list[Unit]
    head: Unit
    output_shape: tuple[int, ...]
    rows: Callable[[Tensor], Tensor]
    emit: str = "before"
    backward: str = "local"
    losses: list[float] = field(default_factory=list)

    def step(self, x: Tensor, y: Tensor, signal: Tensor | None = None) -> Tensor:
        """One training step on a batch; `signal` takes the place of the formatted labels."""
        out = self.pass_(x, self.rows(y) if signal is None else signal, y)
        loss = F.cross_entropy(out, y)
        self.head.optimizer.zero_grad()
        if self.backward == "joint":
            (loss + sum(self._pending)).backward()
            for unit in (self.signal, *self.units):
                if unit.optimizer is not None:
                    unit.optimizer.step()
                    unit.optimizer.zero_grad()
            self._pending = []
        else:
            loss.backward()
        self.head.optimizer.step()
        return out

    def pass_(self, x: Tensor, c0: Tensor, y: Tensor) -> Tensor:
        """A pass in which all but the classifier learn."""
        self.losses = []
        h, t = self._learn(self.signal, self._signal, x, c0, *self._signal(x, c0), y)
        for unit in self.units:
            h, t = self._link(unit, h, t, y)
        return self.head.module(h)

    def infer(self, x: Tensor) -> Tensor:
        """Only the data, no learning."""
        with torch.no_grad():
            h = self.input(x)
            for unit in self.units:
                h = unit.module(h)
            return self.head.module(h)

    def __post_init__(self) -> None:
        self._pending: list[Tensor] = []

    def _signal(self, x: Tensor, c0: Tensor) -> tuple[Tensor, Tensor]:
        t = self.context(c0.flatten(1) if c0.dim() > 1 else c0[:, None]).view(len(c0), *self.output_shape)
        return self.input(x), t

    def _link(self, unit: Unit, h: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if self.backward == "local":
            h, t = h.detach(), t.detach()

        def run(h: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            return unit.module(h), unit.module(t)

        h1, t1 = run(h, t)
        return self._learn(unit, run, h, t, h1, t1, y)

    def _learn(
        self, unit: Unit, run: Any, h0: Tensor, t0: Tensor, h1: Tensor, t1: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor]:
        if unit.loss is None:
            return h1, t1
        loss = unit.loss(h1, t1, t0.detach(), y)
        self.losses.append(float(loss.detach()))
        if self.backward == "joint":
            self._pending.append(loss)
            return h1, t1
        if unit.optimizer is not None:
            unit.optimizer.zero_grad()
            loss.backward()
            unit.optimizer.step()
            unit.optimizer.zero_grad()
            if self.emit == "after":
                h1, t1 = run(h0, t0)
        return h1.detach(), t1.detach()


def clone(modules: Sequence[nn.Module]) -> list[nn.Module]:
    """Copies that start from the same weights."""
    return list(copy.deepcopy(nn.ModuleList(modules)))
