"""SymBa equals its paper by hand; it shares streams with forward-forward, and not the loss."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn

import imprint
from imprint.errors import ArgumentError

from references import forward_forward_paper, nets, symba
from references.attached import SAME, SETUPS, Run


@pytest.mark.parametrize("net,norm,optimizer", SETUPS)
@pytest.mark.parametrize("reduce,alpha", [("mean", 4.0), ("sum", 0.5)])
def test_it_equals_its_paper(net: str, norm: bool, optimizer: str, reduce: str, alpha: float) -> None:
    run = Run("symba", net, norm, optimizer, nn.ReLU, goodness=reduce, alpha=alpha)
    by_hand = functools.partial(
        run.reference, symba.train, classes=nets.CLASSES, high=float(run.batches[0][0].max()), reduce=reduce,
        alpha=alpha,
    )  # fmt: skip
    run.equals(by_hand())
    run.differs(by_hand, "any label", "joint", "after", "swapped", alpha=alpha + 1)


def test_without_normalisation() -> None:
    run = Run("symba", "dense", False, "adam", nn.ReLU, normalize=False)
    high = float(run.batches[0][0].max())
    by_hand = functools.partial(run.reference, symba.train, classes=nets.CLASSES, high=high)
    run.equals(by_hand(norm=""))
    assert nets.furthest(run.model, by_hand()) > 1e-3


def test_every_derivative_written_out() -> None:
    run = Run("symba", "dense", False, "sgd", nn.ReLU)
    linear = lambda model: [m for m in copy.deepcopy(model).modules() if isinstance(m, nn.Linear)][:3]
    layers, high = linear(run.start), float(run.batches[0][0].max())
    torch.manual_seed(7)
    symba.train_dense(layers, run.batches, 0.05, nets.CLASSES, high, 4.0)
    for a, b in zip(linear(run.model), layers, strict=True):
        assert nets.furthest(a, b) < SAME
    x = run.batches[0][0]
    units = list(copy.deepcopy(run.model))[:3]
    by_hand = forward_forward_paper.label_goodness(units, x, nets.CLASSES, high, "mean")
    torch.testing.assert_close(run.manager.predict(x, by="local"), by_hand, rtol=SAME, atol=1e-12)


@pytest.mark.parametrize("options,match", [({"alpha": 0}, "alpha"), ({"goodness": "max"}, "sum | mean")])
def test_wrong_options_are_refused(options: dict[str, object], match: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        imprint.attach(nets.chain("dense", False), "symba", **options)
