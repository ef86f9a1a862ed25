"""Information propagation equals its paper by hand; the weights go from the first unit to the last."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn

import imprint
from imprint.errors import ArgumentError, ShapeError
from imprint.objectives import InfoPro, Labels, Spec, Target, View
from imprint.objectives.infopro import to_unit_interval

from references import infopro, nets
from references.attached import SAME, SETUPS, Run


def by_hand(run: Run, control: str = "", **options: tuple[float, float]) -> nn.Sequential:
    parts = copy.deepcopy(run.parts)
    trained = run.reference(infopro.train, parts, control=control, **options)
    if not control and not options:
        for ours, its in zip(run.objectives, parts, strict=True):
            assert nets.furthest(ours, its) < SAME
    return trained


@pytest.mark.parametrize("net,norm,optimizer", SETUPS)
def test_it_equals_its_paper(net: str, norm: bool, optimizer: str) -> None:
    run = Run("infopro", net, norm, optimizer)
    run.equals(by_hand(run))
    run.differs(functools.partial(by_hand, run), "unscaled", "turned", "joint", "after")
    run.differs(functools.partial(by_hand, run), image=(5.0, 5.0))


def test_own_weights() -> None:
    run = Run("infopro", "conv", False, "sgd", reconstruct=1.0, reconstruct_last=2.0, predict=3.0, predict_last=0.0)
    run.equals(by_hand(run, image=(1.0, 2.0), label=(3.0, 0.0)))


def test_an_image_of_another_size_and_what_is_no_map() -> None:
    """The decoder gives as many numbers as the input has, whatever the unit's output is."""
    for shape, image, last in [((3, 2, 5), (2, 7, 6), False), ((9,), (2, 4, 4), False), ((4, 6), (4, 3), True)]:
        objective = InfoPro(5.0, 0.5, 0.5, 1.0)
        objective.bind(Spec(shape, dtype=torch.float64, input=image, depth=0.25, channels_last=last), Labels(3))
        h, x = torch.randn(4, *shape, dtype=torch.float64), torch.randn(4, *image, dtype=torch.float64)
        y, slow = torch.tensor([0, 1, 2, 0]), copy.deepcopy(objective)
        loss = objective(View(h, context=Target(y, x=x)))
        flat = h.mean(1) if last else h
        rebuilt, named = infopro.losses(flat, x if len(shape) == 3 else x.flatten(1), y, slow)
        torch.testing.assert_close(loss, 3.875 * rebuilt + 0.625 * named, rtol=1e-10, atol=0)


@pytest.mark.parametrize("net", ["dense", "conv"])
def test_unlabelled_rows_teach_nothing(net: str) -> None:
    """Neither by their own image, nor by the limits it is scaled with, nor by the statistics of a norm."""

    def run(scale: float) -> tuple[nn.Module, nn.Module]:
        torch.manual_seed(5)
        model, batches = nets.chain(net, False), nets.batches(net)
        manager = imprint.attach(
            model, "infopro", layers=("0", "1", "2"), num_classes=3, optimizer=lambda p: torch.optim.SGD(p, 0.05)
        )
        for x, y in batches:
            manager.step(torch.cat([x[:2] * scale, x[2:]]), torch.cat([y[:2] * 0 - 100, y[2:]]))
        return model, manager.units["2"].unit.objective

    (one, part), (other, its) = run(1.0), run(50.0)
    assert nets.furthest(one, other) < SAME and nets.furthest(part, its) < SAME


def test_a_batch_without_spread_or_without_labels_stays_finite() -> None:
    rows = torch.tensor([True, True])
    assert torch.equal(to_unit_interval(torch.full((2, 3), 7.0), rows), torch.ones(2, 3))
    assert bool(to_unit_interval(torch.randn(2, 3), ~rows).isfinite().all())


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ArgumentError, match="from 0"):
        imprint.attach(nets.chain("dense", False), "infopro", predict=-1.0)
    with pytest.raises(ShapeError, match="no floating input"):
        InfoPro(5.0, 0.5, 0.0, 1.0).bind(Spec((6,)), Labels(3))
