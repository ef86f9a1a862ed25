"""Hebbian rules equal explicit loops over patches and units, on attached models and for every kind of product."""

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
from imprint.objectives import Hebb, Instar, Oja, Plasticity, Ranked, SoftCompetition, View
from imprint.objectives.synapses import recorded

from references import hebbian, nets
from references.attached import SETUPS, Run

CONTROLS = {
    "hebb": ["behind the activation"], "oja": ["wrong decay"], "instar": ["negative, too"],
    "krotov": ["last", "wrong decay"], "softhebb": ["all for", "no decay"],
}  # fmt: skip
OBJECTIVES: dict[str, type[Plasticity]] = {
    "hebb": Hebb, "oja": Oja, "instar": Instar, "krotov": Ranked, "softhebb": SoftCompetition
}  # fmt: skip


@pytest.mark.parametrize("net,norm,optimizer", SETUPS)
@pytest.mark.parametrize("rule", CONTROLS)
def test_attached_models(rule: str, net: str, norm: bool, optimizer: str) -> None:
    run = Run(rule, net, norm, optimizer)
    by_hand = functools.partial(run.reference, hebbian.train, rule=rule)
    run.equals(by_hand())
    run.differs(by_hand, "sum", "after", *CONTROLS[rule])


@pytest.mark.parametrize("net", ["dense", "conv"])
@pytest.mark.parametrize("options", [{}, {"beta": 0.25, "lr": 0.3, "power": 1.0}], ids=["default", "other"])
def test_softhebb_with_its_own_optimizer(net: str, options: dict[str, float]) -> None:
    run = Run("softhebb", net, True, "own", **options)
    own = functools.partial(hebbian.NormScaled, **{k: v for k, v in options.items() if k != "beta"})
    by_hand = functools.partial(run.reference, hebbian.train, rule="softhebb", own=own, beta=options.get("beta", 1.0))
    run.equals(by_hand())
    for control in ("after", "all for", "no decay"):
        assert nets.furthest(run.model, by_hand(control=control)) > 1e-4
    assert nets.furthest(run.model, by_hand(control="sum")) < 1e-10, "the largest change is one, whatever the size"
    assert isinstance(run.manager.optimizers["task"], torch.optim.Adam)


LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "tokens": (lambda: nn.Linear(4, 5), (3, 6, 4)),
    "row": (lambda: nn.Linear(4, 5, bias=False), (4,)),
    "series": (lambda: nn.Conv1d(2, 4, 3, stride=2, padding=1), (3, 2, 7)),
    "groups": (lambda: nn.Conv2d(4, 6, (2, 3), groups=2, padding=(1, 0), bias=False), (2, 4, 4, 5)),
    "dilation": (lambda: nn.Conv2d(2, 3, 2, stride=(1, 2), dilation=(2, 1), padding=1), (2, 2, 5, 5)),
    "same": (lambda: nn.Conv2d(2, 3, (2, 3), dilation=(1, 2), padding="same"), (2, 2, 4, 5)),
    "valid": (lambda: nn.Conv2d(2, 3, 2, padding="valid"), (2, 2, 3, 3)),
    "volume": (lambda: nn.Conv3d(1, 3, 2, padding=(0, 1, 0)), (2, 1, 3, 2, 3)),
}  # fmt: skip


def gradients(module: nn.Module, x: Tensor, objective: Plasticity) -> dict[str, Tensor | None]:
    with recorded() as seen:
        module(x)
    named = dict(module.named_parameters())
    made = torch.autograd.grad(objective(View(synapses=tuple(seen))), list(named.values()), allow_unused=True)
    return dict(zip(named, made, strict=True))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("rule", CONTROLS)
def test_every_kind_of_product(kind: str, rule: str) -> None:
    make, shape = LAYERS[kind]
    layer, x = make().double(), torch.randn(*shape, dtype=torch.float64)
    found = gradients(layer, x, OBJECTIVES[rule]())
    torch.testing.assert_close(found["weight"], -hebbian.change(layer, x, rule), rtol=1e-10, atol=1e-12)
    assert found.get("bias") is None
    assert (found["weight"] + hebbian.change(layer, x, rule, CONTROLS[rule][0])).abs().max() > 1e-6


