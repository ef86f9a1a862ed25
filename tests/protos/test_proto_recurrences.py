"""Diagonal, spiking, convolutional and attending protos: what options do in numbers, and what is refused."""

import math

import pytest
import torch

from imprint.errors import ArgumentError
from imprint.protos import ALIF, LIF, LRU, Conv, GRUStack, IndRNN, Leaky, MinGRU, Transformer


def bound(proto, width=3, output=None, dtype=torch.float64):
    proto.bind(width, output, dtype=dtype)
    return proto


def run(proto, drive, state=None):
    return proto.step(drive, proto.init_state(len(drive)) if state is None else state)


def test_lru_starts_on_its_ring_and_is_stable_whatever_it_learns():
    torch.manual_seed(0)
    proto = bound(LRU(2000, r_min=0.6, r_max=0.9, max_phase=1.0))
    re, im = proto.eigenvalues()
    radius, phase = (re**2 + im**2).sqrt(), torch.atan2(im, re)
    assert 0.6 <= radius.min() < 0.605 and 0.895 < radius.max() <= 0.9
    assert 0 < phase.min() < 0.01 and 0.99 < phase.max() <= 1
    # evenly over the ring's area: the mean of the squared radius is that of its ends
    assert abs(float((radius**2).detach().mean()) - (0.36 + 0.81) / 2) < 0.005
    assert torch.allclose(proto.gamma.exp() ** 2, 1 - radius**2)
    with torch.no_grad():
        proto.nu.normal_(std=1.0)
    re, im = proto.eigenvalues()
    assert (re**2 + im**2).max() < 1
    for options in ({"r_min": -0.1}, {"r_max": 1.1}, {"r_min": 0.9, "r_max": 0.5}, {"max_phase": 0.0}):
        with pytest.raises(ArgumentError, match="eigenvalues"):
            LRU(4, **options)
    with pytest.raises(ArgumentError, match="out"):
        LRU(4, out=0)


def test_lru_memory_is_the_eigenvalue():
    """An impulse decays by |λ| a tick, and turns by its angle."""
    torch.manual_seed(0)
    proto = bound(LRU(1, r_min=0.9, r_max=0.9001))
    drive = torch.zeros(1, 3, dtype=torch.float64)
    state, _ = run(proto, drive + 1)
    start = torch.complex(*state)
    for _ in range(5):
        state, _ = proto.step(drive, state)
    assert torch.allclose(torch.complex(*state), start * torch.complex(*proto.eigenvalues()) ** 5, atol=1e-12)


def test_leaky_spreads_its_time_constants():
    proto = bound(Leaky(3, decay=(0.5, 0.99)))
    decay = torch.sigmoid(proto.logit)
    low, high = -1 / math.log(0.5), -1 / math.log(0.99)
    times = [low, math.sqrt(low * high), high]
    assert torch.allclose(-1 / decay.log(), torch.tensor(times, dtype=torch.float64), rtol=1e-9)
    fixed = bound(Leaky(3, decay=0.9, learn=False))
    assert "logit" in fixed.state_dict() and "logit" not in dict(fixed.named_parameters())
    assert torch.allclose(torch.sigmoid(fixed.logit), torch.full((3,), 0.9, dtype=torch.float64))
    for decay in (0.0, 1.0, (0.9, 0.5), (0.5, 1.0)):
        with pytest.raises(ArgumentError, match="decay"):
            Leaky(3, decay=decay)


