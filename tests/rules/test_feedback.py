"""Rules in which the output's error comes back: direct, through other weights, or at the front."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import imprint
from imprint.errors import ArgumentError, CoverageError
from imprint.functional.backward import StraightThrough, with_feedback
from imprint.functional.operations import Linear

from references import feedback_alignment as alignment
from references import input_modulation, nets
from references.attached import OTHER, SAME, Run

setups = pytest.mark.parametrize("optimizer", ["sgd", "adam"])
on_nets = pytest.mark.parametrize("net", ["dense", "conv"])


@setups
@on_nets
@pytest.mark.parametrize("rule", ["dfa", "sdfa"])
def test_direct_feedback(rule: str, net: str, optimizer: str) -> None:
    run = Run(rule, net, False, optimizer)
    feedback = [p.feedback for p in run.parts]
    by_hand = functools.partial(run.reference, alignment.train, alignment.direct(feedback, rule == "sdfa"))
    run.equals(by_hand())
    run.differs(by_hand, "sum", "no derivative", "next label", "sign")


def feedback_of(run: Run) -> list[Tensor]:
    """The matrices that the units draw by their names."""
    found = []
    for agent in run.manager.units.values():
        for name, p in agent.unit.parameters().items():
            if p.dim() > 1:
                found.append(agent.unit.operations.feedback(name, p.detach()))
    return found


@setups
@on_nets
def test_feedback_alignment(net: str, optimizer: str) -> None:
    run = Run("fa", net, False, optimizer, layers=("0", "1", "2", "3"))
    by_hand = functools.partial(run.reference, alignment.train, alignment.sequential(feedback_of(run)))
    run.equals(by_hand())
    run.differs(by_hand, "sum", "no derivative", "next label", "weights")


@pytest.mark.parametrize("kind", ["usf", "frsf", "brsf"])
def test_signs_come_back(kind: str) -> None:
    torch.manual_seed(0)
    rule = imprint.rules.FA(kind, seed=3)
    weight = torch.randn(4, 5)
    one, two, other = (rule.operations().feedback("a", weight) for _ in range(3))  # type: ignore[union-attr]
    assert torch.equal(one.sign(), weight.sign()) and torch.equal(one, two) is (kind != "brsf")
    sizes = one.abs() * 5**0.5
    assert (kind == "usf") is bool(((sizes - 1).abs() < 1e-6).all()) and sizes.mean() < 1.5
    assert other.shape == weight.shape
    flipped = rule.operations().feedback("a", -weight)  # type: ignore[union-attr]
    assert torch.equal(flipped.sign(), -one.sign())


def test_feedback_depends_on_name_and_seed_alone() -> None:
    draw = lambda name, seed: imprint.rules.FA(seed=seed).operations().feedback(name, torch.zeros(3, 4))  # type: ignore[union-attr]
    torch.manual_seed(0)
    first = draw("a", 0)
    torch.manual_seed(1)
    assert torch.equal(first, draw("a", 0))
    assert not torch.equal(first, draw("b", 0)) and not torch.equal(first, draw("a", 1))


def test_feedback_alignment_with_the_weights_is_backpropagation(monkeypatch: pytest.MonkeyPatch) -> None:
    """And with others it is not."""
    start, batches = nets.chain("conv", True), nets.batches("conv")

    def trained(rule: str) -> nn.Module:
        model = copy.deepcopy(start)
        sgd = functools.partial(torch.optim.SGD, lr=0.05)
        manager = imprint.attach(model, rule, layers=["0", "1", "2", "3"], optimizer=sgd)
        for x, y in batches:
            manager.step(x, y)
        return model

    assert nets.furthest(trained("fa"), trained("backprop")) > OTHER
    monkeypatch.setattr(imprint.rules.fa.Feedback, "feedback", lambda self, name, weight: weight)
    assert nets.furthest(trained("fa"), trained("backprop")) < SAME


CONVOLUTIONS: list[tuple[Any, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    (F.conv1d, (2, 4, 9), (6, 2, 3), {"stride": 2, "groups": 2}),
    (F.conv2d, (2, 3, 6, 5), (4, 3, 3, 3), {"padding": 1, "dilation": (1, 1)}),
    (F.conv2d, (2, 3, 6, 5), (4, 3, 3, 2), {"padding": "same"}),
    (F.conv2d, (3, 6, 5), (4, 3, 3, 3), {"padding": "valid"}),
    (F.conv3d, (2, 2, 4, 4, 4), (3, 2, 2, 2, 2), {"stride": (1, 2, 1)}),
    (F.linear, (2, 3, 5), (4, 5), {}),
    (F.linear, (5,), (4, 5), {}),
]


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=lambda c: f"{c[0].__name__} {c[3]}")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_a_product_with_feedback(case: Any, bias: bool) -> None:
    """Forward and the weight's gradient are torch's; the input's is that of the product with the feedback."""
    func, shape, size, options = case
    torch.manual_seed(0)
    x, w, fed = (torch.randn(s, dtype=torch.float64) for s in (shape, size, size))
    b = torch.randn(size[0], dtype=torch.float64) if bias else None
    leaves = [v.clone().requires_grad_() for v in (x, w)]
    out = with_feedback(Linear(func, *leaves, b, **options), fed)
    plain = [v.clone().requires_grad_() for v in (x, w)]
    expected = func(*plain, b, **options)
    torch.testing.assert_close(out, expected)
    g = torch.randn_like(out)
    to_x, to_w = torch.autograd.grad(out, leaves, g)
    other = x.clone().requires_grad_()
    torch.testing.assert_close(to_w, torch.autograd.grad(expected, plain[1], g)[0])
    torch.testing.assert_close(to_x, torch.autograd.grad(func(other, fed, b, **options), other, g)[0])