def test_a_border_that_reflects() -> None:
    conv = nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect", bias=False).double()
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    plain = nn.Conv2d(2, 3, 3, bias=False).double()
    plain.load_state_dict(conv.state_dict())
    found = gradients(conv, x, SoftCompetition())["weight"]
    wide = F.pad(x, [1] * 4, "reflect")
    torch.testing.assert_close(found, -hebbian.change(plain, wide, "softhebb"), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rule", ["hebb", "oja", "instar"])
def test_the_loss_of_the_literature_has_the_same_gradient(rule: str) -> None:
    """Squares of outputs, and lengths weighed by outputs that count as constants."""
    layer, x = nn.Linear(5, 4, bias=False).double(), torch.randn(7, 5, dtype=torch.float64)
    u = layer(x) if rule != "instar" else layer(x).relu()
    length = layer.weight.square().sum(1)
    forgotten = {"hebb": torch.zeros(4).double(), "oja": u.square().detach().sum(0), "instar": u.detach().sum(0)}[rule]
    loss = (-u.square().sum() + (forgotten * length).sum()) / 2 / len(x)
    (theirs,) = torch.autograd.grad(loss, [layer.weight])
    torch.testing.assert_close(gradients(layer, x, OBJECTIVES[rule]())["weight"], theirs, rtol=1e-10, atol=1e-12)


def test_weights_of_one_unit_do_not_hear_of_each_other() -> None:
    """Where the gradient of a square would run through the second weight into the first."""
    unit, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double(), torch.randn(6, 4).double()
    found = gradients(unit, x, Hebb())
    inner = torch.tanh(unit[0](x)).detach()
    torch.testing.assert_close(found["0.weight"], -hebbian.change(unit[0], x, "hebb"), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found["2.weight"], -hebbian.change(unit[2], inner, "hebb"), rtol=1e-10, atol=1e-12)


def test_oja_finds_the_principal_component() -> None:
    torch.manual_seed(0)
    x = torch.randn(400, 3).double() @ torch.diag(torch.tensor([3.0, 1.0, 0.3])).double()
    first = torch.linalg.eigh(x.T @ x).eigenvectors[:, -1]
    model = nn.Sequential(nn.Linear(3, 1, bias=False)).double()
    manager = imprint.attach(model, "oja", layers=("0",), optimizer=lambda p: torch.optim.SGD(p, 0.02))
    for _ in range(300):
        manager.step(x)
    w = model[0].weight.detach()[0]
    assert abs(float(w.norm()) - 1) < 1e-6 and abs(float((w / w.norm()) @ first)) > 1 - 1e-6


def test_softhebb_brings_weights_to_length_one() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6, bias=False), nn.Linear(6, 3))
    nn.init.normal_(model[0].weight, std=25 / 8**0.5)
    manager = imprint.attach(model, "softhebb", layers=("0",), num_classes=3)
    away = lambda: float((model[0].weight.detach().norm(dim=1) - 1).abs().max())
    before = away()
    for _ in range(600):
        manager.step(torch.randn(10, 8), torch.randint(3, (10,)))
    assert before > 10 and away() < 0.2


def test_a_rule_a_layer() -> None:
    """Each layer with its own competition and rate, a supervised one behind them."""
    start, x, y = nets.chain("conv", False), *nets.batches("conv")[0]
    model = copy.deepcopy(start)
    soft = imprint.rules.SoftHebb
    rules = {"0": soft(beta=1.0, lr=0.08), "1": soft(beta=0.65, lr=0.005), "2": "local_ce"}
    manager = imprint.attach(model, rules, num_classes=3)
    manager.step(x, y)
    h = x
    for i, (beta, lr) in enumerate([(1.0, 0.08), (0.65, 0.005)]):
        layer = start[i][0]
        layer.weight.grad = -hebbian.change(layer, h, "softhebb", beta=beta)
        h = start[i](h).detach()
        hebbian.NormScaled([layer.weight], lr).step()
        torch.testing.assert_close(model[i][0].weight, layer.weight, rtol=1e-10, atol=1e-12)
        assert torch.equal(model[i][0].bias, layer.bias)


@pytest.mark.parametrize("rule", CONTROLS)
def test_what_cannot_be_is_refused(rule: str) -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))
    with pytest.raises(ArgumentError, match=r"no weight(.|\n)*leave the unit out"):
        imprint.attach(model, rule, layers=("0",), num_classes=3).step(torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]))


@pytest.mark.parametrize(
    "rule,options", [("krotov", {"k": 1}), ("krotov", {"delta": -1.0}), ("softhebb", {"beta": 0.0}),
                     ("softhebb", {"lr": -1.0}), ("softhebb", {"power": "half"})],
)  # fmt: skip
def test_options_out_of_range_are_refused(rule: str, options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(options))):
        imprint.attach(nets.chain("dense", False), rule, **options)


def test_too_few_units_to_compete_are_refused() -> None:
    manager = imprint.attach(nets.chain("dense", False), "krotov", layers=("0",), k=9, num_classes=3)
    with pytest.raises(ShapeError, match="at least 9"):
        manager.step(*nets.batches("dense")[0])
