"""A user's own loss, signal, formatter, propagators and model, as the recipes for them go."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import imprint as sigprop
from imprint import models, propagators, signals


def new_loss(sp_learn, h1, t1, h0, t0, y_onehot):
    return F.cross_entropy(h1.flatten(1) @ t1.flatten(1).t(), y_onehot)


class NewLoss(sigprop.loss.Loss):
    def __init__(self):
        super().__init__()

    def forward(self, sp_learn, h1, t1, h0, t0, y_onehot):
        return F.cross_entropy(h1.flatten(1) @ t1.flatten(1).t(), y_onehot)


class MySignalGenerator(signals.Generator):
    def __init__(self, module, input_shape, output_shape):
        super().__init__()
        self.input_shape = input_shape
        self.output_shape = output_shape
        self.module = module

    def forward(self, input):
        h0, t0 = input
        t1 = None if t0 is None else self.module(t0.flatten(1)).view(t0.shape[0:1] + self.output_shape)
        h1 = h0
        return h1, t1, h0, t0


class MySignalFormatter(signals.Formatter):
    def forward(self, input):
        h0, t0 = input
        if t0 is not None:
            t0 = F.one_hot(torch.arange(t0.shape[1], device=t0.device), t0.shape[1]).float()
        return h0, t0


class MyLearnPropagator(propagators.Learn):
    def loss_(self, h1, t1, h0, t0, y_onehot):
        return F.cross_entropy(h1.flatten(1) @ t1.flatten(1).t(), y_onehot)

    def train_(self, h1, t1, h0, t0, y_onehot):
        loss = self.loss_(h1, t1, h0, t0, y_onehot)
        if self.optimizer is not None:
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return loss.item(), None, None

    def eval_(self, h1, t1, h0, t0, y_onehot):
        loss = self.loss_(h1, t1, h0, t0, y_onehot)
        return loss.item(), None, None


class MyLearnPropagatorForSignals(propagators.signals.Learn):
    def loss_(self, h1, t1, h0, t0, y_onehot):
        return F.cross_entropy(h1.flatten(1) @ t1.flatten(1).t(), y_onehot)

    def train_(self, h1, t1, h0, t0, y_onehot):
        loss = self.loss_(h1, t1, h0, t0, y_onehot)
        if self.optimizer is not None:
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return loss.item(), None, None

    def eval_(self, h1, t1, h0, t0, y_onehot):
        loss = self.loss_(h1, t1, h0, t0, y_onehot)
        return loss.item(), None, None


class MyPropagator(propagators.Propagator):
    def __init__(self, module):
        super().__init__()

        self.module = module

    def forward(self, input):
        h0, t0, y_onehot = input

        h1 = self.module(h0)
        t1 = t0

        return (h1, t1, y_onehot)


class MyModel(models.Model):
    def __init__(self, model, signal):
        super().__init__(model, signal)

    def forward(self, input):
        x, y_onehot = input
        h0, t0 = self.signal((x, y_onehot, y_onehot))
        h1, t1, y_onehot = self.model((h0, t0, y_onehot))  # noqa: RUF059
        return h1


def build(own_loss, own_propagators: bool, own_signal: bool, own_model: bool) -> nn.Module:
    """A small chain of which some parts are the user's own, the others ours; from the same weights each time."""
    torch.manual_seed(0)
    project, hidden, head = nn.Linear(3, 4), nn.Linear(4, 8), nn.Linear(8, 3)
    sgd = lambda m: torch.optim.SGD(m.parameters(), lr=0.1)
    formatter = MySignalFormatter() if own_signal else signals.DistinctBatchLabelsOnehot()
    generator = (MySignalGenerator if own_signal else signals.ProjectionContext)(project, (3,), (4,))
    module = nn.Sequential(signals.LabelNumberToOnehot(3), formatter, generator)
    if own_propagators:
        signal = MyLearnPropagatorForSignals(module, optimizer=sgd(project))
        chain = nn.Sequential(MyLearnPropagator(hidden, optimizer=sgd(hidden)), MyPropagator(head))
    else:
        signal = propagators.signals.Loss(module, sgd(project), own_loss)
        chain = nn.Sequential(propagators.Loss(hidden, sgd(hidden), own_loss), propagators.Identity(head))
    return (MyModel if own_model else models.Forward)(chain, signal)