def test_indrnn_and_mingru_are_diagonal():
    torch.manual_seed(0)
    for proto in (
        bound(IndRNN(4, act="tanh")),
        bound(MinGRU(4)),
        bound(Leaky(4)),
        bound(LIF(4, recurrent_weights=False)),
    ):
        drive, state = torch.randn(1, 3, dtype=torch.float64), torch.rand(1, 4, dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(lambda s, d=drive, p=proto: p.step(d, s)[0], state)[0, :, 0]
        assert torch.equal(jacobian, torch.diag(jacobian.diagonal())) and (jacobian.diagonal() != 0).all()
    assert 0 <= bound(IndRNN(50)).weight_hh.min() and bound(IndRNN(50)).weight_hh.max() < 1


def test_layernorm_keeps_the_jacobian_of_one_layer_free_of_it():
    """With W_hh zero, a GRU's next state sees no other unit's state, layernorm or not."""
    proto = bound(GRUStack(4, layernorm=True))
    with torch.no_grad():
        proto.cells[0].weight_hh.zero_()
    drive, state = torch.randn(1, 3, dtype=torch.float64), torch.rand(1, 1, 4, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda s: proto.step(drive, s)[0], state)[0, 0, :, 0, 0]
    assert torch.equal(jacobian, torch.diag(jacobian.diagonal())) and (jacobian.diagonal() != 0).all()


@pytest.mark.parametrize("make", [LIF, ALIF])
def test_spiking_refuses(make):
    with pytest.raises(ArgumentError, match="fast_sigmoid"):
        make(4, surrogate="sigmoid")
    with pytest.raises(ArgumentError, match="threshold is not positive"):
        make(4, threshold=0.0)
    with pytest.raises(ArgumentError, match="tau"):
        make(4, tau=0.0)
    if make is ALIF:
        with pytest.raises(ArgumentError, match="two time constants"):
            make(4, tau=20.0)
        with pytest.raises(ArgumentError, match="beta"):
            make(4, beta=-1.0)


def test_detached_resets_carry_no_gradient():
    """dv'/dv is the decay alone, or also the reset's share, by hand."""
    v = torch.tensor([[0.4, 0.9, 1.3, 2.5]], dtype=torch.float64)
    drive = torch.zeros(1, 3, dtype=torch.float64)
    slopes = {}
    for detached in (True, False):
        proto = bound(LIF(4, tau=10.0, recurrent_weights=False, detach_reset=detached))
        slopes[detached] = torch.autograd.functional.jacobian(lambda s, p=proto: p.step(drive, s)[0], v)[0, :, 0].diag()
        after, (spikes,) = proto.step(drive, v)
        decay = math.exp(-0.1)
        right = [0.4 * decay, 0.9 * decay, 1.3 * decay - 1, 2.5 * decay - 1]
        assert torch.allclose(after[0], torch.tensor(right, dtype=torch.float64), atol=1e-14)
        assert spikes.tolist() == [[0.0, 0.0, 0.0, 1.0]]
    psi = [0.3 * max(0.0, 1 - abs(x - 1)) for x in v[0].tolist()]
    assert torch.allclose(slopes[True], torch.full((4,), decay, dtype=torch.float64))
    assert torch.allclose(slopes[False], torch.tensor([decay - p for p in psi], dtype=torch.float64))


def test_alif_thresholds_rise_with_spikes():
    proto = bound(ALIF(1, tau=(5.0, 50.0), beta=0.5, recurrent_weights=False), 1)
    with torch.no_grad():
        proto.input.weight.fill_(1.0)
    state, counts = proto.init_state(1), []
    for _ in range(60):
        state, (z,) = proto.step(torch.full((1, 1), 0.9, dtype=torch.float64), state)
        counts.append(float(z.detach()))
    assert sum(counts[:20]) > sum(counts[40:]) > 0, "it fires less and less"
    assert float(proto.raised(state[1]).detach()) > 1.5


def test_a_surrogate_may_be_a_function():
    proto = bound(LIF(4, surrogate=torch.ones_like, recurrent_weights=False, detach_reset=False))
    v = torch.full((1, 4), 0.5, dtype=torch.float64)
    slope = torch.autograd.functional.jacobian(lambda s: proto.step(torch.zeros(1, 3).double(), s)[0], v)[
        0, :, 0
    ].diag()
    assert torch.allclose(slope, torch.full((4,), math.exp(-1 / 20) - 1, dtype=torch.float64))


def test_conv_refuses():
    for options in ({"dilation": [1, 2]}, {"dilation": 0}, {"dilation": [1], "layers": 2}, {"kernel_size": 0}):
        with pytest.raises(ArgumentError):
            Conv(**({"channels": 4, "kernel_size": 3} | options))
    with pytest.raises(ArgumentError, match="act"):
        Conv(4, 3, act="swsh")


def test_conv_sees_as_far_as_its_kernels_reach():
    torch.manual_seed(0)
    proto = bound(Conv(4, 3, dilation=[1, 3], layers=2, act="tanh"))  # 1 + 2 · 1 + 2 · 3 = 9 ticks
    drives = torch.randn(15, 1, 3, dtype=torch.float64, requires_grad=True)
    _, outs = proto.scan(drives, proto.init_state(1))
    (seen,) = torch.autograd.grad(outs[-1][13].sum(), drives)
    assert [bool(v) for v in seen.abs().sum((1, 2)) > 0] == [False] * 5 + [True] * 9 + [False]


def test_transformer_sees_its_context():
    torch.manual_seed(0)
    proto = bound(Transformer(8, 2, layers=1, context=4))
    drives = torch.randn(9, 1, 3, dtype=torch.float64, requires_grad=True)
    _, outs = proto.scan(drives, proto.init_state(1))
    (seen,) = torch.autograd.grad(outs[-1][7].square().sum(), drives)
    assert [bool(v) for v in seen.abs().sum((1, 2)) > 0] == [False] * 4 + [True] * 4 + [False]


def test_transformer_does_not_know_where_a_stream_began():
    """Scores depend on distances alone: the same four ticks give the same output wherever they stand."""
    torch.manual_seed(0)
    proto = bound(Transformer(8, 2, layers=1, context=4))
    drives = torch.randn(30, 2, 3, dtype=torch.float64)
    drives[26:] = drives[4:8]
    _, outs = proto.scan(drives, proto.init_state(2))
    assert torch.allclose(outs[-1][29], outs[-1][7], atol=1e-12)
    turned = torch.cat([drives[:4], drives[4:8].flip(0)])
    _, other = proto.scan(turned, proto.init_state(2))
    assert not torch.allclose(other[-1][7], outs[-1][7], atol=1e-3)


def test_transformer_refuses():
    for options in ({"width": 6, "heads": 2}, {"width": 8, "heads": 3}):
        with pytest.raises(ArgumentError, match="evenly"):
            Transformer(**options)
    with pytest.raises(ArgumentError, match="context"):
        Transformer(8, 2, context=0)