@setups
@on_nets
def test_error_driven_input_modulation(net: str, optimizer: str) -> None:
    run = Run("pepita", net, False, optimizer, scale=2.0)
    feedback = run.manager.context.stream.feedback
    by_hand = functools.partial(run.reference, input_modulation.train, feedback)
    run.equals(by_hand())
    run.differs(by_hand, "derivative", "first input", "first error", "minus")


def test_both_passes_of_input_modulation_have_the_same_dropout() -> None:
    """Without an error, nothing differs between the passes, and hidden units do not move."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 50), nn.ReLU(), nn.Dropout(0.5), nn.Linear(50, 3))
    manager = imprint.attach(model, "pepita", optimizer=functools.partial(torch.optim.SGD, lr=1.0))
    x, y = torch.randn(8, 6), torch.randint(3, (8,))
    manager.bind(x, y)
    with torch.no_grad():
        manager.context.stream.feedback.zero_()
    before = model[0].weight.detach().clone()
    manager.step(x, y)
    assert torch.equal(before, model[0].weight)
    assert model[3].weight.grad is None


def test_running_statistics_are_those_of_the_first_pass() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)).double()
    plain = copy.deepcopy(model)
    x, y = torch.randn(8, 6).double(), torch.randint(3, (8,))
    manager = imprint.attach(model, "pepita", scale=5.0)
    out = manager.step(x, y)
    torch.testing.assert_close(out, plain(x))
    for a, b in zip(model.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b)


def test_error_forward_propagation() -> None:
    """By hand: a first pass, its error through W as the context, and a contrast at every unit."""
    torch.manual_seed(0)
    start = nets.chain("dense", False)
    batches, model = nets.batches("dense"), copy.deepcopy(start)
    sgd = functools.partial(torch.optim.SGD, lr=0.05)
    manager = imprint.attach(model, "efp", layers=["0", "1", "2"], optimizer=sgd, num_classes=3).bind(*batches[0])
    projection = manager.context.stream.weight0.detach().clone()
    units, classifier = nets.split(start)
    others, _ = nets.split(start)

    def by_hand(units: list[nn.Module], classifier: nn.Module, error_of: Any) -> nn.Module:
        steps = [sgd(u.parameters()) for u in (*units, classifier)]
        for x, y in batches:
            with torch.no_grad():
                z = classifier(nn.Sequential(*units)(x))
                t = error_of(z, y) @ projection
            h = x
            for unit, step in zip(units, steps, strict=False):
                h, t = unit(h), unit(t)
                logits = F.normalize(h) @ F.normalize(t).T / 0.1
                rows = []
                for i in range(len(y)):
                    mine = [j for j in range(len(y)) if y[j] == y[i]]
                    classes = [torch.stack([logits[i, j] for j in range(len(y)) if y[j] == k]) for k in set(y.tolist())]
                    rows.append(_v1(logits[i], i, y, mine, classes))
                step.zero_grad()
                torch.stack(rows).mean().backward()
                step.step()
                h, t = h.detach(), t.detach()
            steps[-1].zero_grad()
            F.cross_entropy(classifier(h), y).backward()
            steps[-1].step()
        return nets.join(units, classifier)

    for x, y in batches:
        manager.step(x, y)
    right = by_hand(units, classifier, lambda z, y: z.softmax(1) - F.one_hot(y, 3))
    assert nets.furthest(model, right) < SAME and nets.furthest(model, start) > 1e-3
    wrong = by_hand(others, nets.split(start)[1], lambda z, y: F.one_hot(y, 3).double())
    assert nets.furthest(model, wrong) > OTHER


def _v1(row: Tensor, i: int, y: Tensor, mine: list[int], classes: list[Tensor]) -> Tensor:
    """Each class has one vote, shared by its rows; the sample's own row is the positive."""
    total = torch.stack([(c.exp() / len(c)).sum() for c in classes]).sum().log()
    return total - row[i]


