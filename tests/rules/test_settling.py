"""Rules whose states settle first: predictive coding and equilibrium propagation, as the examples write them.

Each equals a version by hand, and at its limit the gradient of backpropagation.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise

import equilibrium_propagation
import predictive_coding
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imprint.diagnostics.graph_leaves import leaves_of
from imprint.propagators import Propagator

import references.equilibrium
import references.predictive_coding_naive
from settling import between, energies, forward, learn, loss

Pairs = list[tuple[Tensor, Tensor]]
SAME = 1e-10
CLASSES, ROWS = 3, 5


def sgd(params: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, 1.0)


def dense(widths: Sequence[int], act: type[nn.Module]) -> nn.Sequential:
    """A chain in float64 whose children are layers with their activations; the last has none."""
    layers = [nn.Sequential(nn.Linear(a, b), act()) for a, b in pairwise(widths[:-1])]
    return nn.Sequential(*layers, nn.Sequential(nn.Linear(*widths[-2:]))).double()


def weights(model: nn.Module) -> Pairs:
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    return [(m.weight.detach().clone(), m.bias.detach().clone()) for m in linear]


def apart(a: Pairs, b: Pairs) -> float:
    """Largest difference of any element."""
    return max(float((v - w).abs().max()) for p, q in zip(a, b, strict=True) for v, w in zip(p, q, strict=True))


def moved(before: nn.Module, after: nn.Module) -> Pairs:
    """Steps of an optimizer with a rate of 1, against the gradient."""
    pairs = zip(weights(before), weights(after), strict=True)
    return [(w - v, b - c) for (v, c), (w, b) in pairs]


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(ROWS, 6).double(), F.one_hot(torch.randint(CLASSES, (ROWS,)), CLASSES).double()


def coded(model: nn.Sequential, x: Tensor, y: Tensor) -> tuple[list[Propagator], list[Tensor]]:
    """Layers that predict, and the states of a forward pass, with the label in place of the last."""
    layers = between(model, predictive_coding.error, sgd)
    return layers, [*forward(layers, x)[:-1], y]


def descent(model: nn.Sequential, x: Tensor, y: Tensor) -> Pairs:
    """What backpropagation of half the squared error would add to the weights."""
    plain = copy.deepcopy(model)
    (0.5 * (y - plain(x)).square().sum(1).mean()).backward()
    return [(-m.weight.grad, -m.bias.grad) for m in plain.modules() if isinstance(m, nn.Linear)]


def test_the_energy_falls_while_states_settle() -> None:
    layers, states = coded(dense((6, 8, 7, CLASSES), nn.Tanh), *batch())

    def fall(rate: float, steps: int = 60) -> list[float]:
        found, now = [sum(energies(layers, states))], states
        for _ in range(steps):
            now = predictive_coding.settle(layers, now, 1, rate)
            found.append(sum(energies(layers, now)))
        return found

    small = fall(0.1)
    assert all(after < before for before, after in pairwise(small))
    assert small[-1] < 0.9 * small[0] and small[-2] - small[-1] < 1e-3 * (small[0] - small[1])
    large = fall(2.5)
    assert any(after > before for before, after in pairwise(large))


@pytest.mark.parametrize("widths", [(6, 8, 7, CLASSES), (6, 8, 7, 5, CLASSES)], ids=["three layers", "four layers"])
def test_predictive_coding_equals_its_reference(widths: tuple[int, ...]) -> None:
    start, (x, y) = dense(widths, nn.Tanh), batch()
    model = copy.deepcopy(start)
    layers, states = coded(model, x, y)
    settled = predictive_coding.settle(layers, states, 12, 0.2)
    by_hand = [
        references.predictive_coding_naive.settle(weights(start), *pair, 12, 0.2) for pair in zip(x, y, strict=True)
    ]
    for i, state in enumerate(settled):
        torch.testing.assert_close(state, torch.stack([sample[i] for sample in by_hand]), rtol=0, atol=1e-12)
    total = sum(references.predictive_coding_naive.energy(weights(start), sample) for sample in by_hand)
    assert sum(energies(layers, settled)) == pytest.approx(total / ROWS, rel=1e-12)
    learn(layers, (settled[:-1], settled[1:], 1 / ROWS))

    def expected(control: str = "") -> Pairs:
        return references.predictive_coding_naive.update(weights(start), x, y, 12, 0.2, lr=1.0, control=control)

    assert apart(weights(model), expected()) < 1e-12
    assert apart(weights(model), expected("slope")) > 1e-4
    assert apart(weights(model), expected("unsettled")) > 1e-3
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("act", [nn.Identity, nn.Tanh], ids=["linear", "tanh"])
def test_fixed_predictions_with_a_step_a_layer_are_backpropagation(act: type[nn.Module]) -> None:
    """Torch2PC's "Exact": errors go down one layer a step, through the Jacobians of the forward pass."""
    start, (x, y) = dense((6, 8, 7, 5, CLASSES), act), batch()
    backprop = descent(start, x, y)

    def step(steps: int, rate: float = 1.0, fixed: bool = True) -> Pairs:
        model = copy.deepcopy(start)
        layers, states = coded(model, x, y)
        settled = predictive_coding.settle(layers, states, steps, rate, fixed)
        learn(layers, ((states if fixed else settled)[:-1], settled[1:], 1 / ROWS))
        return moved(start, model)

    depth = 4
    assert apart(step(depth), backprop) < SAME and apart(step(depth - 1), backprop) < SAME
    early = step(depth - 2)  # the error has not come to the first layer yet, and is right in all others
    assert apart(early[1:], backprop[1:]) < SAME and apart(early[:1], backprop[:1]) > 1e-3
    assert float(early[0][0].abs().max()) == 0
    assert apart(step(depth, rate=0.5), backprop) > 1e-3
    assert apart(step(depth, fixed=False), backprop) > 1e-3
    assert apart(step(200, rate=0.1, fixed=False), backprop) > 1e-3  # settled: another rule than backpropagation