def train(model: nn.Module) -> list[torch.Tensor]:
    torch.manual_seed(1)
    outer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(4):
        x, y = torch.randn(6, 4), torch.randint(3, (6,))
        task = F.cross_entropy(model(x, y), y)
        outer.zero_grad()
        task.backward()
        outer.step()
    return [p.detach().clone() for p in model.parameters()]


RECIPES = {
    "loss as a function": (new_loss, False, False, False),
    "loss as a class": (NewLoss(), False, False, False),
    "signal generator and formatter": (new_loss, False, True, False),
    "learning and other propagators": (new_loss, True, False, False),
    "model": (new_loss, False, False, True),
    "all of them": (NewLoss(), True, True, True),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_learns_what_our_own_parts_learn(recipe: str) -> None:
    ours = train(build(sigprop.loss.v1_input_label_direct, False, False, False))
    model = build(*RECIPES[recipe])
    start = [p.detach().clone() for p in model.parameters()]
    theirs = train(model)
    for a, b, s in zip(theirs, ours, start, strict=True):
        torch.testing.assert_close(a, b)
        assert a.dim() == 1 or (a - s).abs().max() > 1e-4  # a bias of the context moves no softmax
    assert all(p.grad is None for p in model.signal.parameters())
    assert all(p.grad is None for p in model.model[0].parameters())


def test_what_a_users_methods_return_is_kept_and_evaluation_writes_nothing() -> None:
    model = build(None, True, True, True)
    x, y = torch.randn(6, 4), torch.randint(3, (6,))
    model.eval()
    before = [p.detach().clone() for p in model.parameters()]
    one, two = model(x, y), model((x, y))
    assert torch.equal(one, two) and torch.equal(one, model(x, None)) and torch.equal(one, model((x, None)))
    assert isinstance(model.model[0].last_loss, float)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("returned", ["tensor", "float", "tuple"])
def test_train_may_return_a_tensor_a_number_or_a_tuple(returned: str) -> None:
    class Own(propagators.Learn):
        def train_(self, h1, t1, h0, t0, y_onehot):
            value = (h1 - t1).square().mean()
            value.backward()  # and no step: the gradient must not be left behind
            return {"tensor": value.detach(), "float": value.item(), "tuple": (value.detach(), 1, 2)}[returned]

        def eval_(self, h1, t1, h0, t0, y_onehot):
            return 7.0

    layer = nn.Linear(2, 2)
    prop = Own(layer, torch.optim.SGD(layer.parameters(), lr=0.1))
    h0, t0 = torch.randn(3, 2), torch.randn(3, 2)
    expected = float((layer(h0) - layer(t0)).square().mean().detach())
    prop((h0, t0, None))
    assert float(prop.last_loss) == pytest.approx(expected)
    assert layer.weight.grad is None and layer.bias.grad is None
    prop.eval()((h0, t0, None))
    assert prop.last_loss == 7.0


def test_a_recipe_with_the_manager_and_a_monitor() -> None:
    torch.manual_seed(0)
    group = sigprop.monitors.Group()
    manager = sigprop.managers.Preset(
        MyModel, propagators.Loss, propagators.signals.Loss,
        lambda m: torch.optim.SGD(m.parameters(), lr=0.1), sigprop.monitors.loss.LabelMetrics, group,
    )  # fmt: skip
    manager.config_propagator(loss=NewLoss())
    generator = MySignalGenerator(nn.Linear(3, 4), (3,), (4,))
    manager.set_signal(nn.Sequential(signals.LabelNumberToOnehot(3), MySignalFormatter(), generator), loss=new_loss)
    hidden = manager.add_propagator(nn.Linear(4, 8))
    head = manager.add_propagator(nn.Linear(8, 3), MyPropagator)
    model = manager.set_model(nn.Sequential(hidden, head))
    model(torch.randn(6, 4), torch.randint(3, (6,)))
    assert group.metrics().count("Acc:") == 2 and "/6)" in group.metrics()
