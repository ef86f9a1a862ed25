"""Channel-wise competition (Papachristodoulou et al. 2024) by hand: groups counted out one channel at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from references.descent import Descent, cross_entropy, softmax


def groups(channels: int, classes: int) -> list[list[int]]:
    """In order; the first ones have one more where they cannot be equal."""
    made: list[list[int]] = []
    start = 0
    for k in range(classes):
        size = channels // classes + (1 if k < channels % classes else 0)
        made.append(list(range(start, start + size)))
        start += size
    return made


def activity(h: Tensor, classes: int, control: str = "") -> Tensor:
    """``[B, classes]``: mean square of each group's channels, over all their pixels."""
    rows = []
    for sample in h:
        found = []
        for group in groups(len(sample), classes):
            total = sum((v**2).sum() for v in sample[group])
            pixels = sample[0].numel()
            found.append(total if control == "sum" else total / (len(group) * pixels))
        rows.append(torch.stack(found))  # type: ignore[arg-type]
    return torch.stack(rows)


def train(
    units: Sequence[nn.Module],
    classifier: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    descent: Descent,
    classes: int,
    control: str = "",
) -> None:
    """Train in place. Wrong on purpose: ``"sum"``, ``"next label"``, ``"joint"`` and ``"after"``."""
    own, last = [descent(u.parameters()) for u in units], descent(classifier.parameters())
    for x, y in batches:
        h, summed = x, x.new_zeros(())
        for unit, optimizer in zip(units, own, strict=True):
            h = h if control == "joint" else h.detach()
            out = unit(h)
            loss = cross_entropy(activity(out, classes, control), (y + (control == "next label")) % classes)
            if control == "joint":
                summed = summed + loss
            else:
                loss.backward()
                optimizer.step()
                if control == "after":
                    out = unit(h)
            h = out
        if control == "joint":
            summed.backward()
            for optimizer in own:
                optimizer.step()
        cross_entropy(classifier(h.detach()), y).backward()
        last.step()


def train_dense(layers: Sequence[nn.Linear], batches: Sequence[tuple[Tensor, Tensor]], lr: float, classes: int) -> None:
    """Tanh layers, every derivative written out: ``dL/dh_j = (p_k - Y_k) 2 h_j / n_k`` for j in group k."""
    with torch.no_grad():
        for x, y in batches:
            for layer in layers:
                step_w, step_b, outputs = torch.zeros_like(layer.weight), torch.zeros_like(layer.bias), []
                for v, label in zip(x, y, strict=True):
                    h = torch.tanh(layer.weight @ v + layer.bias)
                    error = softmax(activity(h[None], classes)[0])
                    error[int(label)] -= 1
                    at_h = torch.zeros_like(h)
                    for k, group in enumerate(groups(len(h), classes)):
                        for j in group:
                            at_h[j] = error[k] * 2 * h[j] / len(group)
                    at_z = at_h * (1 - h**2)
                    step_w += torch.outer(at_z, v) / len(y)
                    step_b += at_z / len(y)
                    outputs.append(h)
                layer.weight -= lr * step_w
                layer.bias -= lr * step_b
                x = torch.stack(outputs)
