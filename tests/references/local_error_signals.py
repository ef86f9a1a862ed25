"""Local error signals (Nokland & Eidnes 2019) and Mono-Forward (2025) by hand: one sample after the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from references.descent import Descent, cross_entropy, softmax


def average_pool(h: Tensor, limit: int) -> Tensor:
    """Maps averaged over windows that double in height, then in width, until a sample has at most `limit` numbers."""
    if h.dim() == 2:
        return h
    channels, height, width = h.shape[1:]
    window_h, window_w, rows, columns = 1, 1, height, width
    while channels * rows * columns > limit and window_h < height:
        window_h = window_h * 2
        rows = -(-height // window_h)
        if channels * rows * columns > limit:
            window_w = window_w * 2
            columns = -(-width // window_w)
    made = []
    for i in range(len(h)):
        for c in range(channels):
            for row in range(rows):
                for column in range(columns):
                    seen = [
                        h[i, c, a, b]
                        for a in range(row * window_h, min((row + 1) * window_h, height))
                        for b in range(column * window_w, min((column + 1) * window_w, width))
                    ]
                    made.append(sum(seen) / len(seen))
    return torch.stack(made).view(len(h), -1)


def features(sample: Tensor) -> Tensor:
    """What two samples are compared by: of maps with more than 3 channels, each channel's deviation over its pixels."""
    if sample.dim() == 3 and sample.shape[0] > 3 and sample.shape[1] > 1:
        made = []
        for channel in sample:
            distance = channel - channel.sum() / channel.numel()
            made.append(((distance**2).sum() / (channel.numel() - 1)) ** 0.5)
        return torch.stack(made)
    return sample.flatten()


def direction(sample: Tensor, centred: bool = True) -> Tensor:
    """A sample's features without their mean, at length one."""
    a = features(sample)
    if centred:
        a = a - a.sum() / len(a)
    return a / ((a * a).sum() ** 0.5 + 1e-8)


def matching_loss(z: Tensor, y: Tensor, classes: int, centred: bool = True) -> Tensor:
    """Mean over pairs of the squared difference of two cosines: of outputs and of one-hot labels."""
    outputs = [direction(v, centred) for v in z]
    labels = [direction(torch.tensor([float(c == int(label)) for c in range(classes)], dtype=z.dtype)) for label in y]
    total = z.new_zeros(())
    for i in range(len(z)):
        for j in range(len(z)):
            alike = (outputs[i] * outputs[j]).sum().clamp(-1, 1)
            total = total + (alike - (labels[i] * labels[j]).sum().clamp(-1, 1)) ** 2
    return total / len(z) ** 2


def train(
    units: Sequence[nn.Module],
    heads: Sequence[nn.Linear | None],
    projections: Sequence[nn.Module | None],
    classifier: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    descent: Descent,
    beta: float,
    classes: int,
    limit: int = 4096,
    control: str = "",
) -> None:
    """Train in place: ``(1 - beta) * prediction + beta * similarity`` a unit; cross entropy for the classifier.

    ``"deferred"`` is right: the losses, each from a detached input, are summed, and all units step at the end. Wrong on
    purpose: ``"joint"`` (one backward pass through all units), ``"after"`` (hands on what the weights say after the
    step), ``"swapped"`` (beta is the prediction's), ``"uncentred"`` (plain cosine).
    """
    if control == "swapped":
        beta = 1 - beta
    own = [
        descent([p for m in parts if m is not None for p in m.parameters()])
        for parts in zip(units, heads, projections, strict=True)
    ]
    last = descent(classifier.parameters())
    for x, y in batches:
        h, summed = x, x.new_zeros(())
        for unit, head, projection, optimizer in zip(units, heads, projections, own, strict=True):
            h = h if control == "joint" else h.detach()
            out = unit(h)
            loss = out.new_zeros(())
            if head is not None:
                loss = loss + (1 - beta) * cross_entropy(head(average_pool(out, limit)), y)
            if beta:
                z = out if projection is None else projection(out)
                loss = loss + beta * matching_loss(z, y, classes, control != "uncentred")
            if control in ("joint", "deferred"):
                summed = summed + loss
            else:
                loss.backward()
                optimizer.step()
                if control == "after":
                    out = unit(h)
            h = out
        loss = cross_entropy(classifier(h if control == "joint" else h.detach()), y)
        (loss + summed).backward()
        for optimizer in (*own, last):
            optimizer.step()


def mono_forward_dense(
    layers: Sequence[nn.Linear], heads: Sequence[Tensor], batches: Sequence[tuple[Tensor, Tensor]], lr: float
) -> None:
    """Mono-Forward on tanh layers, every derivative written out: ``G = a M^T``, softmax of G against the label."""
    with torch.no_grad():
        for x, y in batches:
            a_in = x
            for layer, head in zip(layers, heads, strict=True):
                a = torch.stack([torch.tanh(layer.weight @ v + layer.bias) for v in a_in])
                step_w, step_b, step_m = (torch.zeros_like(v) for v in (layer.weight, layer.bias, head))
                for i in range(len(y)):
                    error = softmax(head @ a[i])
                    error[int(y[i])] -= 1
                    at_z = (head.T @ error) * (1 - a[i] ** 2)
                    step_m += torch.outer(error, a[i]) / len(y)
                    step_w += torch.outer(at_z, a_in[i]) / len(y)
                    step_b += at_z / len(y)
                layer.weight -= lr * step_w
                layer.bias -= lr * step_b
                head -= lr * step_m
                a_in = a


def mono_forward_predict(layers: Sequence[nn.Linear], heads: Sequence[Tensor], x: Tensor) -> Tensor:
    """Sum of all layers' G, one sample after the other."""
    rows = []
    for v in x:
        total = x.new_zeros(len(heads[0]))
        for layer, head in zip(layers, heads, strict=True):
            v = torch.tanh(layer.weight @ v + layer.bias)
            total = total + head @ v
        rows.append(total)
    return torch.stack(rows)
