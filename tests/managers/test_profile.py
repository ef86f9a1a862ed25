"""What a step costs in each mode: measured on copies, by the manager's own step, beside true backpropagation."""

from __future__ import annotations

import copy
import threading
import time
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import imprint
from imprint.diagnostics.cost import peak_bytes
from imprint.errors import ArgumentError, StateError
from imprint.managers.backprop_step import backprop_step
from imprint.managers.learning_pass import UPDATES
from imprint.managers.profile import BACKPROP, CHECKPOINTED, profile
from imprint.managers.twin import twin

from references import nets
from references.states import differences

RULES = sorted(name for name, rule in imprint.rules.registry.items() if "layers" in rule.worlds and rule.learns)
WAYS = [*UPDATES, BACKPROP, CHECKPOINTED]


def net() -> nn.Sequential:
    """Two units with running statistics and noise, and a classifier."""
    blocks = [
        nn.Sequential(nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU(), nn.Dropout(0.3)) for a, b in ((6, 8), (8, 6))
    ]
    return nn.Sequential(*blocks, nn.Linear(6, nets.CLASSES))


def batch(rows: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, 6), torch.arange(rows) % nets.CLASSES


def attached(rule: Any = "local_ce", model: nn.Module | None = None, **options: Any) -> imprint.Manager:
    chosen: dict[str, Any] = {"num_classes": nets.CLASSES, "optimizer": lambda p: torch.optim.Adam(p, 0.02)} | options
    return imprint.attach(net() if model is None else model, rule, **chosen)


def everything(manager: imprint.Manager) -> dict[str, Any]:
    """Its state, and what lies beside it."""
    named, modules = dict(manager.model.named_parameters()), list(manager.model.modules())
    return {
        "state": manager.state_dict(), "metrics": manager.metrics(reset=False), "modes": [m.training for m in modules],
        "grad": {k: None if p.grad is None else p.grad.clone() for k, p in named.items()},
        "wants": {k: p.requires_grad for k, p in named.items()}, "classes": [type(m) for m in modules],
        "places": {k: (id(p), p.data_ptr()) for k, p in named.items()},
    }  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_nothing_of_the_manager_changes(rule: str) -> None:
    def prepared() -> imprint.Manager:
        torch.manual_seed(3)
        schedule = lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5)
        manager = attached(rule, accumulate=2, scheduler=schedule, monitors=("loss", "grad_norm"))
        for rows in (6, 6, 6):  # an update, and half of the next one
            manager.step(*batch(rows))
        manager.step_schedulers()
        return manager

    manager, control, (x, y) = prepared(), prepared(), batch()
    manager.model[0][0].weight.grad = torch.ones_like(manager.model[0][0].weight)
    control.model[0][0].weight.grad = torch.ones_like(control.model[0][0].weight)
    given, before = (x.clone(), y.clone()), everything(manager)
    found = profile(manager, x, y, steps=2)
    after = everything(manager)
    assert differences(before, after) == [] and torch.equal(x, given[0]) and torch.equal(y, given[1])
    assert [row.way for row in found.rows] == WAYS and all(row.ms > 0 < row.mib for row in found.rows)
    torch.manual_seed(8)
    manager.step(x, y)
    torch.manual_seed(8)
    control.step(x, y)
    assert differences(manager.state_dict(), control.state_dict()) == []
    assert differences(before["state"], manager.state_dict()) != []  # the comparison sees a step


def test_a_manager_that_is_not_bound_stays_so() -> None:
    manager, (x, y) = attached(monitors=("loss",)), batch()
    before, state = everything(manager), torch.get_rng_state()
    profile(manager, x, y, steps=1)
    assert manager.bound is None and manager.steps == 0 and torch.equal(torch.get_rng_state(), state)
    assert differences(before, everything(manager)) == []


