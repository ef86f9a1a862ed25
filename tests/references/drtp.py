"""Direct random target projection (Frenkel et al. 2021) by hand: the target, through a fixed matrix, is the error."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from references.descent import Descent, cross_entropy


def train(
    units: Sequence[nn.Module],
    feedback: Sequence[Tensor],
    classifier: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    descent: Descent,
    control: str = "",
) -> None:
    """Train in place. There is no loss: the label's row of `feedback` is put in as the gradient at a unit's output.

    Wrong on purpose: ``"sum"`` (over the batch), ``"next label"``, ``"joint"`` and ``"after"``.
    """
    own, last = [descent(u.parameters()) for u in units], descent(classifier.parameters())
    for x, y in batches:
        h, ends = x, []
        for unit, matrix, optimizer in zip(units, feedback, own, strict=True):
            h = h if control == "joint" else h.detach()
            out = unit(h)
            wanted = torch.zeros_like(out)
            for i in range(len(y)):
                label = (int(y[i]) + (control == "next label")) % len(matrix)
                wanted[i] = matrix[label].view(out[i].shape) / (1 if control == "sum" else len(y))
            if control == "joint":
                ends.append((out, wanted))
            else:
                out.backward(wanted)
                optimizer.step()
                if control == "after":
                    out = unit(h)
            h = out
        if ends:
            torch.autograd.backward([o for o, _ in ends], [w for _, w in ends])
            for optimizer in own:
                optimizer.step()
        cross_entropy(classifier(h.detach()), y).backward()
        last.step()


def train_dense(
    layers: Sequence[nn.Linear], feedback: Sequence[Tensor], batches: Sequence[tuple[Tensor, Tensor]], lr: float
) -> None:
    """Tanh layers, every derivative written out: ``delta = B^T y * (1 - h^2)``, ``dW = delta x^T``."""
    with torch.no_grad():
        for x, y in batches:
            for layer, matrix in zip(layers, feedback, strict=True):
                step_w, step_b, outputs = torch.zeros_like(layer.weight), torch.zeros_like(layer.bias), []
                for v, label in zip(x, y, strict=True):
                    h = torch.tanh(layer.weight @ v + layer.bias)
                    delta = matrix[int(label)] * (1 - h**2)
                    step_w += torch.outer(delta, v) / len(y)
                    step_b += delta / len(y)
                    outputs.append(h)
                layer.weight -= lr * step_w
                layer.bias -= lr * step_b
                x = torch.stack(outputs)
