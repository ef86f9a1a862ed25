"""Error-driven input modulation (Dellaferrera & Kreiman 2022), sample by sample, every product written out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from references.descent import Descent
from references.feedback_alignment import Batch, patches, run


def train(
    units: Sequence[nn.Module], feedback: Tensor, classifier: nn.Module, batches: Sequence[Batch], descent: Descent,
    control: str = "",
) -> None:  # fmt: skip
    """Train in place. Units are a layer and tanh.

    Wrong on purpose: ``"derivative"`` (of tanh), ``"first input"`` (the first pass's inputs in the products),
    ``"first error"`` (for the output), ``"minus"`` (the error subtracted).
    """
    layers = [unit[0] for unit in units] + [classifier[-1]]  # type: ignore[index]
    steps = [descent(layer.parameters()) for layer in layers]

    def through(x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        inputs, outputs = [], []
        for i, layer in enumerate(layers):
            inputs.append(x if i < len(units) else x.flatten())
            x = run(layer, inputs[-1])
            x = torch.tanh(x) if i < len(units) else x
            outputs.append(x)
        return inputs, outputs

    for x, y in batches:
        with torch.no_grad():
            sums = [[torch.zeros_like(p) for p in layer.parameters()] for layer in layers]
            for v, label in zip(x, y, strict=True):
                inputs, outputs = through(v)
                error = outputs[-1].softmax(0)
                error[int(label)] -= 1
                added = (feedback.T @ error).view(v.shape)
                again, changed = through(v - added if control == "minus" else v + added)
                late = error if control == "first error" else changed[-1].softmax(0)
                if control != "first error":
                    late[int(label)] -= 1
                seen = inputs if control == "first input" else again
                for i, layer in enumerate(layers):
                    delta = late if i == len(units) else outputs[i] - changed[i]
                    if control == "derivative" and i < len(units):
                        delta = delta * (1 - changed[i] ** 2)
                    flat = delta.reshape(len(delta), -1) / len(y)
                    sums[i][0] += (flat @ patches(layer, seen[i])).view(sums[i][0].shape)
                    if len(sums[i]) > 1:
                        sums[i][1] += flat.sum(1)
        for layer, own, step in zip(layers, sums, steps, strict=True):
            for p, g in zip(layer.parameters(), own, strict=True):
                p.grad = g
            step.step()
