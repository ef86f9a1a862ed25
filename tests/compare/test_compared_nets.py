"""The nets, the baseline that is no rule, and what is measured beside accuracy, against slow references."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import imprint
from imprint.compare import NETS, DeepSupervision, Net, contestants
from imprint.compare.images import VGG8b
from imprint.compare.measures import Clock, Cosine, Time, Timed, outputs, ridge_accuracy
from imprint.compare.nets import check_net, find_net
from imprint.compare.settings import Budget, Task
from imprint.compare.vit import patch_size
from imprint.data import Data
from imprint.errors import ArgumentError, ShapeError
from imprint.rules import registry

SMALL = {"mlp": (8, 2), "cnn": (4, 3), "vgg8b": (8, None), "resnet": (4, 1), "vit": (8, 2)}
SHAPES = {"mlp": (5, 3), "cnn": (2, 9, 6), "vgg8b": (1, 28, 28), "resnet": (3, 7, 10), "vit": (1, 8, 8)}


def made(name: str) -> tuple[nn.Module, Net, Tensor]:
    net, shape = NETS[name], SHAPES[name]
    width, depth = check_net(net, shape, *SMALL[name])
    return net.make(shape, 3, width, depth), net, torch.randn(4, *shape)


@pytest.mark.parametrize("name", NETS)
def test_a_net_puts_out_classes_and_its_units_hold_all_but_the_last_layer(name: str) -> None:
    model, net, x = made(name)
    assert model(x).shape == (4, 3)
    units = net.units(model)
    assert len(units) >= 2 and not any(a != b and a.startswith(b + ".") for a in units for b in units)
    held = {id(p) for unit in units for p in model.get_submodule(unit).parameters()}
    rest = {key for key, p in model.named_parameters() if id(p) not in held}
    assert rest and all(key.startswith("classifier.") for key in rest)


@pytest.mark.parametrize("name", NETS)
def test_every_net_learns_by_a_local_rule(name: str) -> None:
    model, net, x = made(name)
    manager = imprint.attach(model, "local_ce", layers=net.layers, num_classes=3)
    y = torch.tensor([0, 1, 2, 0])
    before = {key: p.clone() for key, p in model.named_parameters()}
    for _ in range(2):  # heads start at zero, so that units learn from the second step on
        manager.step(x, y)
    still = [key for key, p in model.named_parameters() if torch.equal(p, before[key])]
    assert not still and set(manager.units) == set(net.units(model))


def test_sizes_of_nets() -> None:
    assert [b[0].out_channels for b in VGG8b(0.125).features] == [16, 32, 32, 64, 64, 64]
    assert sum(p.numel() for p in VGG8b(1.0, 3, 32, 10).parameters()) == pytest.approx(8.9e6, rel=0.01)
    assert find_net("mlp") is NETS["mlp"] and find_net(NETS["vit"]) is NETS["vit"]
    blocks = NETS["resnet"].make((3, 32, 32), 10, 16, 3)
    assert len(NETS["resnet"].units(blocks)) == 1 + 9
    assert sum(p.numel() for p in blocks.parameters()) == pytest.approx(0.27e6, rel=0.02)  # ResNet-20 of the paper


def test_nets_that_cannot_be() -> None:
    with pytest.raises(ShapeError, match="at least 16 x 16"):
        check_net(NETS["vgg8b"], (1, 8, 8))
    with pytest.raises(ShapeError, match="square"):
        check_net(NETS["vit"], (1, 8, 9))
    with pytest.raises(ArgumentError, match="one depth only"):
        check_net(NETS["vgg8b"], (1, 32, 32), depth=3)
    with pytest.raises(ShapeError, match="cannot be cut"):
        patch_size(29)
    with pytest.raises(ArgumentError, match="4 heads"):
        NETS["vit"].make((1, 8, 8), 10, 30, 1)


def test_the_weights_of_a_seed_whatever_was_drawn_before() -> None:
    x = torch.randn(6, 5)
    data = Data(x, torch.arange(6) % 2, x, torch.arange(6) % 2, 2, "toy")
    task = Task(data, NETS["mlp"], Budget(1, width=4))
    state = torch.get_rng_state()
    one = task.make(0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.randn(7)
    two, other = task.make(0), task.make(1)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def deep() -> tuple[DeepSupervision, Tensor, Tensor]:
    net = NETS["mlp"]
    model = net.make((5,), 3, 6, 2).double()
    x, y = torch.randn(7, 5).double(), torch.arange(7) % 3
    taught = DeepSupervision(model, net, 3, x).double()
    for head in taught.heads:  # they start at zero, and hand nothing on
        nn.init.normal_(head.linear.weight)
    return taught, x, y


def test_deep_supervision_is_the_sum_of_all_losses_and_its_gradient_crosses_every_boundary() -> None:
    taught, x, y = deep()
    params = list(taught.model.parameters())
    mine = torch.autograd.grad(taught.loss(taught(x), y), params)

    def by_hand(cut: bool) -> tuple[Tensor, ...]:
        h, total = x, torch.zeros((), dtype=torch.float64)
        for block, head in zip(taught.model.blocks, taught.heads, strict=True):
            h = block(h.detach() if cut else h)
            total = total + F.cross_entropy(h @ head.linear.weight.T + head.linear.bias, y)
        total = total + F.cross_entropy(taught.model.classifier(h), y)
        return torch.autograd.grad(total, params)

    for a, b in zip(mine, by_hand(cut=False), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10)
    local = by_hand(cut=True)
    assert not torch.allclose(mine[0], local[0], rtol=0.05)
    plain = torch.autograd.grad(F.cross_entropy(taught.model(x), y), params)
    assert not torch.allclose(mine[0], plain[0], rtol=0.05)


def test_deep_supervision_as_it_is_attached_moves_as_the_sum_of_losses_says() -> None:
    row = contestants("backprop")[1]
    model, net, x = made("cnn")
    y = torch.tensor([0, 1, 2, 1])
    manager = row.attach(model, net, 3, x)
    taught = manager.model
    assert isinstance(taught, DeepSupervision) and len(taught.heads) == 3
    manager.bind(x, y)
    twin = [p.detach().clone().requires_grad_() for p in taught.parameters()]
    optimizer = torch.optim.Adam(twin, 5e-4)
    for _ in range(3):
        names = [name for name, _ in taught.named_parameters()]
        copied = torch.func.functional_call(
            _plain(row, x),
            dict(zip(names, twin, strict=True)) | {k: v.clone() for k, v in taught.named_buffers()},
            (x,),
        )
        sum(F.cross_entropy(logits, y) for logits in copied).backward()
        optimizer.step()
        optimizer.zero_grad()
        manager.step(x, y)
    for mine, theirs in zip(taught.parameters(), twin, strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-6, rtol=1e-4)


def _plain(row: Any, x: Tensor) -> DeepSupervision:
    model, net, _ = made("cnn")
    return DeepSupervision(model, net, 3, x)


def test_frozen_features_stay_and_the_last_layer_learns() -> None:
    row = contestants("frozen")[2]
    model, net, x = made("mlp")
    manager = row.attach(model, net, 3, x)
    before = {key: p.clone() for key, p in model.named_parameters()}
    manager.step(x, torch.tensor([0, 1, 2, 0]))
    moved = {key for key, p in model.named_parameters() if not torch.equal(p, before[key])}
    assert moved == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("label", ["backprop", "deep_supervision", "local_ce"])
def test_cosines_of_one_update_by_hand(label: str) -> None:
    row = next(c for c in contestants("local_ce") if c.label == label)
    model, net, x = made("mlp")
    y = torch.tensor([0, 1, 2, 0])
    loss = lambda output, y: F.cross_entropy(output if isinstance(output, Tensor) else output[0], y)
    cosine = Cosine(loss, 1)
    manager = row.attach(model, net, 3, x, [cosine])
    manager.step(x, y)  # makes heads, which start at zero
    manager.metrics()
    inner = model.state_dict()
    twin = NETS["mlp"].make((5, 3), 3, 8, 2)
    twin.load_state_dict(inner)
    owners = manager.model.heads if label == "deep_supervision" else [a.unit.objective for a in manager.units.values()]
    linear: list[Any] = [] if label == "backprop" else [owner.linear for owner in owners]
    for each in linear:
        nn.init.normal_(each.weight)
    heads = [(each.weight.detach().clone(), each.bias.detach().clone()) for each in linear]
    manager.step(x, y)
    found = {name.removeprefix("model."): v["cosine"] for name, v in manager.metrics().items()}
    assert cosine.spent().wall > 0 and cosine.spent() == Time()
    wanted = torch.autograd.grad(F.cross_entropy(twin(x), y), list(twin.parameters()))
    h, total = twin.flatten(x), torch.zeros(())
    for i, block in enumerate(twin.blocks):
        h = block(h.detach() if label == "local_ce" else h)
        total = total + (F.cross_entropy(h @ heads[i][0].T + heads[i][1], y) if heads else 0)
    if label != "local_ce":
        total = total + F.cross_entropy(twin.classifier(h), y)
    got = torch.autograd.grad(total, list(twin.parameters()), allow_unused=True)
    names = [name for name, _ in twin.named_parameters()]
    for unit in ("blocks.0", "blocks.1"):
        a, b = (
            torch.cat([g.flatten() for name, g in zip(names, side, strict=True) if name.startswith(unit + ".")])
            for side in (got, wanted)
        )
        assert found[unit] == pytest.approx(float(F.cosine_similarity(a, b, 0)), abs=2e-4)
    assert (abs(found["blocks.0"] - 1) < 1e-5) == (label == "backprop")


def test_ridge_against_a_slow_solution() -> None:
    x, y, x_test, y_test = torch.randn(40, 6), torch.randint(3, (40,)), torch.randn(90, 6), torch.randint(3, (90,))
    x[:, 0] += y
    y[5] = y_test[7] = -100

    def slow(ridge: float) -> float:
        rows, there = [i for i in range(40) if y[i] >= 0], [i for i in range(90) if y_test[i] >= 0]
        columns, targets = torch.zeros(39, 7).double(), torch.zeros(39, 3).double()
        mean = [sum(float(x[i, j]) for i in rows) / 39 for j in range(6)]
        std = [(sum((float(x[i, j]) - mean[j]) ** 2 for i in rows) / 39) ** 0.5 for j in range(6)]
        for k, i in enumerate(rows):
            columns[k] = torch.tensor([*((float(x[i, j]) - mean[j]) / std[j] for j in range(6)), 1.0])
            targets[k, y[i]] = 1
        # the penalty as rows of data; none on the last column, the bias
        penalty = (ridge * 39) ** 0.5 * torch.eye(7).double()[:6]
        both = torch.cat([columns, penalty]), torch.cat([targets, torch.zeros(6, 3).double()])
        w = torch.linalg.lstsq(*both).solution
        row = lambda i: torch.tensor([*((float(x_test[i, j]) - mean[j]) / std[j] for j in range(6)), 1.0]).double()
        return sum(int((row(i) @ w).argmax()) == int(y_test[i]) for i in there) / 89

    found = ridge_accuracy((x, y), (x_test, y_test), 3)
    assert found == pytest.approx(slow(0.01)) and found != pytest.approx(slow(100.0))


def test_outputs_of_units_are_those_of_inference() -> None:
    model, net, x = made("cnn")
    manager = imprint.attach(model, "local_ce", layers=net.layers, num_classes=3)
    manager.step(x, torch.tensor([0, 1, 2, 0]))
    found = outputs(manager, ["blocks.0", "blocks.2"], x, False, batch=3)
    plain = manager.detach().eval()
    h = plain.blocks[0](x)
    torch.testing.assert_close(found["blocks.0"], h.flatten(1))
    torch.testing.assert_close(found["blocks.2"], plain.blocks[2](plain.blocks[1](h)).flatten(1))
    assert not plain.blocks[0]._forward_hooks


def test_the_clock_leaves_out_what_measuring_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    wall, processor = iter([10.0, 13.0, 20.0, 21.0]), iter([1.0, 2.0, 3.0, 3.5])
    monkeypatch.setattr("imprint.compare.measures.perf_counter", lambda: next(wall))
    monkeypatch.setattr("imprint.compare.measures.process_time", lambda: next(processor))
    clock, cosine = Clock(), Cosine(lambda output, y: output.sum(), 1)
    cosine.took = Time(0.5, 0.25)
    rows = Timed(torch.zeros(4, 2), torch.zeros(4), 2, 0, clock, cosine)
    assert len(list(rows)) == 2
    assert clock.read() == {"task": {"seconds": (3.0 - 0.5 + 1.0) / 2, "processor": (1.0 - 0.25 + 0.5) / 2}}


def test_rules_for_layers_all_take_part() -> None:
    labels = [c.label for c in contestants("all")]
    layered = {name for name, rule in registry.items() if "layers" in rule.worlds}
    assert labels[:3] == ["backprop", "deep_supervision", "frozen"] and set(labels) == layered | {"deep_supervision"}
    assert len(labels) == len(set(labels)) and all(re.fullmatch(r"\w+", label) for label in labels)