def test_a_compiled_step_stays_compiled_and_is_measured_eagerly() -> None:
    manager, (x, y) = attached(), batch()
    compiled = manager.compile("eager")
    manager.step(x, y)
    before, said = manager.state_dict(), compiled.explain()
    profile(manager, x, y, steps=1)
    assert manager.compiled is compiled and compiled.explain() == said and compiled.stale() == []
    assert differences(before, manager.state_dict()) == []


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("rule", RULES)
def test_what_is_measured_is_the_managers_own_step(rule: str, update: str) -> None:
    """A copy in another mode ends where the manager ends: that the modes agree is another test's concern."""
    manager = attached(rule, update=update)
    for _ in range(2):
        manager.step(*batch())
    copied = twin(manager, update)
    for x, y in [batch(), batch(5)]:
        for one in (manager, copied):
            torch.manual_seed(6)
            one.step(x, y)
    mine, its = manager.state_dict(), copied.state_dict()
    assert differences({k: mine[k] for k in ("model", "units")}, {k: its[k] for k in ("model", "units")}) == []
    assert not {id(p) for p in manager.model.parameters()} & {id(p) for p in copied.model.parameters()}


def steps(model: nn.Module, count: int, x: Tensor, y: Tensor, lr: float) -> nn.Module:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr, momentum=0.9)
    for _ in range(count):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("rule", ["local_ce", "backprop", "sigprop"])
def test_backprop_beside_it_is_backprop(rule: str, checkpointed: bool) -> None:
    start, (x, y) = net().double(), batch()
    x = x.double()
    sgd = lambda params: torch.optim.SGD(params, 0.05, momentum=0.9)
    manager = attached(rule, copy.deepcopy(start), optimizer=sgd, layers=["0", "1"]).bind(x, y)
    made = twin(manager, "immediate")
    model, step = made.model, backprop_step(made, x, y, checkpointed)
    torch.manual_seed(4)
    for _ in range(3):
        step()
    torch.manual_seed(4)
    expected = steps(copy.deepcopy(start), 3, x, y, 0.05)
    weights = lambda model: {
        k: p.detach() for k, p in model.named_parameters()
    }  # a checkpoint counts twice in running statistics
    assert nets.furthest(weights(model), weights(expected)) < 1e-12
    assert nets.furthest(weights(model), weights(steps(copy.deepcopy(start), 2, x, y, 0.05))) > 1e-4


def test_backprop_trains_what_learns_here() -> None:
    """What rests in the manager rests there too, and nothing is differentiated for it."""
    manager = attached({"0": imprint.Frozen(), "1": "local_ce"}, grad_clip=0.1).bind(*batch())
    made = twin(manager, "immediate")
    model = made.model
    step = backprop_step(made, *batch(), False)
    before = copy.deepcopy(model.state_dict())
    step()
    moved = {k.split(".")[0] for k, p in model.named_parameters() if not torch.equal(p, before[k])}
    assert moved == {"1", "2"}
    assert [p.requires_grad for p in model[0].parameters()] == 4 * [False]
    manager.freeze("1")
    made = twin(manager, "immediate")
    model, before = made.model, copy.deepcopy(made.model.state_dict())
    backprop_step(made, *batch(), False)()
    assert {k.split(".")[0] for k, p in model.named_parameters() if not torch.equal(p, before[k])} == {"2"}


