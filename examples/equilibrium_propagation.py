r"""Equilibrium propagation: a net with symmetric couplings rests twice, and learns from how the two rests differ.

Free, its states rest at :math:`s = \sigma(\partial\Phi/\partial s)`, with :math:`\Phi = \sum_l s_l\cdot(W_l s_{l-1} +
b_l)`. Then the label pulls at the output with strength :math:`\beta`, of either sign, and it rests again. A layer's
step is :math:`\Delta\theta\propto(\partial\Phi_\beta-\partial\Phi_0)/\beta`, from the states beside it alone: for small
:math:`\beta` the gradient of the squared error at the free rest. Differs from the paper: Adam, and a smaller net.

Prints energies, then, on the digits: ``equilibrium_propagation  digits  97.50%  97.50%`` and the seconds.
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

HIDDEN, FREE, NUDGED, BETA = 128, 30, 10, 0.1  # FREE and NUDGED: steps of settling


class Squash(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(4 * x - 2)


def chain(data: Data) -> nn.Sequential:
    size = data.x_train[0].numel()
    return nn.Sequential(nn.Flatten(), nn.Linear(size, HIDDEN), Squash(), nn.Linear(HIDDEN, data.num_classes), Squash())


def against(drive: Tensor, state: Tensor) -> Tensor:
    """The energy between two states: low where the upper one is as it is driven."""
    return -(drive * state).sum(1)


def settle(
    layers: list[Propagator], states: list[Tensor], steps: int, y: Tensor | None = None, beta: float = 0.0
) -> list[Tensor]:
    """Let all states but the input follow their drives, `steps` times, all at once; targets `y` pull at the output."""
    for _ in range(steps):
        *drives, last = (-pull for pull in pulls(layers, states[:-1], states[1:]))
        last = last if y is None else last + beta * (y - states[-1])
        states = [states[0], *map(Squash(), [*drives, last])]
    return states


def main(argv: Sequence[str] | None = None) -> Result:
    args = parse(argv, epochs=20)
    data, adam = load(args), lambda params: torch.optim.Adam(params, 1e-3)
    start, layers = time.perf_counter(), between(chain(data), against, adam)
    rest = lambda x: settle(layers, forward(layers, x), FREE)
    nudge = lambda free, y, beta: settle(layers, free, NUDGED, F.one_hot(y, data.num_classes).float(), beta)
    for _ in tqdm(range(args.epochs), desc="epochs", leave=False):
        for rows in torch.randperm(len(data.x_train)).split(64):
            beta, free = BETA if torch.rand(()) < 0.5 else -BETA, rest(data.x_train[rows])
            nudged, share = nudge(free, data.y_train[rows], beta), 1 / (beta * len(rows))
            learn(layers, (nudged[:-1], nudged[1:], share), (free[:-1], free[1:], -share))
    seconds, free = time.perf_counter() - start, rest(data.x_test)
    both = zip(energies(layers, free), energies(layers, nudge(free, data.y_test, BETA)), strict=True)
    for layer, (before, after) in zip(layers, both, strict=True):
        print(f"layer {layer.name}: energy of a test sample {before:.4f}, nudged {after:.4f}")
    found = accuracy(lambda x: rest(x)[-1], data)
    other = backprop(lambda: chain(data), data, args, optimizer=adam)
    return report(Result("equilibrium_propagation", data.name, found, other, seconds))


if __name__ == "__main__":
    main()
