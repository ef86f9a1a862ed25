"""Corners where rules meet other rules, other inputs and other precisions: right, or refused by name."""

from __future__ import annotations

import copy
import functools
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import imprint
from imprint.errors import ArgumentError, ImprintError, LabelError, ShapeError, StateError
from imprint.functional.backward import StraightThrough
from imprint.objectives import Objective
from imprint.rules import registry

sgd = functools.partial(torch.optim.SGD, lr=0.05)
HEBBIAN = sorted(n for n, r in registry.items() if (r().objective() or Objective()).needs_synapses)


def net(*sizes: int) -> nn.Sequential:
    torch.manual_seed(0)
    widths = sizes or (6, 8, 8, 3)
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def batches(count: int = 4, rows: int = 12) -> list[tuple[Tensor, Tensor]]:
    own = torch.Generator().manual_seed(3)
    return [(torch.randn(rows, 6, generator=own), torch.randint(3, (rows,), generator=own)) for _ in range(count)]


@pytest.mark.parametrize("rule", ["cafo", "dgl"])
def test_what_others_note_in_the_second_pass_stays(rule: str) -> None:
    """The running statistics of the model are those of the first pass; of heads, of the pass they learn in."""
    model = net().double()
    rules = {"0|1": "pepita", "2|3": rule, "4": "backprop"}
    manager = imprint.attach(model, rules, num_classes=3, optimizer=sgd)
    seen: list[Tensor] = []
    model[2].register_forward_hook(lambda m, args, out: seen.append(out.detach().relu()))
    objective = manager.units["2"].unit.objective
    changed = []
    for x, y in batches():
        before = {k: b.clone() for k, b in objective.named_buffers()}
        manager.step(x.double(), y)
        changed.append(any(not torch.equal(b, before.get(k, b * 0)) for k, b in objective.named_buffers()))
    assert changed == [True] * 4
    if rule == "cafo":
        x, y = torch.cat(seen[-8:][1::2]), torch.cat([y for _, y in batches()])
        gram = x.T @ x + 1e-3 * torch.eye(8).double()
        right = torch.linalg.solve(gram, x.T @ F.one_hot(y, 3).double())
        torch.testing.assert_close(objective.weight, right, rtol=1e-7, atol=1e-9)


class Wrapped(nn.Module):
    """The logits in a list, a tuple or a dict, beside something else."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.c, self.kind = nn.Linear(6, 8), nn.Linear(8, 3), kind

    def forward(self, x: Tensor) -> Any:
        z = self.c(torch.tanh(self.a(x)))
        return {"list": [z, x], "tuple": (z, x), "dict": {"a": z, "b": x}, "plain": z}[self.kind]


READ = {"list": lambda o: o[0], "tuple": lambda o: o[0], "dict": lambda o: o["a"], "plain": lambda o: o}


@pytest.mark.parametrize("rule", ["dfa", "sdfa", "pepita", "efp"])
@pytest.mark.parametrize("kind", ["list", "tuple", "dict"])
def test_an_own_task_loss_sees_the_whole_output(rule: str, kind: str) -> None:
    def trained(kind: str) -> nn.Module:
        model = Wrapped(kind)
        loss = lambda out, y: F.cross_entropy(READ[kind](out), y)
        torch.manual_seed(1)
        manager = imprint.attach(model, rule, layers=["a"], num_classes=3, task_loss=loss, optimizer=sgd)
        for x, y in batches():
            manager.step(x, y)
        return model

    ours, plain = trained(kind), trained("plain")
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), plain.parameters(), strict=True))


def test_a_task_loss_that_does_not_read_the_output_is_refused() -> None:
    model = Wrapped("tuple")
    manager = imprint.attach(model, "dfa", layers=["a"], num_classes=3, task_loss=lambda out, y: out[1].square().mean())
    with pytest.raises(ArgumentError, match="does not read the first floating tensor"):
        manager.step(*batches()[0])


@pytest.mark.parametrize("rule", [*HEBBIAN, "scff"])
def test_targets_that_nobody_would_read_are_refused(rule: str) -> None:
    (x, y), *_ = batches()
    manager = imprint.attach(net(), rule, example=x)
    manager.step(x)
    with pytest.raises(StateError, match=r"none would read y[\s\S]*manager\.bind\(x, y\)"):
        manager.step(x, torch.randn(len(x)))
    with pytest.raises(LabelError, match="number of classes"):
        manager.step(x, y)
    told = imprint.attach(net(), rule, example=x, num_classes=3)
    told.step(x, y)
    assert told.bound["opened"] == "4"  # type: ignore[index]


@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm"])
@pytest.mark.parametrize("rule", ["fa", "oja"])
def test_weights_that_are_made_of_others_are_refused(rule: str, norm: str) -> None:
    model = net()
    getattr(parametrizations, norm)(model[2])
    with pytest.raises(
        ImprintError, match=r"made of other parameters|unit '2'[\s\S]*no weight of the unit that learns"
    ):
        imprint.attach(model, rule, layers=["0", "2", "4"] if rule == "fa" else ["0", "2"]).bind(*batches()[0])


class InPlace(nn.Module):
    """An activation as a statement."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.linear, self.how = nn.Linear(6, 8), how

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x)
        if self.how == "method":
            h.relu_()
        elif self.how == "function":
            F.relu(h, inplace=True)
        elif self.how == "torch":
            torch.tanh_(h)
        else:
            h.clamp_(min=0.0)
        return h