def test_memory_is_that_of_the_steps() -> None:
    """A deep net whose activations weigh more than its weights: by hand, and in the order that theory gives."""
    depth, width, rows = 6, 16, 512
    block = lambda: nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(width, width), nn.Tanh())))
    model = nn.Sequential(*(block() for _ in range(depth)), nn.Linear(width, 3))
    x, y, layers = torch.randn(rows, width), torch.randint(3, (rows,)), [str(i) for i in range(depth)]
    sgd = lambda params: torch.optim.SGD(params, 0.01)
    found = profile(attached(model=model, optimizer=sgd, layers=layers).bind(x, y), x, y, steps=1)
    plain = copy.deepcopy(model)
    optimizer = sgd(plain.parameters())

    def step() -> None:
        F.cross_entropy(plain(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    mib = {each.way: each.mib for each in found.rows}
    assert mib[BACKPROP] == pytest.approx(peak_bytes(step) / 2**20, rel=0.02)
    one = rows * width * 4 / 2**20  # a layer's output: 1/32 MiB; a block keeps four
    assert mib[BACKPROP] > 4 * depth * one and mib["summed"] > 4 * depth * one
    assert mib[CHECKPOINTED] < (depth + 8) * one
    assert mib["immediate"] < 10 * one and mib["deferred"] < mib["summed"]
    for each in found.rows:
        base = next(row for row in found.rows if row.way == BACKPROP)
        assert (each.memory, each.time) == pytest.approx((each.mib / base.mib, each.ms / base.ms))
    assert "512 samples" in found.about and "device: cpu" in found.about
    assert repr(found).splitlines()[0] == found.about and len(repr(found).splitlines()) == 9


def test_time_is_that_of_the_steps() -> None:
    def slow(output: Tensor, y: Tensor) -> Tensor:
        time.sleep(0.03)
        return F.cross_entropy(output, y)

    late = profile(attached(task_loss=slow), *batch(), steps=2).rows
    early = profile(attached(), *batch(), steps=2).rows
    assert all(30 < each.ms < 1000 for each in late)
    assert all(1 < after.ms / before.ms for before, after in zip(early, late, strict=True))


class Shared(nn.Module):
    """Blocks that share one activation, and a stem that starts the context stream."""

    def __init__(self) -> None:
        super().__init__()
        act = nn.Tanh()
        self.embed = nn.Embedding(9, 6)
        self.body = nn.Sequential(nn.Linear(6, 7), act, nn.Linear(7, 5), act)
        self.head = nn.Linear(5, nets.CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.body(self.embed(tokens).mean(1)))


def test_joined_layers_shared_activations_and_tokens() -> None:
    x, y = torch.randint(9, (6, 4)), batch()[1]
    manager = attached("sigprop", Shared(), context_at="embed", exclude="embed.*").bind(x, y)
    copied = twin(manager, "immediate")
    for one in (manager, copied):
        torch.manual_seed(6)
        one.step(x, y)
    assert differences(manager.model.state_dict(), copied.model.state_dict()) == []
    results = []
    for checkpointed in (False, True):
        made = twin(manager, "immediate")
        model = made.model
        backprop_step(made, x, y, checkpointed)()
        results.append(model.state_dict())
    assert differences(*results) == [] != differences(results[0], manager.model.state_dict())


class Holder(nn.Linear):
    """Holds what cannot be copied."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.lock = threading.Lock()


def test_what_cannot_be_measured_is_refused() -> None:
    (x, y), manager = batch(), attached()
    for wrong in (0, True, 2.5):
        with pytest.raises(ArgumentError, match="whole number"):
            profile(manager, x, y, steps=wrong)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="no targets"):
        profile(manager, x, None)  # type: ignore[arg-type]
    with imprint.no_learning(), pytest.raises(StateError, match="nothing learns here"):
        profile(manager, x, y)
    manager.model.eval()
    with pytest.raises(StateError, match="eval mode"):
        profile(manager, x, y)
    locked = attached(model=nn.Sequential(Holder(6, 5), nn.Linear(5, nets.CLASSES)))
    with pytest.raises(ArgumentError, match="cannot be copied"):
        profile(locked, x, y)
    resting = attached({"0": imprint.Frozen(), "1": imprint.Frozen(), "2": "local_ce"}).bind(x, y)
    resting.freeze("2")
    with pytest.raises(ArgumentError, match="nothing to learn"):
        profile(resting, x, y, steps=1)
    manager.model.train()
    manager.detach()
    with pytest.raises(StateError, match="detached"):
        profile(manager, x, y)


@pytest.mark.gpu
def test_on_a_cuda_device() -> None:
    x, y = (v.cuda() for v in batch(256))
    manager = attached(model=net().cuda()).bind(x, y)
    before, state = everything(manager), torch.cuda.get_rng_state()
    found = profile(manager, x, y, steps=2)
    assert differences(before, everything(manager)) == [] and torch.equal(torch.cuda.get_rng_state(), state)
    assert all(each.ms > 0 < each.mib for each in found.rows) and "cuda" in found.about
