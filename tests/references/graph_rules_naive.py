"""Rules on a graph of two modules, a GRU and an MLP in either order, written out with plain tensors, tick by tick.

Nothing of the engine runs here: weights are taken from a graph once, by name, and every formula is spelled out. What
comes in from another module and the state before a tick are constants; a module emits before its weights move.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from references.descent import Descent

Weights = dict[str, Tensor]


def gru(w: Weights, drive: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Gates r and z, candidate n; the new state is the output."""
    a, b = drive @ w["weight_ih"].T + w["bias_ih"], h @ w["weight_hh"].T + w["bias_hh"]
    size = h.shape[1]
    r = 1 / (1 + torch.exp(-(a[:, :size] + b[:, :size])))
    z = 1 / (1 + torch.exp(-(a[:, size : 2 * size] + b[:, size : 2 * size])))
    n = torch.tanh(a[:, 2 * size :] + r * b[:, 2 * size :])
    new = (1 - z) * n + z * h
    return new, new


def mlp(w: Weights, drive: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Two layers with tanh between them; no state."""
    return h, torch.tanh(drive @ w["w0"].T + w["b0"]) @ w["w1"].T + w["b1"]


@dataclass
class Cell:
    """One module with its incoming projection, its optimizer, and what it learns from.

    Attributes:
        step: ``(weights, drive, state) -> (state, output)``.
        w: its weights, those of the projection as ``p`` and ``q``, those of what a rule filled in as ``m`` and ``b``.
        state, held: before the next tick, and what its port shows.
        gathered: losses of the present update period.
    """

    step: Callable[[Weights, Tensor, Tensor], tuple[Tensor, Tensor]]
    w: Weights
    width: int
    descent: Any = None
    state: Tensor = field(default_factory=lambda: torch.zeros(0))
    held: Tensor = field(default_factory=lambda: torch.zeros(0))
    gathered: list[Tensor] = field(default_factory=list)

    def start(self, rows: int) -> None:
        """Zero states; nothing emitted."""
        self.state = torch.zeros(
            rows, self.w["weight_hh"].shape[1] if "weight_hh" in self.w else 0, dtype=torch.float64
        )
        self.held = torch.zeros(rows, self.width, dtype=torch.float64)

    def run(self, value: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One tick on what comes in."""
        return self.step(self.w, value @ self.w["p"].T + self.w["q"], state)

    def tick(self, value: Tensor, alive: Tensor) -> tuple[Tensor, Tensor]:
        """Run, and keep what rows that last made of it; returns ``(value, state before)``."""
        before = self.state
        with torch.no_grad():
            state, out = self.run(value, before)
        self.state = torch.where(alive[:, None], state, before)
        self.held = torch.where(alive[:, None], out, self.held)
        return value, before

    def move(self) -> None:
        """One step down what was gathered."""
        if not self.gathered:
            return
        for w in self.descent.params:
            w.grad = None
        torch.stack(self.gathered).sum().backward()
        self.descent.step()
        self.gathered = []


def cells_of(graph: Any, kinds: Iterable[str], descent: Descent, filled: dict[str, Any], lr: float) -> list[Cell]:
    """Copies of the weights of a chain of modules, and of the maps that a rule filled in."""
    made = []
    state = {k: v.detach().clone() for k, v in graph.state_dict().items() if k != "_extra_state"}
    for kind, name in zip(kinds, [n for n in graph.order if n != "x"], strict=True):
        edge = next(n for n in state if n.startswith("edges.") and f"__{name}_in" in n and n.endswith("proj.weight"))
        w = {"p": state[edge], "q": state[edge.replace("weight", "bias")]}
        own = f"nodes.{name}.proto."
        if kind == "gru":
            w |= {k: state[f"{own}cells.0.{k}"] for k in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
            width = w["weight_hh"].shape[1]
        else:
            w |= {
                f"{new}{i}": state[f"{own}layers.{i}.0.{k}"]
                for i in (0, 1)
                for new, k in (("w", "weight"), ("b", "bias"))
            }
            width = len(w["b1"])
        for key, term in filled.items():
            if key.startswith(f"{name}."):
                w |= {new: p.detach().clone() for new, p in zip("mb", term.parameters(), strict=False)}
        for v in w.values():
            v.requires_grad_(True)
        cell = Cell(gru if kind == "gru" else mlp, w, width)
        cell.descent = descent(list(w.values()))
        cell.descent.lr = lr
        made.append(cell)
    return made


def mean(losses: list[Tensor], rows: Tensor) -> Tensor | None:
    """Over the rows that count, one by one."""
    kept = [loss for loss, counts in zip(losses, rows, strict=True) if bool(counts)]
    return torch.stack(kept).sum() / len(kept) if kept else None


def ends(t: int, ticks: int, update: Any) -> bool:
    """Is t the last tick of its update period?"""
    return t == ticks - 1 or update == "tick" or (update != "rollout" and (t + 1) % update == 0)


def period(t: int, ticks: int, update: Any) -> range:
    """The ticks of the update period of t."""
    if update == "rollout":
        return range(ticks)
    size = 1 if update == "tick" else update
    return range(t // size * size, min(t // size * size + size, ticks))


@dataclass
class Batch:
    """Inputs ``[B, T, D]``, labels ``[B]``, ticks of each row."""

    x: Tensor
    y: Tensor
    length: list[int]

    @property
    def ticks(self) -> int:
        """Until the last row ends."""
        return max(self.length)

    def alive(self, t: int) -> Tensor:
        """``[B]`` rows that tick t belongs to."""
        return torch.tensor([t < n for n in self.length])

    def input(self, t: int) -> Tensor:
        """Zero where a row has ended."""
        return torch.where(self.alive(t)[:, None], self.x[:, t], torch.zeros_like(self.x[:, t]))


def pairs(batch: Batch, t: int, update: Any, last: int = 0) -> int:
    """Valid (row, tick) pairs in the update period of t, without the `last` ticks of each row."""
    ticks = batch.ticks
    return sum(sum(s < n - last for n in batch.length) for s in period(t, ticks, update))


def crossed(logits: Tensor, label: Tensor) -> Tensor:
    """Cross entropy of one row."""
    return logits.exp().sum().log() - logits[int(label)]


# -- local_ce


def headed(cell: Cell, out: Tensor, label: Tensor) -> Tensor:
    """Cross entropy of a head on one row."""
    return crossed(out @ cell.w["m"].T + cell.w["b"], label)


def grouped(cell: Cell, out: Tensor, label: Tensor, classes: int = 3) -> Tensor:
    """Features in order, one group a class, the first ones larger; the right group is to be the most active."""
    sizes = [len(out) // classes + (k < len(out) % classes) for k in range(classes)]
    means, start = [], 0
    for size in sizes:
        means.append((out[start : start + size] ** 2).sum() / size)
        start += size
    return crossed(torch.stack(means), label)


def projected(feedback: Tensor) -> Callable[[Cell, Tensor, Tensor], Tensor]:
    """The output along its label's row of a fixed matrix, ``[classes, D]``."""
    return lambda cell, out, label: (out * feedback[int(label)]).sum()


def local_ce(
    cells: list[Cell], batch: Batch, update: Any, declared: bool,
    losses: list[Callable[[Cell, Tensor, Tensor], Tensor]] | None = None,
) -> None:  # fmt: skip
    """Every module learns from its own output: through a head (or by its own of `losses`), one row after the other.

    The last one classifies directly if its loss is `declared`.
    """
    for cell in cells:
        cell.start(len(batch.x))
    for t in range(batch.ticks):
        value, alive = batch.input(t), batch.alive(t)
        for i, cell in enumerate(cells):
            incoming, before = cell.tick(value, alive)
            _, out = cell.run(incoming, before)
            direct = declared and i == len(cells) - 1
            own = headed if losses is None else losses[i]
            of = (lambda cell, out, label: crossed(out, label)) if direct else own
            rows = [of(cell, out[r], batch.y[r]) for r in range(len(alive)) if alive[r]]
            cell.gathered.append(torch.stack(rows).sum() / pairs(batch, t, update))
            value = cell.held
            if ends(t, batch.ticks, update):
                cell.move()


# -- predict_input


def squared(guess: Tensor, value: Tensor) -> Tensor:
    """Mean over the elements of one row."""
    return ((guess - value) ** 2).sum() / len(value)


def predict_input(cells: list[Cell], batch: Batch, update: Any, postponed: bool = True) -> None:
    """The first module predicts the next input, which is known; the second what the first will emit, a tick later.

    With `postponed` off the second learns at once, from what the first emits now: a negative control.
    """
    first, second = cells
    samples: dict[int, tuple[Tensor, Tensor]] = {}
    for cell in cells:
        cell.start(len(batch.x))
    for t in range(batch.ticks):
        value, alive = batch.input(t), batch.alive(t)
        before = first.tick(value, alive)
        if t + 1 < batch.ticks:
            target, count = batch.x[:, t + 1], pairs(batch, t, update, last=1)
            _predict(first, before, target, [t + 1 < n for n in batch.length], count)
        if ends(t, batch.ticks, update):
            first.move()
        samples[t] = second.tick(first.held, alive)
        learned = t - 1 if postponed else t
        if learned >= 0:
            rows, count = [t < n for n in batch.length], pairs(batch, learned, update, last=1 if postponed else 0)
            _predict(second, samples[learned], first.held, rows, count)
            if ends(learned, batch.ticks, update):
                second.move()
    second.move()


def _predict(cell: Cell, sample: tuple[Tensor, Tensor], target: Tensor, rows: list[bool], count: int) -> None:
    """With the weights of now, from the state and the input that were."""
    _, out = cell.run(*sample)
    guess = out @ cell.w["m"].T + cell.w["b"]
    losses = [squared(guess[r], target[r].detach()) for r in range(len(target)) if rows[r]]
    if losses:
        cell.gathered.append(torch.stack(losses).sum() / count)


# -- sigprop


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Of two vectors."""
    return (a * b).sum() / ((a * a).sum() ** 0.5 * (b * b).sum() ** 0.5)


def contrast(kind: str, h: Tensor, t: Tensor, y: Tensor, temperature: float = 0.1) -> Tensor:
    """Of the rows that count: each resembles the signal of its class. v14 weighs the classes by their rows."""
    counts = [sum(int(label) == k for label in y) for k in range(len(t))]
    losses = []
    for row, label in zip(h, y, strict=True):
        z = [cosine(row, signal) / temperature for signal in t]
        weights = [1] * len(t) if kind == "v1" else counts
        total = torch.stack([w * torch.exp(v) for w, v in zip(weights, z, strict=True) if w]).sum().log()
        losses.append(total - z[int(label)])
    return torch.stack(losses).sum() / len(losses)


def sigprop(
    cells: list[Cell], batch: Batch, update: Any, signal: Tensor, declared: bool, kind: str = "v1", mixed: bool = False
) -> None:
    """A pair (h, t) runs through every module, each stream with a state of its own; both are learned from.

    With `mixed` the signal starts every tick from no state: a negative control.
    """
    streams = [cells, [Cell(c.step, c.w, c.width) for c in cells]]
    for stream, rows in zip(streams, (len(batch.x), len(signal)), strict=True):
        for cell in stream:
            cell.start(rows)
    always = torch.ones(len(signal), dtype=torch.bool)
    for t in range(batch.ticks):
        value, alive, shown = batch.input(t), batch.alive(t), signal
        for i, (cell, other) in enumerate(zip(*streams, strict=True)):
            if mixed:
                other.state = torch.zeros_like(other.state)
            data, beside = cell.tick(value, alive), other.tick(shown, always)
            h, s = cell.run(*data)[1], other.run(*beside)[1]
            kept = [r for r in range(len(alive)) if alive[r]]
            share = len(kept) / pairs(batch, t, update)
            if declared and i == len(cells) - 1:
                loss = torch.stack([crossed(h[r], batch.y[r]) for r in kept]).sum() / len(kept)
            else:
                loss = contrast(kind, h[kept], s, batch.y[kept])
            cell.gathered.append(loss * share)
            value, shown = cell.held, other.held
            if ends(t, batch.ticks, update):
                cell.move()
