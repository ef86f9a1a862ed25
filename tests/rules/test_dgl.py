"""Decoupled greedy learning: its heads equal slow ones, and what they note of a batch is safe."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import imprint
from imprint.diagnostics import audit_isolation
from imprint.errors import NonFiniteError, ShapeError, UnknownNameError
from imprint.objectives import DeepHead, Labels, Spec, Target, View
from imprint.objectives.row_norm import RowNorm

from references import decoupled_greedy, nets
from references.attached import SAME, SETUPS, Run

HEADS = ["mlp", "mlp-sr", "cnn"]


def by_hand(run: Run, kind: str, control: str = "") -> nn.Sequential:
    heads = copy.deepcopy(run.parts)
    trained = run.reference(decoupled_greedy.train, heads, kind=kind, control=control)
    if not control:
        for ours, its in zip(run.objectives, heads, strict=True):
            assert nets.furthest(ours, its) < SAME
    return trained


@pytest.mark.parametrize(
    "head,net,norm,optimizer", [(h, *setup) for h in HEADS for setup in SETUPS if h == "mlp" or setup[0] == "conv"]
)
def test_heads_equal_slow_ones(head: str, net: str, norm: bool, optimizer: str) -> None:
    run = Run("dgl", net, norm, optimizer, head=head)
    run.equals(by_hand(run, head))
    wrong = ["joint", "after"] + ["no rectifier"] * (head != "cnn")
    run.differs(functools.partial(by_hand, run, head), *wrong)


def logits(kind: str, shape: tuple[int, ...], last: bool = False, rows: int = 5) -> tuple[DeepHead, Tensor]:
    objective = DeepHead(kind)
    objective.bind(Spec(shape, dtype=torch.float64, channels_last=last), Labels(3))
    with torch.no_grad():
        for p in objective.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return objective, torch.randn(rows, *shape, dtype=torch.float64)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("shape", [(3, 9, 5), (3, 1, 6), (2, 7), (4, 12, 12)])
def test_maps_of_any_size(head: str, shape: tuple[int, ...]) -> None:
    objective, h = logits(head, shape)
    y = torch.tensor([0, -100, 2, 1, 0])
    theirs = copy.deepcopy(objective)
    layers = iter([m for m in theirs.modules() if list(m.parameters(recurse=False))])
    valid = [int(v) >= 0 for v in y]
    slow = decoupled_greedy.head(h if h.dim() == 4 else h[:, :, None], head, layers, valid)
    torch.testing.assert_close(objective.logits(h, y >= 0), slow, rtol=1e-10, atol=1e-12)
    assert nets.furthest(objective, theirs) < SAME


def test_tokens_are_averaged() -> None:
    objective, h = logits("mlp", (4, 6), last=True)
    view = lambda h: View(h, context=Target(torch.tensor([0, 1, 2, 0, 1])))
    assert torch.equal(objective(view(h)), objective(view(h.mean(1))))
    assert not torch.equal(objective(view(h)), objective(view(h[:, 0])))


def test_the_norm_is_torchs_where_all_rows_count() -> None:
    ours, torchs = RowNorm(3, dtype=torch.float64), nn.BatchNorm2d(3, dtype=torch.float64)
    for _ in range(3):
        x = torch.randn(4, 3, 2, 5, dtype=torch.float64) * 3 + 1
        torch.testing.assert_close(ours(x, torch.ones(4, dtype=torch.bool)), torchs(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours(x), torchs.eval()(x), rtol=1e-12, atol=1e-12)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(ours, name), getattr(torchs, name), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("labels", [0, 1])
def test_too_few_rows_leave_no_note(labels: int) -> None:
    norm = RowNorm(2)
    before = copy.deepcopy(norm.state_dict())
    out = norm(torch.randn(4, 2), torch.arange(4) < labels)
    assert bool(out.isfinite().all()) and all(torch.equal(v, before[k]) for k, v in norm.state_dict().items())


@pytest.mark.parametrize("net", ["dense", "conv"])
def test_unlabelled_rows_are_not_normalised_with(net: str) -> None:
    """Whatever they are, they change no weight of units and heads, and no running statistic of heads."""

    def run(scale: float, control: str | None = None) -> tuple[nn.Module, list[nn.Module]]:
        torch.manual_seed(5)
        start, batches = nets.chain(net, False), nets.batches(net)
        batches = [(torch.cat([x[:2] * scale, x[2:]]), torch.cat([y[:2] * 0 - 100, y[2:]])) for x, y in batches]
        manager = imprint.attach(
            start, "dgl", layers=("0", "1", "2"), num_classes=3, optimizer=lambda p: torch.optim.SGD(p, 0.05)
        )
        manager.bind(*batches[0])
        objectives = [u.unit.objective for u in manager.units.values()]
        if control is not None:
            units, classifier = nets.split(start)
            heads: Any = copy.deepcopy(objectives)
            decoupled_greedy.train(units, heads, classifier, batches, decoupled_greedy_sgd, control=control)
            return nets.join(units, classifier), heads
        for x, y in batches:
            manager.step(x, y)
        return start, objectives

    (one, heads), (other, its) = run(1.0), run(9.0)
    assert nets.furthest(one, other) < SAME
    assert max(nets.furthest(a, b) for a, b in zip(heads, its, strict=True)) < SAME
    assert nets.furthest(other, run(9.0, "")[0]) < SAME
    assert nets.furthest(other, run(9.0, "all rows")[0]) > 1e-4


def decoupled_greedy_sgd(params: Any) -> Any:
    from references.descent import SGD

    return SGD(params, 0.05)


def state(manager: imprint.Manager) -> dict[str, Tensor]:
    made = {f"model {k}": v.clone() for k, v in manager.model.state_dict().items()}
    for name, agent in manager.units.items():
        made |= {f"{name} {k}": v.clone() for k, v in agent.unit.objective.state_dict().items()}
    return made


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


def trained(**options: Any) -> tuple[imprint.Manager, Tensor, Tensor]:
    manager = imprint.attach(nets.chain("conv", True), "dgl", layers=("0", "1", "2"), num_classes=3, **options)
    batches = nets.batches("conv")
    for x, y in batches:
        manager.step(x, y)
    return manager, *batches[0]


def test_running_statistics_are_part_of_the_state() -> None:
    manager, x, y = trained()
    state_dict = manager.state_dict()
    names = [k for k in state_dict["units"]["0"]["objective"] if "running" in k]
    assert len(names) == 6 and all(state_dict["units"]["0"]["objective"][k].abs().sum() > 0 for k in names)
    other = imprint.attach(nets.chain("conv", True), "dgl", layers=("0", "1", "2"), num_classes=3)
    other.load_state_dict(state_dict)
    assert torch.equal(manager.predict(x, by="local"), other.predict(x, by="local"))
    assert torch.equal(manager.step(x, y), other.step(x, y)) and same(state(manager), state(other))


def test_scores_read_running_statistics_and_leave_them() -> None:
    manager, x, _ = trained()
    before = state(manager)
    together = manager.predict(x, by="local")
    alone = torch.cat([manager.predict(row[None], by="local") for row in x])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-12)
    assert same(before, state(manager))


def test_an_accuracy_monitor_leaves_running_statistics() -> None:
    torch.manual_seed(0)
    without, *_ = trained()
    torch.manual_seed(0)
    watched, *_ = trained(monitors=["accuracy"])
    assert same(state(without), state(watched)) and 0 <= watched.metrics()["1"]["accuracy"] <= 1


def test_an_audit_leaves_running_statistics() -> None:
    manager, x, y = trained()
    before = state(manager)
    assert audit_isolation(manager, x, y).ok and same(before, state(manager))
    manager.step(x, y)
    assert not same(before, state(manager))


def test_a_failed_step_leaves_running_statistics_of_units_before_and_behind_it() -> None:
    """Weights of units that have learned stay learned, as ever; what was only noted is forgotten."""
    manager, x, y = trained()
    before = {k: v for k, v in state(manager).items() if "running" in k}
    with torch.no_grad():
        kept = manager.units["1"].unit.objective.layers[-1].weight.clone()
        manager.units["1"].unit.objective.layers[-1].weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="'1'"):
        manager.step(x, y)
    assert same(before, {k: v for k, v in state(manager).items() if "running" in k})
    with torch.no_grad():
        manager.units["1"].unit.objective.layers[-1].weight.copy_(kept)
    manager.step(x, y)
    assert not same(before, {k: v for k, v in state(manager).items() if "running" in k})


def test_values() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    manager = imprint.attach(model, "dgl", layers=("0",), optimizer=lambda p: torch.optim.SGD(p, 0.1))
    x, y = torch.randn(5, 6).double(), torch.randn(5, 2).double()
    manager.bind(x, y)
    unit, head = copy.deepcopy(model[0]), copy.deepcopy(manager.units["0"].unit.objective)
    layers = iter([m for m in head.modules() if list(m.parameters(recurse=False))])
    out = decoupled_greedy.head(unit(x), "mlp", layers, [True] * 5)
    (sum((out[i, j] - y[i, j]) ** 2 for i in range(5) for j in range(2)) / 10).backward()
    manager.step(x, y)
    torch.testing.assert_close(model[0].weight, unit.weight - 0.1 * unit.weight.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "kind,shape,fix", [("cnn", (6,), "head='mlp'"), ("mlp-sr", (6,), "head='mlp'"), ("mlp", (2, 3, 3, 3), "local_ce")]
)
def test_what_does_not_fit_is_refused(kind: str, shape: tuple[int, ...], fix: str) -> None:
    with pytest.raises(ShapeError, match=fix):
        DeepHead(kind).bind(Spec(shape), Labels(3))


def test_an_unknown_head_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="mlp-sr"):
        imprint.attach(nets.chain("dense", False), "dgl", head="mlpsr")
