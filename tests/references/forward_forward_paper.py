"""Forward-forward (Hinton 2022) by hand: one sample at a time, negatives that are never the true label."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from references.descent import Descent, cross_entropy, keep_buffers


def write_label(x: Tensor, label: int | None, classes: int, high: float) -> Tensor:
    """A sample whose first values are the label: `high` at its place, 0 elsewhere; no label is `high` shared out."""
    flat = x.flatten().clone()
    for c in range(classes):
        flat[c] = high / classes if label is None else high if c == label else 0.0
    return flat.view(x.shape)


def normalise(h: Tensor, kind: str = "rms") -> Tensor:
    """Each sample to mean square one, or (``"length"``) to length one."""
    rows = []
    for v in h:
        square = (v.flatten() ** 2).sum()
        size = (square / v.numel()) ** 0.5 if kind == "rms" else square**0.5
        rows.append(v / (size + 1e-8) if kind else v)
    return torch.stack(rows)


def goodness(v: Tensor, reduce: str) -> Tensor:
    """Squares of one sample's activities, summed or averaged."""
    total = (v.flatten() ** 2).sum()
    return total if reduce == "sum" else total / v.numel()


def softplus(a: Tensor) -> Tensor:
    """log(1 + e^a); beyond 20 the line itself, as torch has it."""
    return a if float(a.detach()) > 20 else (1 + a.exp()).log()


def loss_of(positive: Tensor, negative: Tensor, reduce: str, threshold: float) -> Tensor:
    """Softplus of what a positive lacks, and of what a negative has too much."""
    total = positive.new_zeros(())
    for p, n in zip(positive, negative, strict=True):
        total = total + softplus(threshold - goodness(p, reduce)) + softplus(goodness(n, reduce) - threshold)
    return total / len(positive)


def labelled(x: Tensor, y: Tensor, classes: int, high: float, control: str = "") -> tuple[Tensor, Tensor]:
    """Positives and negatives of a batch."""
    if control == "any label":
        wrong = torch.randint(0, classes, y.shape).tolist()
    else:
        wrong = [(int(a) + int(d)) % classes for a, d in zip(y, torch.randint(1, classes, y.shape), strict=True)]
    positive = torch.stack([write_label(v, int(a), classes, high) for v, a in zip(x, y, strict=True)])
    return positive, torch.stack([write_label(v, a, classes, high) for v, a in zip(x, wrong, strict=True)])


def train(
    units: Sequence[nn.Module],
    classifier: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    descent: Descent,
    classes: int,
    high: float,
    reduce: str = "mean",
    threshold: float | None = 2.0,
    norm: str = "rms",
    norm_last: str = "",
    control: str = "",
) -> None:
    """Train in place; a threshold of None is the number of a unit's outputs; `norm_last` is the classifier's.

    ``"two passes"`` is right where no unit mixes samples: positives and negatives go through by themselves. Wrong on
    purpose: ``"any label"`` (a negative may carry the true label), ``"after"`` and ``"joint"``.
    """
    own, last = [descent(u.parameters()) for u in units], descent(classifier.parameters())
    for x, y in batches:
        positive, negative = labelled(x, y, classes, high, control)
        summed = x.new_zeros(())
        for unit, optimizer in zip(units, own, strict=True):
            if control != "joint":
                positive, negative = positive.detach(), negative.detach()
            p_in, n_in = normalise(positive, norm), normalise(negative, norm)
            restore = keep_buffers(unit)

            def run(unit: nn.Module = unit, p_in: Tensor = p_in, n_in: Tensor = n_in) -> tuple[Tensor, Tensor]:
                if control == "two passes":
                    return unit(p_in), unit(n_in)
                out = unit(torch.cat([p_in, n_in]))
                return out[: len(p_in)], out[len(p_in) :]

            positive, negative = run()
            theta = float(positive[0].numel()) if threshold is None else threshold
            loss = loss_of(positive, negative, reduce, theta)
            if control == "joint":
                summed = summed + loss
            else:
                loss.backward()
                optimizer.step()
                if control == "after":
                    positive, negative = run()
            restore()
        if control == "joint":
            summed.backward()
            for optimizer in own:
                optimizer.step()
        with torch.no_grad():
            h = torch.stack([write_label(v, None, classes, high) for v in x])
            for unit in units:
                h = unit(normalise(h, norm))
        cross_entropy(classifier(normalise(h, norm_last)), y).backward()
        last.step()


def train_dense(
    layers: Sequence[nn.Linear],
    batches: Sequence[tuple[Tensor, Tensor]],
    lr: float,
    classes: int,
    high: float,
    threshold: float,
) -> None:
    """ReLU layers with the mean of squares, every derivative written out."""
    with torch.no_grad():
        for x, y in batches:
            streams = list(zip(labelled(x, y, classes, high), (1.0, -1.0), strict=True))
            for layer in layers:
                step_w, step_b = torch.zeros_like(layer.weight), torch.zeros_like(layer.bias)
                passed = []
                for stream, sign in streams:
                    outputs = []
                    for v in normalise(stream):
                        h = (layer.weight @ v + layer.bias).clamp(min=0)
                        lack = sign * (threshold - (h**2).mean())
                        at_z = -sign / (1 + (-lack).exp()) * 2 * h / len(h) * (h > 0)
                        step_w += torch.outer(at_z, v) / len(y)
                        step_b += at_z / len(y)
                        outputs.append(h)
                    passed.append((torch.stack(outputs), sign))
                layer.weight -= lr * step_w
                layer.bias -= lr * step_b
                streams = passed


def label_goodness(units: Sequence[nn.Module], x: Tensor, classes: int, high: float, reduce: str) -> Tensor:
    """``[B, classes]``: each label tried on each sample, goodness of all units added."""
    rows = []
    for v in x:
        tried = []
        for label in range(classes):
            h, total = write_label(v, label, classes, high)[None], x.new_zeros(())
            for unit in units:
                h = unit(normalise(h))
                total = total + goodness(h[0], reduce)
            tried.append(total)
        rows.append(torch.stack(tried))
    return torch.stack(rows)
