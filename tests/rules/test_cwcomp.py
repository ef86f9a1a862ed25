"""Channel-wise competition equals its paper by hand; labels mean what they mean everywhere."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import imprint
from imprint.errors import ArgumentError, ShapeError
from imprint.objectives import ChannelGroups, Labels, Spec, Target, View

from references import channelwise, nets
from references.attached import SAME, SETUPS, Run


@pytest.mark.parametrize("net,norm,optimizer", SETUPS)
def test_it_equals_its_paper(net: str, norm: bool, optimizer: str) -> None:
    run = Run("cwcomp", net, norm, optimizer)
    by_hand = functools.partial(run.reference, channelwise.train, classes=nets.CLASSES)
    run.equals(by_hand())
    run.differs(by_hand, "sum", "next label", "joint", "after")


def test_every_derivative_written_out() -> None:
    run = Run("cwcomp", "dense", False, "sgd")
    linear = lambda model: [m for m in copy.deepcopy(model).modules() if isinstance(m, nn.Linear)]
    layers, ours = linear(run.start), linear(run.model)
    channelwise.train_dense(layers[:3], run.batches, 0.05, nets.CLASSES)
    for a, b in zip(ours[:3], layers[:3], strict=True):
        assert nets.furthest(a, b) < SAME


@pytest.mark.parametrize("shape,last", [((7,), False), ((5, 4), False), ((4, 3, 2), False), ((4, 7), True)])
def test_scores(shape: tuple[int, ...], last: bool) -> None:
    """Of vectors, series, maps and tokens; 7, 5 and 4 are no multiples of 3."""
    objective = ChannelGroups()
    objective.bind(Spec(shape, dtype=torch.float64, channels_last=last), Labels(3))
    h = torch.randn(5, *shape, dtype=torch.float64)
    slow = channelwise.activity(h.movedim(-1, 1) if last else h, 3)
    torch.testing.assert_close(objective.scores(View(h)), slow, rtol=1e-12, atol=1e-14)
    wrong = channelwise.activity((h.movedim(-1, 1) if last else h).flip(1), 3)
    assert (objective.scores(View(h)) - wrong).abs().max() > 1e-3


def test_local_prediction_adds_up_what_all_units_say() -> None:
    run = Run("cwcomp", "conv", False, "adam")
    h, total = run.batches[0][0], torch.zeros(6, 3, dtype=torch.float64)
    with torch.no_grad():
        for unit in list(copy.deepcopy(run.model))[:3]:
            h = unit(h)
            total += channelwise.activity(h, 3)
    torch.testing.assert_close(run.manager.predict(run.batches[0][0], by="local"), total, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "options", [{"weight": torch.tensor([0.2, 1.0, 3.0])}, {"label_smoothing": 0.2}, {"ignore_index": 1}, {}]
)
def test_labels(options: dict[str, Any]) -> None:
    objective = ChannelGroups()
    objective.bind(Spec((6,), dtype=torch.float64), Labels(3, **options))
    h, y = torch.randn(8, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 2, 1, 0, 0, 2])
    loss = objective(View(h, context=Target(y)))
    given = {k: v.double() if isinstance(v, Tensor) else v for k, v in options.items()}
    torch.testing.assert_close(loss, F.cross_entropy(channelwise.activity(h, 3), y, **given), rtol=1e-12, atol=0)
    if options:
        assert (loss - F.cross_entropy(channelwise.activity(h, 3), y)).abs() > 1e-3


def test_too_few_channels_and_values_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"unit '0'(.|\n)*at least 20(.|\n)*widen the layer"):
        imprint.attach(nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 20)), "cwcomp", num_classes=20).bind(
            torch.randn(3, 4), torch.tensor([0, 1, 2])
        )
    with pytest.raises(ArgumentError, match="values"):
        ChannelGroups().bind(Spec((6,)), Labels())
