"""Equilibrium propagation by hand, one sample after another, and the exact gradient of the loss at the free rest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Weights = Sequence[tuple[Tensor, Tensor]]


def squash(drive: Tensor) -> Tensor:
    """A sigmoid with slope 1 at one half."""
    return 1 / (1 + torch.exp(2 - 4 * drive))


def drives(weights: Weights, states: Sequence[Tensor], control: str = "") -> list[Tensor]:
    """What each state but the input is driven by, from below and from above.

    Wrong on purpose: ``"feedforward"`` leaves out what comes from above.
    """
    found = []
    for i, (weight, bias) in enumerate(weights):
        drive = weight @ states[i] + bias
        if i + 1 < len(weights) and control != "feedforward":
            drive = drive + weights[i + 1][0].T @ states[i + 2]
        found.append(drive)
    return found


def rest(
    weights: Weights, states: Sequence[Tensor], steps: int, y: Tensor | None = None, beta: float = 0.0,
    control: str = "",
) -> list[Tensor]:  # fmt: skip
    """States of one sample after `steps`, all moved at once."""
    states = list(states)
    for _ in range(steps):
        found = drives(weights, states, control)
        if y is not None:
            found[-1] = found[-1] + beta * (y - states[-1])
        states = [states[0], *(squash(drive) for drive in found)]
    return states


def start(weights: Weights, x: Tensor) -> list[Tensor]:
    """Where settling begins: what the layers make of the input, not squashed."""
    states = [x]
    for weight, bias in weights:
        states.append(weight @ states[-1] + bias)
    return states


def contrast(
    weights: Weights, x: Tensor, y: Tensor, free: int, nudged: int, beta: float
) -> list[tuple[Tensor, Tensor]]:
    """The descent direction of one batch: how the couplings' product of states changes when the output is nudged."""
    sums = [(torch.zeros_like(w), torch.zeros_like(b)) for w, b in weights]
    for sample, target in zip(x, y, strict=True):
        before = rest(weights, start(weights, sample), free)
        after = rest(weights, before, nudged, target, beta)
        for i, (dw, db) in enumerate(sums):
            dw += (torch.outer(after[i + 1], after[i]) - torch.outer(before[i + 1], before[i])) / (beta * len(x))
            db += (after[i + 1] - before[i + 1]) / (beta * len(x))
    return sums


def gradient(
    weights: Weights, x: Tensor, y: Tensor, steps: int = 200, control: str = ""
) -> list[tuple[Tensor, Tensor]]:
    r"""Of :math:`\frac12\|y - s\|^2` at the free rest, a mean over samples, by the implicit function theorem.

    At rest :math:`s = \sigma(d(s))`, so :math:`ds/d\theta = (I - \Sigma'J)^{-1}\,\Sigma'\,\partial d/\partial\theta`.
    """
    sums = [(torch.zeros_like(w), torch.zeros_like(b)) for w, b in weights]
    sizes = [len(b) for _, b in weights]
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    spans = [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    for sample, target in zip(x, y, strict=True):
        states = rest(weights, start(weights, sample), steps, control=control)
        slope = torch.cat([4 * s * (1 - s) for s in states[1:]])
        coupling = torch.zeros(ends[-1], ends[-1], dtype=x.dtype)
        for i in range(1, len(weights)):
            coupling[spans[i], spans[i - 1]] = weights[i][0]
            if control != "feedforward":
                coupling[spans[i - 1], spans[i]] = weights[i][0].T
        wanted = torch.zeros(ends[-1], dtype=x.dtype)
        wanted[spans[-1]] = states[-1] - target
        adjoint = slope * torch.linalg.solve((torch.eye(ends[-1], dtype=x.dtype) - slope[:, None] * coupling).T, wanted)
        for i, (dw, db) in enumerate(sums):
            dw += torch.outer(adjoint[spans[i]], states[i]) / len(x)
            db += adjoint[spans[i]] / len(x)
            if i and control != "feedforward":  # the same weights carry what comes from above
                dw += torch.outer(states[i + 1], adjoint[spans[i - 1]]) / len(x)
    return sums
