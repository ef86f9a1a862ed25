"""Feedback alignment (Lillicrap et al. 2016), direct feedback alignment (Nokland 2016) and its sign: all by hand.

Units are a layer and tanh. Everything is written out: products as loops over samples, convolutions as products of
patches, derivatives as formulas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import fold, unfold

from references.descent import Descent

Batch = tuple[Tensor, Tensor]


def patches(layer: nn.Module, x: Tensor) -> Tensor:
    """What each output position of a layer sees, ``[positions, in]``, for one sample."""
    if isinstance(layer, nn.Linear):
        return x.flatten()[None]
    assert isinstance(layer, nn.Conv2d)
    return unfold(x[None], layer.kernel_size, layer.dilation, layer.padding, layer.stride)[0].T  # type: ignore[arg-type]


def run(layer: nn.Module, x: Tensor) -> Tensor:
    """The layer on one sample."""
    made = patches(layer, x) @ layer.weight.flatten(1).T  # type: ignore[union-attr,operator]
    made = made if layer.bias is None else made + layer.bias  # type: ignore[operator]
    if isinstance(layer, nn.Linear):
        return made[0]
    assert isinstance(layer, nn.Conv2d)
    height = (x.shape[1] + 2 * int(layer.padding[0]) - layer.kernel_size[0]) // layer.stride[0] + 1
    return made.T.reshape(layer.out_channels, height, -1)


def back(layer: nn.Module, weight: Tensor, delta: Tensor, x: Tensor) -> Tensor:
    """The error at the input of a layer, if it goes back through `weight`."""
    if isinstance(layer, nn.Linear):
        return (weight.T @ delta).view(x.shape)
    assert isinstance(layer, nn.Conv2d)
    columns = weight.flatten(1).T @ delta.flatten(1)
    size, kernel = x.shape[1:], layer.kernel_size
    return fold(columns[None], size, kernel, layer.dilation, layer.padding, layer.stride)[0]  # type: ignore[arg-type]


def errors(layers: Sequence[nn.Module], z: Tensor, label: int, control: str) -> Tensor:
    """Softmax minus one-hot, of one sample."""
    error = z.softmax(0)
    error[(label + (control == "next label")) % len(z)] -= 1
    return error


def train(
    units: Sequence[nn.Module], deltas: Callable[..., list[Tensor]], classifier: nn.Module, batches: Sequence[Batch],
    descent: Descent, control: str = "",
) -> None:  # fmt: skip
    """Train in place; `deltas` says what the errors at the units' outputs are.

    Wrong on purpose: ``"sum"`` (over the batch), ``"next label"``, ``"no derivative"`` (of tanh).
    """
    layers = [unit[0] for unit in units] + [classifier[-1]]  # type: ignore[index]
    steps = [descent(layer.parameters()) for layer in layers]
    for x, y in batches:
        with torch.no_grad():
            sums = [[torch.zeros_like(p) for p in layer.parameters()] for layer in layers]
            for v, label in zip(x, y, strict=True):
                inputs = []
                for i, layer in enumerate(layers):
                    inputs.append(v if i < len(units) else v.flatten())
                    v = run(layer, inputs[-1])
                    v = torch.tanh(v) if i < len(units) else v
                outputs = [*inputs[1:], v]
                error = errors(layers, v, int(label), control)
                found = deltas(layers, inputs, outputs, error, control)
                for layer, seen, delta, own in zip(layers, inputs, found, sums, strict=True):
                    share = 1 if control == "sum" else 1 / len(y)
                    own[0] += share * (delta.reshape(len(delta), -1) @ patches(layer, seen)).view(own[0].shape)
                    if len(own) > 1:
                        own[1] += share * delta.reshape(len(delta), -1).sum(1)
        for layer, own, step in zip(layers, sums, steps, strict=True):
            for p, g in zip(layer.parameters(), own, strict=True):
                p.grad = g
            step.step()


def slope(h: Tensor, control: str) -> Tensor:
    """The derivative of tanh."""
    return torch.ones_like(h) if control == "no derivative" else 1 - h**2


def direct(feedback: Sequence[Tensor], sign: bool = False) -> Callable[..., list[Tensor]]:
    """The output's error straight to every layer; wrong on purpose: ``"sign"`` swaps the two."""

    def deltas(
        layers: Sequence[nn.Module], inputs: list[Tensor], outputs: list[Tensor], error: Tensor, control: str
    ) -> list[Tensor]:  # fmt: skip
        sent = error.sign() if sign != (control == "sign") else error
        hidden = outputs[:-1]
        made = [
            (b.T @ sent).view(shape.shape) * slope(h.view(shape.shape), control)
            for b, h, shape in zip(feedback, hidden, _shaped(layers, inputs), strict=True)
        ]
        return [*made, error]

    return deltas


def sequential(feedback: Sequence[Tensor]) -> Callable[..., list[Tensor]]:
    """The error goes back layer by layer; `feedback` of the first layer is used by nobody. ``"weights"``: through W."""

    def deltas(
        layers: Sequence[nn.Module], inputs: list[Tensor], outputs: list[Tensor], error: Tensor, control: str
    ) -> list[Tensor]:  # fmt: skip
        made, delta = [error], error
        shaped = _shaped(layers, inputs)
        for i in range(len(layers) - 1, 0, -1):
            through = layers[i].weight if control == "weights" else feedback[i]  # type: ignore[assignment]
            h = shaped[i - 1]
            delta = back(layers[i], through, delta, inputs[i]).view(h.shape) * slope(h, control)  # type: ignore[arg-type]
            made.insert(0, delta)
        return made

    return deltas


def _shaped(layers: Sequence[nn.Module], inputs: list[Tensor]) -> list[Tensor]:
    """Outputs of the hidden layers in their own shape: what comes in behind them may be flat."""
    return [torch.tanh(run(layer, x)) for layer, x in zip(layers[:-1], inputs[:-1], strict=True)]
