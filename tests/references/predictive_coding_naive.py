"""Predictive coding by hand: tanh layers and a linear one, one sample after another, every derivative written out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Weights = Sequence[tuple[Tensor, Tensor]]


def predict(weights: Weights, i: int, below: Tensor) -> tuple[Tensor, Tensor]:
    """What layer `i` predicts, and the slope of its activation there."""
    weight, bias = weights[i]
    drive = weight @ below + bias
    if i == len(weights) - 1:
        return drive, torch.ones_like(drive)
    return torch.tanh(drive), 1 - torch.tanh(drive) ** 2


def settle(weights: Weights, x: Tensor, y: Tensor, steps: int, rate: float, control: str = "") -> list[Tensor]:
    """States of one sample from the input to the label, after `steps` of descent on the hidden ones.

    Wrong on purpose: ``"slope"`` leaves the derivative of the activation out.
    """
    states = [x]
    for i in range(len(weights)):
        states.append(predict(weights, i, states[-1])[0])
    states[-1] = y
    for _ in range(steps):
        errors = [states[i + 1] - predict(weights, i, states[i])[0] for i in range(len(weights))]
        moved = list(states)
        for i in range(1, len(weights)):
            slope = predict(weights, i, states[i])[1]
            slope = torch.ones_like(slope) if control == "slope" else slope
            moved[i] = states[i] - rate * (errors[i - 1] - weights[i][0].T @ (slope * errors[i]))
        states = moved
    return states


def energy(weights: Weights, states: Sequence[Tensor]) -> float:
    """Half the squared errors of one sample."""
    errors = [states[i + 1] - predict(weights, i, states[i])[0] for i in range(len(weights))]
    return sum(0.5 * float((e**2).sum()) for e in errors)


def update(
    weights: Weights, x: Tensor, y: Tensor, steps: int, rate: float, lr: float, control: str = ""
) -> list[tuple[Tensor, Tensor]]:
    """Weights after one step down the settled energy, a mean over samples.

    Wrong on purpose: ``"unsettled"`` learns before the states have moved.
    """
    sums = [(torch.zeros_like(w), torch.zeros_like(b)) for w, b in weights]
    for sample, target in zip(x, y, strict=True):
        states = settle(weights, sample, target, 0 if control == "unsettled" else steps, rate, control)
        for i in range(len(weights)):
            prediction, slope = predict(weights, i, states[i])
            delta = slope * (states[i + 1] - prediction)
            sums[i][0].add_(torch.outer(delta, states[i]))
            sums[i][1].add_(delta)
    return [(w + lr * dw / len(x), b + lr * db / len(x)) for (w, b), (dw, db) in zip(weights, sums, strict=True)]
