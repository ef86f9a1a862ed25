"""Cells equal torch's, recurrences equal their loops, and spikes have the gradient that the formula says."""

import math
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import grad

from imprint.functional.cells import (
    SURROGATES,
    fast_sigmoid,
    gru_cell,
    linear_recurrence,
    lstm_cell,
    rnn_cell,
    rotating_recurrence,
    spike,
)


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def close(a, b, tol=1e-12):
    return all((v - w).abs().max() <= tol for v, w in zip(a, b, strict=True))


@pytest.mark.parametrize("kind", ["gru", "lstm", "rnn", "rnn relu"])
def test_cells_equal_torch_in_value_and_gradient(kind):
    cls = {"gru": nn.GRUCell, "lstm": nn.LSTMCell}.get(kind, nn.RNNCell)
    cell = cls(3, 4, **({"nonlinearity": "relu"} if kind == "rnn relu" else {})).double()
    x, h, c = randn(2, 3), randn(2, 4), randn(2, 4)
    mine = {"gru": gru_cell, "lstm": lstm_cell, "rnn": rnn_cell, "rnn relu": partial(rnn_cell, act=torch.relu)}[kind]
    state = (h, c) if kind == "lstm" else h
    found, weights = [], list(cell.parameters())
    for out in (mine(x, state, *weights), cell(x, state)):
        out = list(out) if isinstance(out, tuple) else [out]
        into = [x, h, c, *weights] if kind == "lstm" else [x, h, *weights]
        found.append([*out, *torch.autograd.grad(sum(v.pow(3).sum() for v in out), into)])
    assert close(*found)
    swapped = [weights[0], weights[1], weights[3], weights[2] + 1]
    wrong = mine(x, state, *swapped)
    assert not close(list(wrong) if kind == "lstm" else [wrong], found[0][: 2 if kind == "lstm" else 1], 1e-3)


@pytest.mark.parametrize("ticks", [1, 2, 3, 8, 13])
@pytest.mark.parametrize("steady", [True, False])
def test_linear_recurrence(ticks, steady):
    a, b, h = randn(4) if steady else randn(ticks, 2, 4), randn(ticks, 2, 4), randn(2, 4)
    loop, state = [], h
    for t in range(ticks):
        state = (a if steady else a[t]) * state + b[t]
        loop.append(state)
    found = []
    for out in (linear_recurrence(a, b, h), torch.stack(loop)):
        found.append([out, *torch.autograd.grad(out.square().sum(), [a, b, h])])
    scale = max(float(v.detach().abs().max()) for v in found[1])
    assert close(*found, tol=1e-13 * max(1.0, scale))
    assert not close([linear_recurrence(a, b, h + 1)], [found[1][0]], 1e-6)


@pytest.mark.parametrize("ticks", [1, 2, 7])
def test_rotating_recurrence(ticks):
    a, b, h = (0.5 * randn(3), 0.5 * randn(3)), (randn(ticks, 2, 3), randn(ticks, 2, 3)), (randn(2, 3), randn(2, 3))
    state, loop = torch.complex(*h), []
    for t in range(ticks):
        state = torch.complex(*a) * state + torch.complex(b[0][t], b[1][t])
        loop.append(state)
    right = torch.stack(loop)
    found = []
    for re, im in (rotating_recurrence(a, b, h), (right.real, right.imag)):
        loss = (re * torch.linspace(-1, 1, re.numel(), dtype=re.dtype).view_as(re)).sum() + im.square().sum()
        found.append([re, im, *torch.autograd.grad(loss, [*a, *b, *h])])
    assert close(*found, tol=1e-11)
    assert ticks == 1 or not close(rotating_recurrence(a, b[::-1], h), found[0][:2], 1e-3)


HAND = {
    "triangular": lambda v: 0.3 * max(0.0, 1 - abs(v)),
    "fast_sigmoid": lambda v: 1 / (1 + 10 * abs(v)) ** 2,
    "atan": lambda v: 1 / (1 + (math.pi * v) ** 2),
}
POINTS = [-3.0, -1.0, -0.999, -0.4, -1e-9, 0.0, 1e-9, 0.25, 0.7, 1.0, 2.5]


@pytest.mark.parametrize("name", SURROGATES)
def test_surrogates_by_hand(name):
    v = torch.tensor(POINTS, dtype=torch.float64, requires_grad=True)
    z = spike(v, SURROGATES[name])
    assert z.tolist() == [0.0] * 6 + [1.0] * 5  # zero at the threshold itself
    (slope,) = torch.autograd.grad((z * torch.arange(1.0, 12.0)).sum(), v)
    right = [i * HAND[name](p) for i, p in enumerate(POINTS, 1)]
    assert np.allclose(slope, right, rtol=1e-14, atol=0)
    assert torch.allclose(grad(lambda u: (spike(u, SURROGATES[name]) * torch.arange(1.0, 12.0)).sum())(v), slope)


@pytest.mark.parametrize("name", ["fast_sigmoid", "atan", "triangular"])
def test_surrogates_are_derivatives_of_sigmoids(name):
    """Each is symmetric, largest at the threshold, and has the integral that its antiderivative says."""
    v = torch.linspace(-50, 50, 2_000_001, dtype=torch.float64)
    psi = SURROGATES[name](v)
    area = {"triangular": 0.3, "fast_sigmoid": 2 / 10 * (1 - 1 / 501), "atan": 2 / math.pi * math.atan(50 * math.pi)}
    assert torch.allclose(psi, psi.flip(0)) and psi.argmax() == 1_000_000
    assert abs(float(torch.trapezoid(psi, v)) - area[name]) < 1e-6


def test_the_slope_is_an_option():
    v = torch.tensor([0.1], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(spike(v, partial(fast_sigmoid, slope=2.0)).sum(), v)
    assert abs(float(slope) - 1 / 1.2**2) < 1e-15


def test_exported_spikes_keep_their_gradient_unless_detach_is_decomposed():
    class Fire(nn.Module):
        def forward(self, v):
            return spike(v)

    v = torch.tensor([0.5, -0.2], dtype=torch.float64, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(Fire(), (v,))
        table = torch.export.default_decompositions()
        lost = exported.run_decompositions(table)
        table.pop(torch.ops.aten.detach.default)
        kept = exported.run_decompositions(table)
    slopes = [torch.autograd.grad(program.module()(v).sum(), v)[0] for program in (kept, lost)]
    assert torch.allclose(slopes[0], torch.tensor([0.15, 0.24], dtype=torch.float64), rtol=1e-12)
    assert float(slopes[1].abs().max()) == 0, "the decomposition makes an alias of detach: the finding is out of date"