@pytest.mark.parametrize("how", ["method", "function", "torch", "clamp"])
def test_activations_written_in_place_are_not_lost(how: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(InPlace(how), nn.Linear(8, 3))
    (x, y), *_ = batches()
    before = model(x)
    with StraightThrough():
        h = model[0](x)
    (g,) = torch.autograd.grad(h.sum(), [model[0].linear.bias])
    assert torch.equal(h, model[0](x)) and torch.equal(g, torch.full_like(g, len(x)))
    manager = imprint.attach(model, "pepita", num_classes=3, layers=["0"])
    assert torch.equal(manager.predict(x), before) and torch.equal(manager.step(x, y), before.detach())


def test_the_input_is_batch_first() -> None:
    """Whatever the model takes."""
    seen: list[Any] = []

    class Looks(Objective):
        def forward(self, view: Any) -> Tensor:
            seen.append(view.context.x)
            return view.h.square().mean()

    class Rule(imprint.Rule):
        def objective(self) -> Objective:
            return Looks()

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.c = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.a(x).mean(0))

    x = torch.randn(7, 5, 6)
    imprint.attach(Turned(), Rule(), layers=["a"]).step(x, torch.randint(3, (5,)))
    assert seen[-1].shape == (5, 7, 6) and torch.equal(seen[-1], x.movedim(1, 0))


def test_streams_with_other_options_are_refused() -> None:
    rules = {"0": imprint.rules.Pepita(scale=0.05), "2": imprint.rules.Pepita(scale=5.0)}
    with pytest.raises(ArgumentError, match="different context streams"):
        imprint.attach(net(), rules)
    imprint.attach(net(), {"0": imprint.rules.Pepita(scale=5.0), "2": imprint.rules.Pepita(scale=5.0)})


class Crossed(nn.Module):
    """Defines what it calls last first."""

    def __init__(self) -> None:
        super().__init__()
        self.late, self.early, self.out = nn.Linear(8, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.late(torch.tanh(self.early(x)))))


def test_depth_and_turns_follow_the_forward() -> None:
    model = Crossed()
    manager = imprint.attach(model, "greedy", layers=["late", "early"], steps=2, num_classes=3, optimizer=sgd)
    moved = []
    for x, y in batches():
        before = copy.deepcopy(model.state_dict())
        manager.step(x, y)
        moved.append([n for n in ("early", "late") if not torch.equal(before[f"{n}.weight"], getattr(model, n).weight)])
    assert moved == [["early"]] * 2 + [["late"]] * 2
    info = imprint.attach(Crossed(), "infopro").bind(*batches()[0])
    depths = {n: a.unit.objective.spec.depth for n, a in info.units.items() if not a.open}
    assert depths == {"late": 1.0, "early": 0.0}


