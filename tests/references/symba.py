"""SymBa (Lee & Song 2023) by hand: a sample's two goodnesses against each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from references.descent import Descent, cross_entropy, keep_buffers
from references.forward_forward_paper import goodness, labelled, normalise, softplus, write_label


def train(
    units: Sequence[nn.Module],
    classifier: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    descent: Descent,
    classes: int,
    high: float,
    reduce: str = "mean",
    alpha: float = 4.0,
    norm: str = "rms",
    control: str = "",
) -> None:
    """Train in place. Wrong on purpose: ``"any label"``, ``"swapped"`` (the sign), ``"joint"`` and ``"after"``."""
    own, last = [descent(u.parameters()) for u in units], descent(classifier.parameters())
    sign = -1 if control == "swapped" else 1
    for x, y in batches:
        both = torch.cat(labelled(x, y, classes, high, control))
        summed = x.new_zeros(())
        for unit, optimizer in zip(units, own, strict=True):
            given = normalise(both if control == "joint" else both.detach(), norm)
            restore = keep_buffers(unit)
            both = unit(given)
            loss = x.new_zeros(())
            for i in range(len(y)):
                gap = goodness(both[i], reduce) - goodness(both[len(y) + i], reduce)
                loss = loss + softplus(-sign * alpha * gap) / len(y)
            if control == "joint":
                summed = summed + loss
            else:
                loss.backward()
                optimizer.step()
                if control == "after":
                    both = unit(given)
            restore()
        if control == "joint":
            summed.backward()
            for optimizer in own:
                optimizer.step()
        with torch.no_grad():
            h = torch.stack([write_label(v, None, classes, high) for v in x])
            for unit in units:
                h = unit(normalise(h, norm))
        cross_entropy(classifier(h), y).backward()
        last.step()


def train_dense(
    layers: Sequence[nn.Linear],
    batches: Sequence[tuple[Tensor, Tensor]],
    lr: float,
    classes: int,
    high: float,
    alpha: float,
) -> None:
    """ReLU layers with the mean of squares, every derivative written out."""
    with torch.no_grad():
        for x, y in batches:
            true, wrong = labelled(x, y, classes, high)
            for layer in layers:
                step_w, step_b = torch.zeros_like(layer.weight), torch.zeros_like(layer.bias)
                passed: list[list[Tensor]] = [[], []]
                for p, n in zip(normalise(true), normalise(wrong), strict=True):
                    h_p, h_n = ((layer.weight @ v + layer.bias).clamp(min=0) for v in (p, n))
                    gap = (h_p**2).sum() / len(h_p) - (h_n**2).sum() / len(h_n)
                    push = alpha / (1 + (alpha * gap).exp())  # minus the loss's derivative with respect to the gap
                    for h, v, sign in ((h_p, p, -1), (h_n, n, 1)):
                        at_z = sign * push * 2 * h / len(h) * (h > 0)
                        step_w += torch.outer(at_z, v) / len(y)
                        step_b += at_z / len(y)
                    passed[0].append(h_p)
                    passed[1].append(h_n)
                layer.weight -= lr * step_w
                layer.bias -= lr * step_b
                true, wrong = torch.stack(passed[0]), torch.stack(passed[1])