@pytest.mark.parametrize("act", [nn.Identity, nn.Tanh], ids=["linear", "tanh"])
@pytest.mark.parametrize("late", [0, 1], ids=["in time", "a step late"])
def test_layers_that_learn_when_the_error_comes_by_are_backpropagation(act: type[nn.Module], late: int) -> None:
    """Without fixed predictions: layer l of L learns in step L - l, while all below are as the forward left them."""
    start, (x, y) = dense((6, 8, 7, 5, CLASSES), act), batch()
    model = copy.deepcopy(start)
    layers, states = coded(model, x, y)
    depth = len(layers)
    for step in range(depth + late):
        due = depth - 1 - step + late
        if due < depth:
            layers[due].tick((), states[due], (states[due + 1], 1 / ROWS))
        states = predictive_coding.settle(layers, states, 1, 1.0)
    for layer in layers:
        layer.update()
    off = apart(moved(start, model), descent(start, x, y))
    assert off > 1e-3 if late else off < SAME


def test_no_layer_reaches_another() -> None:
    x, y = batch()
    layers, states = coded(dense((6, 8, 7, CLASSES), nn.Tanh), x, y)
    settled = predictive_coding.settle(layers, states, 5, 0.1)
    for layer, below, above in zip(layers, settled, settled[1:], strict=False):
        reached = {id(v) for v in leaves_of(loss(layer, below, above))}
        assert reached == {id(p) for p in layer.params.values()}
    assert not any(state.requires_grad for state in settled)
    with pytest.raises(AssertionError, match="0"):  # a state with the graph of the layer below
        energies(layers, [settled[0] @ layers[1].params["0.weight"][:6, :6], *settled[1:]])


def coupled(model: nn.Sequential) -> list[Propagator]:
    return between(model, equilibrium_propagation.against, sgd)


def two_rests(layers: list[Propagator], x: Tensor, y: Tensor, betas: Sequence[float], free: int, nudged: int) -> None:
    """One step on nudges of all strengths, each with an equal share."""
    settle = equilibrium_propagation.settle
    rest = settle(layers, forward(layers, x), free)
    phases = []
    for beta in betas:
        after, share = settle(layers, rest, nudged, y, beta), 1 / (beta * len(x) * len(betas))
        phases += [(after[:-1], after[1:], share), (rest[:-1], rest[1:], -share)]
    learn(layers, *phases)


@pytest.mark.parametrize("beta", [0.1, -0.3])
@pytest.mark.parametrize("widths", [(6, 8, CLASSES), (6, 8, 7, CLASSES)], ids=["one hidden", "two hidden"])
def test_equilibrium_propagation_equals_its_reference(widths: tuple[int, ...], beta: float) -> None:
    start, (x, y) = dense(widths, nn.Identity), batch()
    model = copy.deepcopy(start)
    two_rests(coupled(model), x, y, [beta], 30, 10)
    found = moved(start, model)
    assert apart(found, references.equilibrium.contrast(weights(start), x, y, 30, 10, beta)) < 1e-12
    assert apart(found, references.equilibrium.contrast(weights(start), x, y, 30, 10, -beta)) > 1e-5
    assert apart(found, references.equilibrium.contrast(weights(start), x, y, 30, 1, beta)) > 1e-5
    assert all(p.grad is None for p in model.parameters())


def unrolled(start: nn.Sequential, x: Tensor, y: Tensor) -> Pairs:
    """The gradient through the rest, by autograd over very many steps."""
    pairs = [(w.requires_grad_(), b.requires_grad_()) for w, b in weights(start)]
    loss = x.new_zeros(())
    for sample, target in zip(x, y, strict=True):
        states = references.equilibrium.rest(pairs, references.equilibrium.start(pairs, sample), 150)
        loss = loss + 0.5 * (target - states[-1]).square().sum() / len(x)
    loss.backward()
    return [(w.grad, b.grad) for w, b in pairs]


@pytest.mark.parametrize("widths", [(6, 8, CLASSES), (6, 8, 7, CLASSES)], ids=["one hidden", "two hidden"])
def test_small_nudges_find_the_gradient_through_the_free_rest(widths: tuple[int, ...]) -> None:
    start, (x, y) = dense(widths, nn.Identity), batch()
    exact = references.equilibrium.gradient(weights(start), x, y)
    assert apart(exact, unrolled(start, x, y)) < SAME
    flat = lambda pairs: torch.cat([v.flatten() for pair in pairs for v in pair])

    def found(*betas: float) -> Tensor:
        model = copy.deepcopy(start)
        two_rests(coupled(model), x, y, betas, 150, 150)
        return -flat(moved(start, model))

    cosine = lambda a, b: float(F.cosine_similarity(a, b, dim=0))
    off = lambda *betas: float((found(*betas) - flat(exact)).abs().max())
    assert cosine(found(0.02, -0.02), flat(exact)) > 0.99999
    two_sided, one_sided = [off(b, -b) for b in (0.2, 0.1, 0.05)], [off(b) for b in (0.2, 0.1, 0.05)]
    for errors, power in ((two_sided, 2), (one_sided, 1)):
        assert all(2**power * 0.8 < before / after < 2**power * 1.25 for before, after in pairwise(errors))
    assert two_sided[-1] < 0.2 * one_sided[-1]
    feedforward = references.equilibrium.gradient(weights(start), x, y, control="feedforward")
    assert cosine(found(0.02, -0.02), flat(feedforward)) < 0.99
