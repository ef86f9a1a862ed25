"""Rules whose units take turns, come in blocks, are solved for, or learn from pairs of samples."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import imprint
from imprint.diagnostics import audit_isolation
from imprint.errors import ArgumentError, CoverageError
from imprint.signals.pairs import PairStream

from references import nets
from references.attached import OTHER, SAME, Run

sgd = functools.partial(torch.optim.SGD, lr=0.05)


def moved(before: nn.Module, after: nn.Module) -> list[bool]:
    return [not torch.equal(a[0].weight, b[0].weight) for a, b in zip(list(before)[:3], list(after)[:3], strict=True)]


def test_greedy_units_take_turns() -> None:
    torch.manual_seed(0)
    model, data = nets.chain("dense", True), nets.batches("dense", count=12)
    manager = imprint.attach(model, "greedy", layers=["0", "1", "2"], steps=3, optimizer=sgd, num_classes=3)
    found = []
    for x, y in data:
        before = copy.deepcopy(model)
        manager.step(x, y)
        found.append(moved(before, model).index(True))
        assert sum(moved(before, model)) == 1 and not torch.equal(before[3][0].weight, model[3][0].weight)
    assert found == [0] * 3 + [1] * 3 + [2] * 6


def test_greedy_goes_on_where_it_was_and_in_compiled_steps() -> None:
    def run(compiled: bool, resumed: bool) -> nn.Module:
        torch.manual_seed(0)
        model, data = nets.chain("dense", True), nets.batches("dense", count=8, last=6)
        manager = imprint.attach(model, "greedy", layers=["0", "1", "2"], steps=2, optimizer=sgd, num_classes=3)
        if compiled:
            manager.compile("eager")
        for i, (x, y) in enumerate(data):
            if resumed and i == 3:
                state = copy.deepcopy(manager.state_dict())
                model = nets.chain("dense", True)
                manager = imprint.attach(model, "greedy", layers=["0", "1", "2"], steps=2, optimizer=sgd, num_classes=3)
                manager.load_state_dict(state)
            manager.step(x, y)
        return model

    plain = run(False, False)
    assert nets.furthest(plain, run(False, True)) == 0
    assert nets.furthest(plain, run(True, False)) < SAME


def test_blocks_of_sequential_layers() -> None:
    torch.manual_seed(0)
    start = nn.Sequential(
        nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)
    ).double()
    flat = copy.deepcopy(start)
    nested = nn.Sequential(copy.deepcopy(start)[:4], copy.deepcopy(start)[4:])
    data = nets.batches("dense")
    for model, options in ((flat, {"block_size": 2}), (nested, {"layers": ["0", "1"]})):
        torch.manual_seed(2)
        manager = imprint.attach(model, "local_ce", optimizer=sgd, num_classes=3, **options)
        assert list(manager.units) == (["0", "4"] if model is flat else ["0", "1"])
        for x, y in data:
            manager.step(x, y)
    ours, theirs = (list(m.parameters()) for m in (flat, nested))
    assert all(torch.allclose(a, b, rtol=0, atol=1e-14) for a, b in zip(ours, theirs, strict=True))
    single = copy.deepcopy(start)
    manager = imprint.attach(single, "local_ce", optimizer=sgd, num_classes=3)
    for x, y in data:
        manager.step(x, y)
    assert nets.furthest(single, flat) > OTHER


def test_one_block_around_the_whole_net_is_backpropagation() -> None:
    torch.manual_seed(0)
    start = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    data, found = nets.batches("dense"), {}
    for rule, size in (("local_ce", 9), ("local_ce", 2), ("backprop", 1)):
        model = found[rule, size] = copy.deepcopy(start)
        manager = imprint.attach(model, rule, block_size=size, optimizer=sgd, num_classes=3)
        assert len(manager.units) == -(-3 // size)
        for x, y in data:
            manager.step(x, y)
    assert nets.furthest(found["local_ce", 9], found["backprop", 1]) < SAME
    assert nets.furthest(found["local_ce", 2], found["backprop", 1]) > OTHER


def test_a_block_of_layers_that_do_not_follow_each_other_is_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.out = nn.ModuleList(nn.Linear(4, 4) for _ in range(2)), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.layers[1](self.layers[0](x) * 2))

    manager = imprint.attach(Twice(), "local_ce", layers=r"layers\.\d", block_size=2)
    with pytest.raises(CoverageError):
        manager.step(torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]))
    with pytest.raises(ArgumentError, match="block_size= must be a whole number"):
        imprint.attach(Twice(), "local_ce", block_size=0)


def closed_form(x: Tensor, y: Tensor, ridge: float, weight: Tensor | None = None) -> Tensor:
    """By lstsq, the ridge as rows of its own."""
    share = torch.ones(len(x)).double() if weight is None else weight
    rows = torch.cat([x * share.sqrt()[:, None], ridge**0.5 * torch.eye(x.shape[1]).double()])
    wanted = torch.cat([y * share.sqrt()[:, None], torch.zeros(x.shape[1], y.shape[1]).double()])
    return torch.linalg.lstsq(rows, wanted).solution


@pytest.mark.parametrize("net", ["dense", "conv"])
@pytest.mark.parametrize("ridge", [1e-3, 1.0])
def test_cascaded_forward_is_least_squares(net: str, ridge: float) -> None:
    torch.manual_seed(0)
    model, data = nets.chain(net, False), nets.batches(net, count=6)
    start = copy.deepcopy(model)
    data[2][1][:2] = -100
    labels = imprint.Labels(3, weight=torch.tensor([0.5, 1.0, 2.0]))
    manager = imprint.attach(model, "cafo", layers=["0", "1", "2"], ridge=ridge, labels=labels)
    for x, y in data:
        manager.step(x, y)
    assert nets.furthest(nn.Sequential(*list(start)[:3]), nn.Sequential(*list(model)[:3])) == 0
    assert nets.furthest(start, model) > 0, "what lies outside learns from the task"
    x, y = torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])
    valid, total = y >= 0, torch.zeros(len(x), 3).double()
    h = x
    for i, name in enumerate(manager.units):
        with torch.no_grad():
            h = start[i](h)
        flat = h.flatten(1)[valid]
        wanted = F.one_hot(y[valid], 3).double()
        right = closed_form(flat, wanted, ridge, labels.weight.double()[y[valid]])
        ours = manager.units[name].unit.objective.weight
        torch.testing.assert_close(ours, right, rtol=1e-8, atol=1e-9)
        assert (ours - closed_form(flat, wanted, ridge)).abs().max() > 1e-4, "weights of classes count"
        total += (h.flatten(1) @ right).softmax(1)
    torch.testing.assert_close(manager.predict(x, by="local"), total, rtol=1e-8, atol=1e-9)


def test_cascaded_forward_is_kept_moved_and_taken_back() -> None:
    torch.manual_seed(0)
    data = nets.batches("dense", count=4)
    make = lambda: imprint.attach(nets.chain("dense", False), "cafo", layers=["0", "1", "2"], num_classes=3)
    manager = make()
    for x, y in data[:3]:
        manager.step(x, y)
    assert audit_isolation(manager, *data[3], strict=True).ok
    state = copy.deepcopy(manager.state_dict())
    other = make()
    other.load_state_dict(state)
    for each in (manager, other):
        each.step(*data[3])
    objectives = [m.units["1"].unit.objective for m in (manager, other)]
    assert torch.equal(objectives[0].weight, objectives[1].weight)
    before = objectives[0].weight.clone()
    with pytest.raises(imprint.errors.NonFiniteError):
        manager.step(data[0][0] * torch.nan, data[0][1])
    assert torch.equal(before, objectives[0].weight)
    manager.freeze("1")
    manager.step(*data[0])
    assert torch.equal(before, objectives[0].weight)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_cascaded_forward_by_cross_entropy(optimizer: str) -> None:
    """Heads descend on units that stay as they are; scores are probabilities."""
    run = Run("cafo", "conv", False, optimizer, loss="ce")
    units, classifier = nets.split(run.start)
    heads = [torch.ones_like(p.linear.weight, requires_grad=True) for p in run.parts]
    steps = [run.descent([w]) for w in heads]
    last = run.descent(classifier.parameters())
    for x, y in run.batches:
        for unit, w, step in zip(units, heads, steps, strict=True):
            x = unit(x).detach()
            F.cross_entropy(x.flatten(1) @ w.T, y).backward()
            step.step()
        F.cross_entropy(classifier(x), y).backward()
        last.step()
    run.equals(nets.join(units, classifier))
    for w, objective in zip(heads, run.objectives, strict=True):
        torch.testing.assert_close(objective.linear.weight, w.detach(), rtol=SAME, atol=1e-12)
    x, total = run.batches[0][0], 0
    for unit, w in zip(units, heads, strict=True):
        x = unit(x)
        total = total + (x.flatten(1) @ w.T).softmax(1)
    torch.testing.assert_close(run.manager.predict(run.batches[0][0], by="local"), total.detach())


def test_self_contrastive_forward_forward_by_hand() -> None:
    run = Run("scff", "dense", False, "sgd", nn.ReLU)
    units, classifier = nets.split(run.start)
    wrong = nets.split(run.start)

    def by_hand(units: list[nn.Module], classifier: nn.Module, alone: bool) -> nn.Module:
        torch.manual_seed(7)
        steps, last = [run.descent(u.parameters()) for u in units], run.descent(classifier.parameters())
        for x, y in run.batches:
            n = len(x)
            other = (torch.arange(n) + torch.randint(1, n, (n,))) % n
            assert (other != torch.arange(n)).all()
            pairs = [torch.stack([(a + (a if alone else b)) / 2 for a, b in zip(x, x[k], strict=True)])
                     for k in (torch.arange(n), other)]  # fmt: skip
            for unit, step in zip(units, steps, strict=True):
                made, losses = [], []
                for v, sign in zip(pairs, (1, -1), strict=True):
                    h = unit(torch.stack([row / (row.square().mean() + 1e-8).sqrt() for row in v]))
                    losses += [F.softplus(sign * (2.0 - row.square().mean())) for row in h]
                    made.append(h.detach())
                (torch.stack(losses).sum() / n).backward()
                step.step()
                pairs = made
            h = x
            with torch.no_grad():
                for unit in units:
                    h = unit(torch.stack([row / (row.square().mean() + 1e-8).sqrt() for row in h]))
            F.cross_entropy(classifier(h), y).backward()
            last.step()
        return nets.join(units, classifier)

    right = by_hand(units, classifier, False)
    assert nets.furthest(run.model, right) < 1e-6 and nets.furthest(run.model, run.start) > 1e-3
    assert nets.furthest(run.model, by_hand(*wrong, True)) > 1e-4


def test_pairs_need_no_labels() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
    start, manager = copy.deepcopy(model), imprint.attach(model, "scff")
    for _ in range(3):
        manager.step(torch.randn(5, 6))
    assert all(not torch.equal(a, b) for a, b in zip(start.parameters(), model.parameters(), strict=True))


def test_a_sample_alone_is_its_own_pair() -> None:
    stream = PairStream()
    stream.build(stream.describe((torch.ones(1, 3),), [0], None, 0), torch.device("cpu"))
    assert stream.codes(None, 1, None)[0].tolist() == [0]
    codes: Any = torch.stack([stream.codes(None, 4, None)[0] for _ in range(200)])
    assert not (codes == torch.arange(4)).any() and all(len(set(column.tolist())) == 3 for column in codes.T)


def test_bad_options() -> None:
    for make, match in (
        (lambda: imprint.rules.Greedy(steps=0), "steps= must be"), (lambda: imprint.rules.CaFo("l1"), "unknown loss"),
        (lambda: imprint.rules.CaFo(ridge=0), "ridge= must be"), (lambda: imprint.rules.CaFo(limit=0), "limit must be"),
        (lambda: imprint.rules.SCFF("max"), "unknown reduction"),
    ):  # fmt: skip
        with pytest.raises(ArgumentError, match=match):
            make()
