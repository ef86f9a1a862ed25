r"""Predictive coding: states settle between the input and the label, and each layer then learns from its own error.

The energy is :math:`F = \frac12\sum_l \|x_l - f_l(x_{l-1})\|^2`. With input and label held, the hidden states slide
down F, and then every layer steps down its own share of it. No layer knows of more than the two states beside it. With
predictions that stay those of the forward pass, a rate of 1 and a step a layer, this is backprop's gradient.

Prints energies, then, on the digits: ``predictive_coding  digits  97.22%  96.94%`` and the seconds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from imprint.data import Data
from imprint.propagators import Propagator

from common import Result, accuracy, backprop, load, parse, report
from settling import between, energies, forward, learn, pulls

HIDDEN, STEPS, RATE = 128, 20, 0.1  # STEPS of settling, and how far each goes
FIXED = False  # predictions, and how errors pass layers, stay those of the forward pass


def chain(data: Data) -> nn.Sequential:
    widths = (data.x_train[0].numel(), HIDDEN)
    layers = [nn.Sequential(nn.Linear(width, HIDDEN), nn.Tanh()) for width in widths]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(HIDDEN, data.num_classes))


def error(prediction: Tensor, state: Tensor) -> Tensor:
    """The energy between two states."""
    return 0.5 * (state - prediction).square().sum(1)


def settle(
    layers: list[Propagator], states: list[Tensor], steps: int, rate: float, fixed: bool = False
) -> list[Tensor]:
    """Slide all states but the first and the last down the energy, `steps` times, all at once."""
    below = states[:-1]
    for _ in range(steps):
        slopes = pulls(layers, below if fixed else states[:-1], states[1:])[:-1]
        states = [states[0], *(x - rate * s for x, s in zip(states[1:-1], slopes, strict=True)), states[-1]]
    return states


def main(argv: Sequence[str] | None = None) -> Result:
    args = parse(argv, epochs=15)
    data = load(args)
    adam = lambda params: torch.optim.Adam(params, 1e-3)
    start, layers = time.perf_counter(), between(chain(data), error, adam)
    clamped = lambda x, y: [*forward(layers, x)[:-1], F.one_hot(y, data.num_classes).to(x.dtype)]
    for _ in tqdm(range(args.epochs), desc="epochs", leave=False):
        for rows in torch.randperm(len(data.x_train)).split(64):
            states = clamped(data.x_train[rows], data.y_train[rows])
            settled = settle(layers, states, STEPS, RATE, FIXED)
            learn(layers, ((states if FIXED else settled)[:-1], settled[1:], 1 / len(rows)))
    seconds = time.perf_counter() - start
    states = clamped(data.x_test, data.y_test)
    both = zip(energies(layers, states), energies(layers, settle(layers, states, STEPS, RATE)), strict=True)
    for layer, (before, after) in zip(layers, both, strict=True):
        print(f"layer {layer.name}: energy of a test sample {before:.4f}, settled {after:.4f}")
    found = accuracy(lambda x: forward(layers, x)[-1], data)
    other = backprop(lambda: chain(data), data, args, optimizer=adam)
    return report(Result("predictive_coding", data.name, found, other, seconds))


if __name__ == "__main__":
    main()