def test_the_closed_form_keeps_its_precision_and_takes_any_model() -> None:
    manager = imprint.attach(net(), "cafo", num_classes=3)
    for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.float32):
        manager.to(dtype)
        for x, y in batches():
            manager.step(x.to(dtype), y)
        objective = manager.units["0"].unit.objective
        assert objective.inverse.dtype == objective.weight.dtype == torch.float64
    manager.to(torch.float64)
    before = objective.inverse.clone()
    manager.to(torch.float32)
    manager.predict(batches()[0][0], by="local")
    assert torch.equal(before, objective.inverse)


@pytest.mark.parametrize("rule", ["dfa", "sdfa"])
def test_a_label_a_token(rule: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    before = model[0].weight.detach().clone()
    loss = lambda out, y: F.cross_entropy(out.flatten(0, 1), y.flatten())
    manager = imprint.attach(model, rule, num_classes=3, task_loss=loss, optimizer=sgd)
    manager.step(torch.randn(5, 4, 6), torch.randint(3, (5, 4)))
    assert not torch.equal(before, model[0].weight)


@pytest.mark.parametrize("rule", ["dfa", "sdfa", "pepita"])
def test_values_without_a_dimension_of_their_own(rule: str) -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.c = nn.Linear(6, 8), nn.Linear(8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.tanh(self.a(x))).squeeze(-1)

    torch.manual_seed(0)
    model = Flat()
    before = model.a.weight.detach().clone()
    imprint.attach(model, rule, layers=["a"], optimizer=sgd).step(torch.randn(5, 6), torch.randn(5))
    assert not torch.equal(before, model.a.weight)


@pytest.mark.parametrize("rule", sorted(n for n, r in registry.items() if "layers" in r.worlds and r.learns))
def test_under_autocast(rule: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(96, 3),
    )  # fmt: skip
    start = copy.deepcopy(model)
    manager = imprint.attach(model, rule, num_classes=3)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            manager.step(torch.randn(5, 1, 6, 6), torch.randint(3, (5,)))
    moved = [not torch.equal(a, b) for a, b in zip(start.parameters(), model.parameters(), strict=True)]
    assert any(moved) and all(p.dtype == torch.float32 and p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    "rule,error", [("dfa", r"unit 'a'[\s\S]*another size"), ("pepita", "inputs have another size than at bind")]
)
def test_another_size_than_at_bind_is_named(rule: str, error: str) -> None:
    class Conv(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.c = nn.Conv1d(2, 4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.relu(self.a(x)).mean(2))

    model = Conv()
    manager = imprint.attach(model, rule, layers=["a"])
    manager.step(torch.randn(5, 2, 8), torch.randint(3, (5,)))
    with pytest.raises(ShapeError, match=error):
        manager.step(torch.randn(5, 2, 9), torch.randint(3, (5,)))


@pytest.mark.parametrize("rule", ["pepita", "scff", "forward_forward"])
def test_streams_that_start_at_the_input_start_nowhere_else(rule: str) -> None:
    with pytest.raises(ArgumentError, match="starts at the model's input"):
        imprint.attach(net(), rule, context_at="0", layers=["2"])


@pytest.mark.parametrize("rule", HEBBIAN)
def test_units_without_a_product_are_refused_before_anything_moves(rule: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    before = copy.deepcopy(model.state_dict())
    manager = imprint.attach(model, rule, layers=["0", "1"])
    with pytest.raises(ArgumentError, match=r"unit '1'[\s\S]*no weight of the unit"):
        manager.step(*batches()[0])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and manager.bound is None


def test_too_few_units_to_compete_are_refused_at_bind() -> None:
    with pytest.raises(ShapeError, match=r"unit '0'[\s\S]*fewer than k=9"):
        imprint.attach(net(), "krotov", k=9, layers=["0"]).bind(*batches()[0])


def test_inference_draws_no_feedback() -> None:
    manager = imprint.attach(net(), imprint.rules.FA("brsf"))
    manager.bind(*batches()[0])
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    manager.predict(batches()[0][0])
    assert torch.equal(torch.rand(3), expected)
