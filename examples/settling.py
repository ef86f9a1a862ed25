"""What examples share whose states settle: layers as propagators, each between the state below and the state above."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from imprint.credit import Params, eager
from imprint.diagnostics.graph_leaves import leaves_of
from imprint.propagators import Propagator

Energy = Callable[[Tensor, Tensor], Tensor]


class Between:
    """A layer between two states: its loss is an energy of what it makes of the one, and of the other.

    It is a unit as propagators run one: ``tick((), below, (above, share))`` gathers `share` times the gradient of the
    energy, summed over samples, in the layer's own parameters.

    Args:
        module: the layer.
        energy: ``energy(module(below), above)``, one number a sample.
    """

    def __init__(self, module: nn.Module, energy: Energy) -> None:
        self.module, self.energy = module, energy

    def init(self, batch: int) -> Any:
        """No state of its own."""
        return ()

    def cell(self, p: Params, state: Any, x: Tensor) -> Any:
        """No recurrence."""
        return state

    def readout(self, p: Params, state: Any, x: Tensor) -> Tensor:
        """What the layer makes of the state below."""
        out: Tensor = functional_call(self.module, p, (x,))
        return out

    def loss(self, p: Params, out: Tensor, state: Any, x: Tensor, y: tuple[Tensor, float]) -> Tensor:
        """The energy's sum over samples."""
        above, share = y
        return share * self.energy(out, above).sum()


def between(
    model: nn.Sequential, energy: Energy, optimizer: Callable[[list[Tensor]], torch.optim.Optimizer]
) -> list[Propagator]:
    """A propagator for each child of `model` with weights, and an optimizer for each propagator."""
    made = []
    for name, layer in model.named_children():
        params: Params = dict(layer.named_parameters())
        if params:
            made.append(Propagator(Between(layer, energy), name, params, optimizers=[optimizer(list(params.values()))]))
    return made


def forward(layers: Sequence[Propagator], x: Tensor) -> list[Tensor]:
    """The states of a forward pass, from the flat input on."""
    states = [x.flatten(1)]
    for layer in layers:
        states.append(layer.tick((), states[-1], None, learn=False)[0])
    return states


def pulls(layers: Sequence[Propagator], belows: Sequence[Tensor], aboves: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of all energies in the state between each pair of layers, then in the last; each layer adds its own.

    Layer l lies between ``belows[l]`` and ``aboves[l]`` and knows of nothing else.
    """
    grads = []
    for layer, below, above in zip(layers, belows, aboves, strict=True):
        ends = {"below": below.detach().requires_grad_(), "above": above.detach().requires_grad_()}
        of: Any = lambda s, layer=layer: (loss(layer, s["below"], s["above"]), ())
        grads.append(eager(of, ends)[0])
    return [down["above"] + up["below"] for down, up in pairwise(grads)] + [grads[-1]["above"]]


def learn(layers: Sequence[Propagator], *phases: tuple[Sequence[Tensor], Sequence[Tensor], float]) -> None:
    """One step of every layer's optimizer down the sum of its energies in all phases.

    Args:
        phases: the states below each layer, those above, and the share in the sum.
    """
    for belows, aboves, share in phases:
        for layer, below, above in zip(layers, belows, aboves, strict=True):
            layer.tick((), below, (above, share))
    for layer in layers:
        layer.update()


def loss(layer: Propagator, below: Tensor, above: Tensor) -> Tensor:
    """The energy of a layer, with its graph."""
    assert layer.unit is not None
    return layer.unit.loss(layer.params, layer.unit.readout(layer.params, (), below), (), below, (above, 1.0))


def energies(layers: Sequence[Propagator], states: Sequence[Tensor]) -> list[float]:
    """Of each layer, a sample; checks that no layer's loss reaches anything but the layer's own parameters."""
    found = []
    for layer, below, above in zip(layers, states, states[1:], strict=False):
        value = loss(layer, below, above)
        assert {id(v) for v in leaves_of(value)} == {id(p) for p in layer.params.values()}, layer.name
        found.append(value.item() / len(below))
    return found
