"""Each proto equals its naive reference, element by element, and so do its gradients."""

from __future__ import annotations

import pytest
import torch
from torch.utils._pytree import tree_leaves

from imprint.protos import LIF, GRUStack, registry

from references.protos_cases import CASES, bound, drives_for
from references.protos_naive import NAIVE, gru


def spread(proto, layers):
    """The gradient of one number that all outputs are part of, with regard to all parameters."""
    loss = sum((out * torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)).sum() for out in layers)
    params = [p for p in proto.parameters() if p.requires_grad]
    return torch.autograd.grad(loss, params, allow_unused=True) if params else ()


def furthest(a, b):
    return max(float((v - w).detach().abs().max()) for v, w in zip(a, b, strict=True))


def test_every_proto_has_a_reference():
    assert set(NAIVE) == set(registry)


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name):
    case = CASES[name]
    proto = bound(case)
    drives = drives_for(proto, 12 if isinstance(proto, LIF) else 6, 2)
    _, outs = proto.scan(drives, proto.init_state(2))
    naive = NAIVE[case.naive](proto, drives, **case.options)
    assert len(outs) == len(naive) and furthest(outs, naive) < 1e-12
    if isinstance(proto, LIF):
        assert 0.05 < outs[0].mean() < 0.95, "a reference that no neuron spikes in says nothing"
    mine, right = spread(proto, outs), spread(proto, naive)
    for (label, _), a, b in zip(proto.named_parameters(), mine, right, strict=True):
        assert a is not None and b is not None, label
        assert (a - b).abs().max() < 1e-11 * max(1.0, float(b.abs().max())), label


@pytest.mark.parametrize("name", CASES)
def test_the_mistake_is_seen(name):
    case = CASES[name]
    proto = bound(case)
    drives = drives_for(proto, 12 if isinstance(proto, LIF) else 6, 2)
    _, outs = proto.scan(drives, proto.init_state(2))
    wrong = NAIVE[case.naive](proto, drives, control=True, **case.options)
    if name in ("conv, kernel 1", "mlp, one layer and act"):  # where the mistake is none
        assert furthest(outs, wrong) < 1e-12
    else:
        assert furthest(outs, wrong) > 1e-3


def test_reset_every():
    """By the rule that whoever steps asks resets_at before each tick."""
    torch.manual_seed(0)
    proto = GRUStack(4, layers=2, layernorm=True, reset_every=3)
    proto.bind(3, dtype=torch.float64)
    drives, state, outs = drives_for(proto, 8, 2), proto.init_state(2), []
    for t in range(8):
        state = proto.init_state(2) if proto.resets_at(t) else state
        state, layers = proto.step(drives[t], state)
        outs.append(layers[-1])
    assert [t for t in range(8) if proto.resets_at(t)] == [3, 6]
    assert furthest([torch.stack(outs)], gru(proto, drives, resets=True)[-1:]) < 1e-12
    assert furthest([torch.stack(outs)], gru(proto, drives)[-1:]) > 1e-3


def test_layernorm_leaves_the_state_alone():
    """The state of a layer is what the cell makes of normalised inputs, and is not normalised itself."""
    torch.manual_seed(0)
    proto = GRUStack(4, layers=2, layernorm=True)
    proto.bind(3, dtype=torch.float64)
    drives = drives_for(proto, 5, 2)
    state, outs = proto.scan(drives, proto.init_state(2))
    first, up, out = proto.norms
    h = torch.zeros(2, 4, dtype=torch.float64)
    for x in drives:
        h = proto.cells[0](first(x), h)
    assert torch.allclose(state[0], h, atol=1e-12) and torch.allclose(outs[0][-1], up(h), atol=1e-12)
    assert torch.allclose(outs[1][-1], out(state[1]), atol=1e-12)
    one = proto.step(drives[0] + 7, state)[0], proto.step(drives[0], state)[0]
    assert torch.allclose(*one, atol=1e-12), "a drive's offset does not matter"
    assert len(tree_leaves(state)) == 1
