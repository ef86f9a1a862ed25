"""Backpropagation by hand: tanh layers and a linear one under softmax, the chain rule written out, sample by sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from references.descent import Descent, cross_entropy, softmax


def train(model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], descent: Descent) -> None:
    """Train any model in place, by autograd."""
    optimizer = descent(model.parameters())
    for x, y in batches:
        cross_entropy(model(x), y).backward()
        optimizer.step()


def train_dense(
    layers: Sequence[nn.Linear], batches: Sequence[tuple[Tensor, Tensor]], lr: float, control: str = ""
) -> None:
    """Train in place; all but the last layer have a tanh.

    Wrong on purpose: ``"symmetric"`` is right, ``"fixed"`` sends errors back through the weights of the first step.
    """
    first = [layer.weight.detach().clone() for layer in layers]
    with torch.no_grad():
        for x, y in batches:
            steps = [(torch.zeros_like(layer.weight), torch.zeros_like(layer.bias)) for layer in layers]
            for v, label in zip(x, y, strict=True):
                activity = [v]
                for layer in layers[:-1]:
                    activity.append(torch.tanh(layer.weight @ activity[-1] + layer.bias))
                error = softmax(layers[-1].weight @ activity[-1] + layers[-1].bias)
                error[int(label)] -= 1
                for i in reversed(range(len(layers))):
                    steps[i][0].add_(torch.outer(error, activity[i]) / len(y))
                    steps[i][1].add_(error / len(y))
                    back = first[i] if control == "fixed" else layers[i].weight
                    error = (back.T @ error) * (1 - activity[i] ** 2)
            for layer, (step_w, step_b) in zip(layers, steps, strict=True):
                layer.weight -= lr * step_w
                layer.bias -= lr * step_b