def test_activations_let_gradients_through() -> None:
    for act in (F.relu, torch.tanh, F.leaky_relu, torch.sigmoid, F.gelu, F.silu, nn.ReLU(inplace=True), nn.PReLU()):
        x = torch.randn(5, dtype=torch.float64, requires_grad=True)
        with StraightThrough():
            h = act(x * 1.0) if not isinstance(act, nn.PReLU) else act.double()(x * 1.0)
        (g,) = torch.autograd.grad(h.sum(), [x])
        assert torch.equal(g, torch.ones_like(g)) is not isinstance(act, nn.PReLU)
        assert torch.equal(h.detach(), act((x * 1.0).detach()))


def test_bad_options() -> None:
    with pytest.raises(ArgumentError, match="unknown kind"):
        imprint.rules.FA("nonsense")
    with pytest.raises(ArgumentError, match="seed= is no whole number"):
        imprint.rules.FA(seed=0.5)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="scale= must be positive"):
        imprint.rules.Pepita(0)
    with pytest.raises(ArgumentError, match="sign= is on or off"):
        imprint.objectives.ErrorFeedback(1)  # type: ignore[arg-type]


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x, x, x, need_weights=False)[0]


class Recurs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.GRU(6, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x)[0]


class Multiplies(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class Spreads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.ConvTranspose1d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x)


@pytest.mark.parametrize("rule", ["fa", "softhebb"])
@pytest.mark.parametrize("kind", [Attends, Recurs, Multiplies, Spreads])
def test_weights_that_cannot_be_reached_are_refused(rule: str, kind: type[nn.Module]) -> None:
    """Else they would learn by another rule, or not at all, without a word."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(kind(), nn.Tanh()), nn.Flatten(), nn.Linear(24, 3))
    before = copy.deepcopy(model.state_dict())
    manager = imprint.attach(model, rule, layers=["0", "2"] if rule == "fa" else ["0"])
    with pytest.raises(CoverageError, match=r"unit '0'[\s\S]*multiplies with it inside"):
        manager.step(torch.randn(5, 4, 6), torch.randint(3, (5,)))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    plain = imprint.attach(copy.deepcopy(manager.detach()), "local_ce", layers=["0"])
    plain.step(torch.randn(5, 4, 6), torch.randint(3, (5,)))
