"""Heads of decoupled greedy learning (Belilovsky et al. 2020) by hand: one channel, one pixel, one sample at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from references.descent import Descent, cross_entropy

KINDS = {"mlp": (0, 3), "mlp-sr": (3, 3), "cnn": (2, 0)}


def average(h: Tensor, rows: int, columns: int) -> Tensor:
    """Maps averaged over windows that start at the floor and end at the ceiling of equal shares."""
    height, width = h.shape[2:]
    made = h.new_zeros(len(h), h.shape[1], rows, columns)
    for r in range(rows):
        for c in range(columns):
            top, bottom = math.floor(r * height / rows), math.ceil((r + 1) * height / rows)
            left, right = math.floor(c * width / columns), math.ceil((c + 1) * width / columns)
            seen = [h[:, :, a, b] for a in range(top, bottom) for b in range(left, right)]
            made[:, :, r, c] = sum(seen) / len(seen)  # type: ignore[call-overload]
    return made


def normalise(x: Tensor, norm: nn.Module, valid: Sequence[bool], control: str = "") -> Tensor:
    """Each channel by the mean and the variance of rows that count; running statistics take a tenth of both."""
    channels = []
    for c in range(x.shape[1]):
        seen = torch.cat([x[i, c].reshape(-1) for i in range(len(x)) if valid[i] or control == "all rows"])
        mean = sum(seen) / len(seen)
        var = sum((v - mean) ** 2 for v in seen) / len(seen)
        channels.append((x[:, c] - mean) / (var + 1e-5) ** 0.5 * norm.weight[c] + norm.bias[c])
        with torch.no_grad():
            unbiased = var * len(seen) / (len(seen) - 1)
            norm.running_mean[c] = 0.9 * norm.running_mean[c] + 0.1 * mean
            norm.running_var[c] = 0.9 * norm.running_var[c] + 0.1 * unbiased
    return torch.stack(channels, 1)


def convolve(h: Tensor, weight: Tensor) -> Tensor:
    """With zeros around, so that maps keep their size."""
    around = weight.shape[2] // 2
    wide = torch.nn.functional.pad(h, [around] * 4)
    made = h.new_zeros(len(h), len(weight), *h.shape[2:])
    for a in range(h.shape[2]):
        for b in range(h.shape[3]):
            patch = wide[:, :, a : a + weight.shape[2], b : b + weight.shape[3]].flatten(1)
            made[:, :, a, b] = patch @ weight.flatten(1).T
    return made


def head(h: Tensor, kind: str, layers: Iterator[nn.Module], valid: Sequence[bool], control: str = "") -> Tensor:
    """Logits; `layers` are those with weights, in order."""
    convolutions, hidden = KINDS[kind]
    if h.dim() == 4:
        if kind != "cnn":
            h = average(h, -(-h.shape[2] // 4), -(-h.shape[3] // 4))
        for _ in range(convolutions):
            h = normalise(convolve(h, next(layers).weight), next(layers), valid, control).clamp(min=0)
        h = average(h, min(2, h.shape[2]), min(2, h.shape[3]))
        if kind == "cnn":
            h = normalise(h, next(layers), valid, control)
        h = h.flatten(1)
    for _ in range(hidden):
        h = normalise(h @ next(layers).weight.T, next(layers), valid, control)
        if control != "no rectifier":
            h = h.clamp(min=0)
    last = next(layers)
    return h @ last.weight.T + last.bias


def train(
    units: Sequence[nn.Module],
    heads: Sequence[nn.Module],
    classifier: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    descent: Descent,
    kind: str = "mlp",
    control: str = "",
) -> None:
    """Train in place. Rows labelled -100 count nowhere but in what passes on.

    Wrong on purpose: ``"no rectifier"``, ``"all rows"`` (statistics are those of unlabelled rows, too), ``"joint"`` and
    ``"after"``.
    """
    own = [descent([*u.parameters(), *a.parameters()]) for u, a in zip(units, heads, strict=True)]
    last = descent(classifier.parameters())
    for x, y in batches:
        valid, h, summed = [int(v) >= 0 for v in y], x, x.new_zeros(())
        count = torch.tensor(valid)
        for unit, aux, optimizer in zip(units, heads, own, strict=True):
            h = h if control == "joint" else h.detach()
            out = unit(h)
            layers = iter([m for m in aux.modules() if list(m.parameters(recurse=False))])
            loss = cross_entropy(head(out, kind, layers, valid, control)[count], y[count])
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
        cross_entropy(classifier(h.detach())[count], y[count]).backward()
        last.step()
