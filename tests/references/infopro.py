"""Information propagation (Wang et al. 2021) by hand: pixels in loops, weights between first and last unit."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from references.decoupled_greedy import convolve, normalise
from references.descent import Descent, cross_entropy


def enlarge(h: Tensor, height: int, width: int) -> Tensor:
    """Bilinear, corner on corner."""
    made = h.new_zeros(len(h), h.shape[1], height, width)

    def between(i: int, to: int, of: int) -> tuple[int, int, float]:
        at = i * (of - 1) / (to - 1) if to > 1 else 0.0
        low = min(math.floor(at), of - 1)
        return low, min(low + 1, of - 1), at - low

    for a in range(height):
        for b in range(width):
            top, bottom, down = between(a, height, h.shape[2])
            left, right, along = between(b, width, h.shape[3])
            upper = (1 - along) * h[:, :, top, left] + along * h[:, :, top, right]
            lower = (1 - along) * h[:, :, bottom, left] + along * h[:, :, bottom, right]
            made[:, :, a, b] = (1 - down) * upper + down * lower
    return made


def lost(logits: Tensor, image: Tensor) -> Tensor:
    """Cross entropy of one pixel's logit with its brightness, averaged over all pixels."""
    total = logits.new_zeros(())
    for z, v in zip(logits.flatten(), image.flatten(), strict=True):
        p = 1 / (1 + (-z).exp())
        total = total - v * p.log() - (1 - v) * (1 - p).log()
    return total / image.numel()


def scaled(x: Tensor) -> Tensor:
    """From 0 to 1."""
    values = x.flatten().tolist()
    return (x - min(values)) / (max(values) - min(values))


def half(h: Tensor, weight: Tensor) -> Tensor:
    """A 3x3 convolution of which every second row and column is kept."""
    return convolve(h, weight)[:, :, ::2, ::2]


def losses(out: Tensor, x: Tensor, y: Tensor, aux: nn.Module, control: str = "") -> tuple[Tensor, Tensor]:
    """Of decoder and classifier."""
    every = [True] * len(y)
    decoder = [m for m in aux.decoder.modules() if list(m.parameters(recurse=False))]
    head = [m for m in aux.head.modules() if list(m.parameters(recurse=False))]
    if out.dim() == 4:
        wide = enlarge(out, *x.shape[2:])
        planes = normalise(convolve(wide, decoder[0].weight), decoder[1], every).clamp(min=0)
        made = convolve(planes, decoder[2].weight) + decoder[2].bias[:, None, None]
        maps = normalise(half(out, head[0].weight), head[1], every).clamp(min=0)
        features = sum(maps[:, :, a, b] for a in range(maps.shape[2]) for b in range(maps.shape[3]))
        features = features / (maps.shape[2] * maps.shape[3])
    else:
        made, features = out @ decoder[0].weight.T + decoder[0].bias, out
    first, second = head[-2:]
    logits = (features @ first.weight.T + first.bias).clamp(min=0) @ second.weight.T + second.bias
    image = x if control == "unscaled" else scaled(x)
    return lost(made, image), cross_entropy(logits, y)


def train(
    units: Sequence[nn.Module],
    parts: Sequence[nn.Module],
    classifier: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    descent: Descent,
    image: tuple[float, float] = (5.0, 0.5),
    label: tuple[float, float] = (0.0, 1.0),
    control: str = "",
) -> None:
    """Train in place; `image` and `label` are the two weights at the first and the last unit.

    Wrong on purpose: ``"unscaled"`` image, ``"turned"`` (from last to first), ``"joint"`` and
    ``"after"``.
    """
    own = [descent([*u.parameters(), *a.parameters()]) for u, a in zip(units, parts, strict=True)]
    last = descent(classifier.parameters())
    for x, y in batches:
        h, summed = x, x.new_zeros(())
        for i, (unit, aux, optimizer) in enumerate(zip(units, parts, own, strict=True)):
            h = h if control == "joint" else h.detach()
            out = unit(h)
            depth = i / (len(units) - 1)
            depth = 1 - depth if control == "turned" else depth
            wanted = x + 1 if control == "unscaled" else x
            rebuilt, named = losses(out, wanted, y, aux, control)
            share = [first * (1 - depth) + end * depth for first, end in (image, label)]
            loss = share[0] * rebuilt + share[1] * named
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
