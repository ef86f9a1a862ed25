"""Rules and schedules that must be the same thing, are; beside each, one that must not be."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import imprint
from imprint.objectives import Goodness, Labels, Objective, Spec, Target, View

from references import nets

SAME, OTHER = 1e-10, 1e-6
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": functools.partial(torch.optim.SGD, lr=0.05),
    "momentum": functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "adam": functools.partial(torch.optim.Adam, lr=0.01),
}
optimizers = pytest.mark.parametrize("optimizer", OPTIMIZERS)
kinds = pytest.mark.parametrize("net", ["dense", "conv"])


def attached(model: nn.Module, rule: Any, optimizer: str = "sgd", **options: Any) -> imprint.Manager:
    options = {"num_classes": nets.CLASSES, "optimizer": OPTIMIZERS[optimizer]} | options
    return imprint.attach(model, rule, **options)


def trained(start: nn.Module, rule: Any, data: Any, optimizer: str = "sgd", **options: Any) -> nn.Module:
    """A copy of `start` trained on `data`."""
    model = copy.deepcopy(start)
    torch.manual_seed(5)
    manager = attached(model, rule, optimizer, **options)
    for x, y in data:
        manager.step(x, y)
    return manager.detach()


@dataclass(frozen=True)
class OwnTask(imprint.Rule):
    """A unit whose output is the model's logits and whose local loss is the task's."""

    name: ClassVar[str] = "own_task"

    def objective(self) -> Objective:
        class Task(Objective):
            def forward(self, view: View) -> Tensor:
                return F.cross_entropy(view.h, view.context.y)

        return Task()


@kinds
@optimizers
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
def test_one_unit_around_the_whole_net_is_backpropagation(net: str, optimizer: str, norm: bool) -> None:
    start, data = nets.chain(net, norm), nets.batches(net)
    whole = nn.Sequential(copy.deepcopy(start))
    one = trained(whole, OwnTask(), data, optimizer, layers=["0"])[0]
    opened = trained(whole, "local_ce", data, optimizer, layers=["0"])[0]  # the last unit learns from the task
    backprop = trained(start, "backprop", data, optimizer)
    assert nets.furthest(one, backprop) < SAME and nets.furthest(opened, backprop) < SAME
    several = trained(start, {r"[012]": "local_ce", "3": OwnTask()}, data, optimizer)
    assert nets.furthest(several, backprop) > OTHER


@kinds
@optimizers
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_attached_backprop_is_plain_training_bit_by_bit(
    net: str, optimizer: str, norm: bool, dtype: torch.dtype
) -> None:
    start = nets.chain(net, norm).to(dtype)
    start.insert(1, nn.Dropout(0.2))
    data = [(x.to(dtype), y) for x, y in nets.batches(net)]
    model = copy.deepcopy(start)
    manager = attached(model, "backprop", optimizer).bind(*data[0])
    plain, outputs = copy.deepcopy(start), []
    torch.manual_seed(5)
    for x, y in data:
        outputs.append(manager.step(x, y))
    step = OPTIMIZERS[optimizer](plain.parameters())
    torch.manual_seed(5)
    for (x, y), ours in zip(data, outputs, strict=True):
        out = plain(x)
        assert torch.equal(out, ours)
        step.zero_grad()
        F.cross_entropy(out, y).backward()
        step.step()
    assert all(torch.equal(v, plain.state_dict()[k]) for k, v in model.state_dict().items())
    assert nets.furthest(model, start) > 1e-4


def test_the_default_optimizer_of_backprop_is_one_adam_over_all() -> None:
    start, data = nets.chain("conv", True).float(), [(x.float(), y) for x, y in nets.batches("conv")]
    model = copy.deepcopy(start)
    manager = imprint.attach(model, "backprop", num_classes=nets.CLASSES)
    step = torch.optim.Adam(start.parameters(), 5e-4, fused=True)
    for x, y in data:
        manager.step(x, y)
        step.zero_grad()
        F.cross_entropy(start(x), y).backward()
        step.step()
    assert all(torch.equal(v, start.state_dict()[k]) for k, v in model.state_dict().items())


@kinds
@optimizers
def test_summed_detached_losses_equal_a_backward_pass_a_unit(net: str, optimizer: str) -> None:
    """One sum, one backward pass, all steps at the end: the same numbers as a unit at a time."""
    start, data = nets.chain(net, True), nets.batches(net)
    model = copy.deepcopy(start)
    manager = attached(model, "local_ce", optimizer, layers=["0", "1", "2"], zero_init=False).bind(*data[0])
    heads = [copy.deepcopy(manager.units[u].unit.objective) for u in ("0", "1", "2")]
    summed = copy.deepcopy(start)
    units, classifier = list(summed)[:3], summed[3]
    steps = [OPTIMIZERS[optimizer]([*u.parameters(), *h.parameters()]) for u, h in zip(units, heads, strict=True)]
    steps.append(OPTIMIZERS[optimizer](classifier.parameters()))
    joint = copy.deepcopy((summed, heads))

    for x, y in data:
        manager.step(x, y)
        h, total = x, x.new_zeros(())
        for unit, head in zip(units, heads, strict=True):
            h = unit(h.detach())
            total = total + F.cross_entropy(head.scores(View(h=h)), y)
        (total + F.cross_entropy(classifier(h.detach()), y)).backward()
        for step in steps:
            step.step()
            step.zero_grad()
    assert nets.furthest(model, summed) < SAME

    summed, heads = joint
    units, classifier = list(summed)[:3], summed[3]
    step = OPTIMIZERS[optimizer]([*summed.parameters(), *(p for h in heads for p in h.parameters())])
    for x, y in data:
        h, total = x, x.new_zeros(())
        for unit, head in zip(units, heads, strict=True):
            h = unit(h)
            total = total + F.cross_entropy(head.scores(View(h=h)), y)
        step.zero_grad()
        (total + F.cross_entropy(classifier(h), y)).backward()
        step.step()
    assert nets.furthest(model, summed) > OTHER


ADDITIVE = {"local_ce": {}, "drtp": {}, "backprop": {}, "sigprop": {"loss": "v1"}}


@kinds
@optimizers
@pytest.mark.parametrize("rule", ADDITIVE)
def test_accumulated_batches_equal_one_big_batch(net: str, optimizer: str, rule: str) -> None:
    """For losses that are means over samples, without BatchNorm."""
    start = nets.chain(net, False)
    small = nets.batches(net, count=6, size=4, last=4)
    big = [tuple(torch.cat(v) for v in zip(*small[i : i + 3], strict=True)) for i in (0, 3)]
    # bound with the same sizes, whatever the batch: the context is drawn from the first batch's mean and spread
    run = functools.partial(trained, start, rule, optimizer=optimizer, example=small[0][0], **ADDITIVE[rule])
    few, many = run(data=big), run(data=small, accumulate=3)
    assert nets.furthest(few, many) < SAME and nets.furthest(few, start) > 1e-3
    assert nets.furthest(few, run(data=small)) > OTHER
    assert nets.furthest(few, run(data=small, accumulate=2)) > OTHER


def test_a_last_incomplete_accumulation_is_the_mean_of_what_there_was() -> None:
    start, data = nets.chain("dense", False), nets.batches("dense", count=5, size=4, last=4)
    model = copy.deepcopy(start)
    manager = attached(model, "local_ce", accumulate=3, layers=["0", "1", "2"]).bind(*data[0])
    for x, y in data:
        manager.step(x, y)
    manager.update()
    big = [tuple(torch.cat(v) for v in zip(*data[i:j], strict=True)) for i, j in ((0, 3), (3, 5))]
    assert nets.furthest(model, trained(start, "local_ce", big, layers=["0", "1", "2"])) < SAME


@kinds
def test_target_projection_as_a_loss_equals_a_hook_that_replaces_the_gradient(net: str) -> None:
    """The hook of DRTP's code: whatever the loss says, the gradient at a unit's output is the projected target."""
    start, data = nets.chain(net, True), nets.batches(net)
    model = copy.deepcopy(start)
    manager = attached(model, "drtp", layers=["0", "1", "2"]).bind(*data[0])
    feedback = [manager.units[u].unit.objective.feedback for u in ("0", "1", "2")]
    hooked = copy.deepcopy(start)
    step = OPTIMIZERS["sgd"](hooked.parameters())
    for x, y in data:
        manager.step(x, y)
        h, anything = x, x.new_zeros(())
        for unit, matrix in zip(list(hooked)[:3], feedback, strict=True):
            h = unit(h.detach())
            wanted = (F.one_hot(y, nets.CLASSES).double() @ matrix).view(h.shape) / len(y)
            h.register_hook(lambda grad, wanted=wanted: wanted)
            anything = anything + h.exp().mean()
        step.zero_grad()
        (anything + F.cross_entropy(hooked[3](h.detach()), y)).backward()
        step.step()
    assert nets.furthest(model, hooked) < SAME
    assert nets.furthest(model, trained(start, "backprop", data)) > OTHER


@kinds
def test_positives_and_negatives_in_one_batch_equal_two_passes(net: str) -> None:
    """Without BatchNorm; with it the two see each other."""
    for norm in (False, True):
        unit = nets.chain(net, norm)[0]
        shape = (6,) if net == "dense" else (2, 4, 4)
        positive, negative = (torch.randn(5, *shape, dtype=torch.float64) for _ in range(2))
        objective = Goodness("mean", threshold=0.3)
        objective.bind(Spec(tuple(unit(positive).shape[1:])), Labels(nets.CLASSES))
        context = Target(torch.randint(nets.CLASSES, (5,)))

        def update(t: Tensor, unit: nn.Module = unit, objective: Objective = objective, context: Any = context) -> Any:
            return torch.autograd.grad(objective(View(t=t, context=context)), list(unit.parameters()))

        together = update(unit(torch.cat([positive, negative])))
        apart = update(torch.cat([unit(positive), unit(negative)]))
        difference = max(float((a - b).abs().max()) for a, b in zip(together, apart, strict=True))
        assert (difference < 1e-12) is not norm


def test_mono_forward_is_pred_without_a_bias() -> None:
    """Head without bias against a head whose bias is held at zero; a bias that learns is another rule."""
    start, data = nets.chain("dense", False), nets.batches("dense")

    def run(bias: bool, hold: bool = False) -> nn.Module:
        model = copy.deepcopy(start)
        manager = attached(model, "local_ce", "adam", bias=bias, layers=["0", "1", "2"])
        manager.bind(*data[0])
        if hold:
            for agent in manager.units.values():
                agent.unit.objective.linear.bias.requires_grad_(False)
        for x, y in data:
            manager.step(x, y)
        return model

    assert nets.furthest(run(bias=False), run(bias=True, hold=True)) < SAME
    assert nets.furthest(run(bias=False), run(bias=True)) > OTHER


@kinds
@optimizers
def test_predsim_at_its_ends_is_pred_and_sim(net: str, optimizer: str) -> None:
    start, data = nets.chain(net, True), nets.batches(net)
    options: dict[str, Any] = {"layers": ["0", "1", "2"]}
    run = functools.partial(trained, start, data=data, optimizer=optimizer, **options)
    pred, only_pred = run("local_ce"), run("predsim", beta=0.0)
    assert nets.furthest(pred, only_pred) < SAME
    model = copy.deepcopy(start)
    manager = attached(model, "sim", optimizer, **options).bind(*data[0])
    other = copy.deepcopy(start)
    both = attached(other, "predsim", optimizer, beta=1.0, **options).bind(*data[0])
    for u in ("0", "1", "2"):  # the heads draw different random numbers; the projections shall start alike
        both.units[u].unit.objective.parts[1].load_state_dict(manager.units[u].unit.objective.state_dict())
    for x, y in data:
        manager.step(x, y)
        both.step(x, y)
    assert nets.furthest(model, other) < SAME
    assert nets.furthest(pred, model) > OTHER


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_one_context_row_a_class_equals_one_row_a_sample(optimizer: str) -> None:
    """Five classes, batches of five: where rows are classes in order, both modes are the same batch of rows."""
    classes = 5
    start = nn.Sequential(*nets.chain("dense", False)[:3], nn.Linear(7, classes)).double()
    data = [(torch.randn(classes, 6, dtype=torch.float64), torch.randperm(classes)) for _ in range(5)]

    def run(samples: bool, loss: str) -> nn.Module:
        model = copy.deepcopy(start)
        torch.manual_seed(2)
        options = {"num_classes": classes, "layers": ["0", "1", "2"], "loss": loss}
        manager = attached(model, "sigprop", optimizer, **options).bind(*data[0])
        if samples:
            manager.context.stream.codes = lambda onehot, rows, error: (onehot, False)
        for x, y in data:
            manager.step(x, y)
        return model

    for loss in ("v1", "v9", "v14", "v15"):
        assert nets.furthest(run(False, loss), run(True, loss)) < SAME
    assert nets.furthest(run(False, "v1"), start) > 1e-3


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_direct_feedback_through_the_downstream_jacobians_is_backpropagation(optimizer: str) -> None:
    """Of a linear net they are products of its weights; set anew before every step."""
    torch.manual_seed(0)
    start = nn.Sequential(*(nn.Linear(a, b) for a, b in ((6, 8), (8, 7), (7, 9), (9, 3)))).double()
    data = nets.batches("dense")

    def run(rule: str, exact: bool = False) -> nn.Module:
        model = copy.deepcopy(start)
        manager = attached(model, rule, optimizer, num_classes=3).bind(*data[0])
        for x, y in data:
            if exact:
                through = torch.eye(3).double()
                for i in (3, 2, 1):
                    through = through @ model[i].weight.detach()
                    manager.units[str(i - 1)].unit.objective.feedback.copy_(through)
            manager.step(x, y)
        return model

    backprop = run("backprop")
    assert nets.furthest(run("dfa", exact=True), backprop) < SAME
    assert nets.furthest(run("dfa"), backprop) > 1e-3
    assert nets.furthest(backprop, start) > 1e-3
