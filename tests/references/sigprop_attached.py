"""Signal propagation with one context input a class, by hand: each pair of samples compared by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from references.descent import Descent, cross_entropy, keep_buffers


def alike(a: Tensor, b: Tensor, kind: str, temperature: float) -> Tensor:
    """Similarity of two samples; maps ``[C, ...]`` per position."""
    positions = math.prod(a.shape[1:])
    a, b = a.flatten(), b.flatten()
    if kind == "cosine":
        return (a * b).sum() / ((a * a).sum() ** 0.5 * (b * b).sum() ** 0.5) / temperature
    if kind == "dot":
        return (a * b).sum() / (positions * temperature)
    return -((a - b) ** 2).sum() / (positions * temperature)


def contrast(
    h: Tensor, t: Tensor, y: Tensor, loss: str, k: int = 5, similarity: str = "cosine", temperature: float = 0.1
) -> Tensor:
    """The losses by definition. ``v1`` classifies among the K rows; the others see one context row a *sample*,

    the row of its label, and resemble all rows of their own label (v9), one of them (v14), or at most k of them (v15).
    """
    total = h.new_zeros(())
    for i in range(len(h)):
        own = int(y[i])
        if loss == "v1":
            z = torch.stack([alike(h[i], row, similarity, temperature) for row in t])
            total = total + z.exp().sum().log() - z[own]
            continue
        z = torch.stack([alike(h[i], t[int(label)], similarity, temperature) for label in y])
        same = [j for j in range(len(y)) if int(y[j]) == own]
        same = {"v9": same, "v14": same[-1:], "v15": same[:k]}[loss]
        for j in same:
            total = total + z.exp().sum().log() - z[j]
    return total / len(h)


def train(
    units: Sequence[nn.Module],
    context: Tensor,
    classifier: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    descent: Descent,
    loss: str = "v1",
    k: int = 5,
    similarity: str = "cosine",
    temperature: float = 0.1,
    learned: bool = False,
    control: str = "",
) -> None:
    """Train in place. `context` holds one flat input a class; a `learned` one is moved in place, as a unit of its own.

    First all context rows go through all units, which leaves running statistics alone, then the data; each unit learns
    from both as soon as its data are there. Wrong on purpose: ``"after"``, ``"joint"``, ``"next label"``,
    ``"statistics"`` (the context moves the running statistics), ``"data only"`` (no gradient through the context).
    """
    own, last = [descent(u.parameters()) for u in units], descent(classifier.parameters())
    raw = context.requires_grad_() if learned else context
    signal = descent([raw]) if learned else None
    for x, y in batches:
        t = raw.detach().clone().view(len(raw), *x.shape[1:])
        if signal is not None:
            contrast(x, raw.view(len(raw), *x.shape[1:]), y, loss, k, similarity, temperature).backward()
            signal.step()
        remembered = []
        for unit in units:
            restore = None if control == "statistics" else keep_buffers(unit)
            t = unit(t if control == "joint" else t.detach())
            if control == "data only":
                t = t.detach()
            if restore is not None:
                restore()
            remembered.append(t)
        h, summed = x, x.new_zeros(())
        labels = (y + 1) % len(raw) if control == "next label" else y
        for unit, t, optimizer in zip(units, remembered, own, strict=True):
            h = h if control == "joint" else h.detach()
            out = unit(h)
            error = contrast(out, t, labels, loss, k, similarity, temperature)
            if control == "joint":
                summed = summed + error
            else:
                error.backward()
                optimizer.step()
                if control == "after":
                    out = unit(h)
            h = out
        if control == "joint":
            summed.backward(retain_graph=True)
            for optimizer in own:
                optimizer.step()
        cross_entropy(classifier(h.detach()), y).backward()
        last.step()
