"""Both ways of differentiating find the same gradient, return whatever a unit returns, and leave no graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from imprint.credit import Diff, Instant, add, detach, eager, functional

DIFFS = [eager, functional]
diffs = pytest.mark.parametrize("diff", DIFFS, ids=lambda d: d.__name__)


def params() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {k: nn.Parameter(torch.randn(3, dtype=torch.float64)) for k in ("w", "b", "idle")}


def value(p: dict[str, Tensor]) -> tuple[Tensor, Any]:
    out = (p["w"].tanh() * 2 + p["b"]).exp()
    return out.sum(), {"out": out, "none": None, "fact": (7, "text"), "hidden": [p["w"] * 2]}


@diffs
def test_the_gradient_is_the_written_out_one(diff: Diff) -> None:
    p = params()
    grads, loss, aux = diff(value, p)
    out = (2 * p["w"].tanh() + p["b"]).exp().detach()
    torch.testing.assert_close(grads["b"], out, rtol=1e-12, atol=0)
    torch.testing.assert_close(grads["w"], out * 2 * (1 - p["w"].detach().tanh() ** 2), rtol=1e-12, atol=0)
    torch.testing.assert_close(loss, out.sum())
    torch.testing.assert_close(aux["out"], out)
    assert aux["none"] is None and aux["fact"] == (7, "text")
    torch.testing.assert_close(aux["hidden"][0], p["w"].detach() * 2)


@diffs
@pytest.mark.parametrize("around", [torch.enable_grad, torch.no_grad], ids=["grad", "no_grad"])
def test_nothing_that_comes_back_carries_a_graph(diff: Diff, around: Callable[[], Any]) -> None:
    captured = torch.ones(3, dtype=torch.float64, requires_grad=True)

    def f(p: dict[str, Tensor]) -> tuple[Tensor, Any]:
        return (p["w"] * captured).square().sum(), (p["w"] + 1, p["b"] * captured)

    with around():
        found = diff(f, params())
    assert [v.requires_grad for v in tree_flatten(found)[0]] == [False] * len(tree_flatten(found)[0])


def test_a_parameter_the_loss_does_not_reach_is_left_out_or_zero() -> None:
    p = params()
    assert eager(value, p)[0].keys() == {"w", "b"}
    assert functional(value, p)[0]["idle"].abs().max() == 0.0
    frozen = p | {"b": p["b"].detach()}
    assert eager(value, frozen)[0].keys() == {"w"}
    assert eager(lambda p: (torch.ones(()), ()), p)[0] == {}


@diffs
@pytest.mark.parametrize("names", [(), ("w",)], ids=["no parameter", "a frozen one"])
def test_nothing_to_learn_though_the_loss_has_a_graph(diff: Diff, names: tuple[str, ...]) -> None:
    """A frozen unit whose loss reads a tensor of somebody else that wants gradient."""
    foreign = torch.arange(3.0, dtype=torch.float64, requires_grad=True)
    frozen = {k: torch.full((3,), 2.0, dtype=torch.float64) for k in names}
    grads, loss, aux = diff(lambda p: ((foreign * p.get("w", 2.0)).sum(), foreign + 1), frozen)
    assert float(loss) == 6.0 and aux.tolist() == [1.0, 2.0, 3.0] and not aux.requires_grad
    assert foreign.grad is None
    if diff is eager:
        assert grads == {}
    else:  # by torch.func every parameter has a gradient
        assert {k: g.tolist() for k, g in grads.items()} == {k: [0.0, 1.0, 2.0] for k in names}


@diffs
def test_weights_and_their_grad_stay_as_they_are(diff: Diff) -> None:
    p = params()
    before = {k: v.detach().clone() for k, v in p.items()}
    diff(value, p)
    assert all(torch.equal(p[k], before[k]) and p[k].grad is None for k in p)


def test_functional_can_be_traced_where_a_unit_returns_tensors_alone() -> None:
    def f(p: dict[str, Tensor]) -> tuple[Tensor, Any]:
        return p["w"].tanh().sum(), (p["w"] * 2,)

    def step(w: Tensor) -> Any:
        return functional(f, {"w": w})

    w = torch.randn(3)
    graph = torch.fx.experimental.proxy_tensor.make_fx(step)(w)
    torch.testing.assert_close(graph(w + 1), step(w + 1))


class Line:
    """``h = w x``, with the sum of squares as its loss."""

    def init(self, batch: int) -> Any:
        return ()

    def cell(self, p: dict[str, Tensor], state: Any, x: Tensor) -> Any:
        return state

    def readout(self, p: dict[str, Tensor], state: Any, x: Tensor) -> Tensor:
        return p["w"] * x

    def loss(self, p: dict[str, Tensor], out: Tensor, state: Any, x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (out - y).square().sum()


@diffs
def test_instant_credit_sums_the_gradients_of_its_ticks(diff: Diff) -> None:
    unit, credit, w = Line(), Instant(), nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    p, carry = {"w": w}, {}
    for x, y in ((1.0, 0.0), (3.0, 1.0)):
        xy = torch.tensor([[x], [y]], dtype=torch.float64)
        out, _, carry, loss = credit.tick(unit, p, (), carry, xy[0], xy[1], diff)
        assert float(out) == 2 * x and float(loss) == 0.5 * (2 * x - y) ** 2
    out, _, carry, loss = credit.tick(unit, p, (), carry, xy[0], None, diff)
    assert loss is None and not out.requires_grad
    grads, rest = credit.collect(unit, p, (), carry, diff)
    assert float(grads["w"]) == 2.0 * 1 + (6.0 - 1) * 3 and rest == {}


def test_add_and_detach() -> None:
    a, b = torch.ones(1), torch.ones(1) * 2
    assert {k: float(v) for k, v in add({"a": a, "b": b}, {"b": b, "c": a}).items()} == {"a": 1, "b": 4, "c": 1}
    w = torch.ones(1, requires_grad=True)
    cut = detach({"x": [w * 2, None], "y": 3})
    assert not cut["x"][0].requires_grad and cut["x"][1] is None and cut["y"] == 3
