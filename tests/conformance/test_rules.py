"""What every rule keeps, by existing: parametrised over the registry. What a rule need not keep, its attributes say."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import inspect
import io
import pickle
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import imprint
from imprint.credit import functional
from imprint.diagnostics import audit_isolation
from imprint.objectives import Mix, Objective
from imprint.rules import Rule, registry

RULES = sorted(name for name in registry if "layers" in registry[name].worlds)
LEARNING = [name for name in RULES if registry[name].learns]
LOCAL = [name for name in LEARNING if registry[name].local]
OBJECTIVES = {name: registry[name]().objective() for name in LOCAL}
MOVING = [name for name in LEARNING if registry[name].trains_weights]
AT_ONCE = [name for name in MOVING if registry[name]().turn() is None]
ONE_BY_ONE = sorted(set(MOVING) - set(AT_ONCE))
SUPERVISED = [name for name, made in OBJECTIVES.items() if made.needs_labels and name in MOVING]
UNSUPERVISED = [name for name, made in OBJECTIVES.items() if not made.needs_labels]
CLASSES, BATCH = 3, 8
rules = pytest.mark.parametrize("rule", RULES)
learning = pytest.mark.parametrize("rule", LEARNING)
local = pytest.mark.parametrize("rule", LOCAL)
supervised = pytest.mark.parametrize("rule", SUPERVISED)
unsupervised = pytest.mark.parametrize("rule", UNSUPERVISED)


class Net(nn.Module):
    """Three units with what makes training differ from inference, a residual connection, and a classifier."""

    def __init__(self, norm: bool = True, dropout: float = 0.2) -> None:
        super().__init__()

        def unit(c_in: int, c_out: int) -> nn.Sequential:
            parts = [nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out) if norm else nn.Identity(), nn.Tanh()]
            return nn.Sequential(*parts, nn.Dropout(dropout))

        self.units = nn.ModuleList([unit(2, 5), unit(5, 5), unit(5, 4)])
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.units[0](x)
        h = h + self.units[1](h)
        return self.head(self.units[2](h).mean((2, 3)))


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(BATCH, 2, 4, 4), torch.randint(CLASSES, (BATCH,))


def attached(rule: str | Rule | dict[str, Any], model: nn.Module | None = None, **options: Any) -> imprint.Manager:
    """A model with three units of that rule; the classifier learns from the task."""
    options = {"num_classes": CLASSES, "strict": False} | options
    if not isinstance(rule, dict):
        options["layers"] = r"units\.\d"
    return imprint.attach(model or Net(), rule, **options)


def train(manager: imprint.Manager, steps: int = 3) -> imprint.Manager:
    for _ in range(steps):
        manager.step(*batch())
    return manager


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items()}


def same(a: Any, b: Any) -> bool:
    """Bitwise, through dicts and lists."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(v, w) for v, w in zip(a, b, strict=True))
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b


def unit_weights(manager: imprint.Manager) -> list[dict[str, Tensor]]:
    return [{k: p.detach().clone() for k, p in a.prop.params.items()} for a in manager.units.values()]


def louder(rule: str) -> Rule:
    """The same rule with three times the loss: same parameters, same random numbers, another update."""

    class Louder(registry[rule]):  # type: ignore[misc, name-defined]
        def objective(self) -> Objective:
            return Mix((3.0, super().objective()))

    return Louder()


def sgd(params: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, 0.05)


def turned(output: Tensor, y: Tensor) -> Tensor:
    """Another task: the next class is right."""
    return F.cross_entropy(output, (y + 1) % CLASSES)


@pytest.mark.parametrize("rule", AT_ONCE)
def test_a_later_objective_leaves_an_earlier_update_bitwise_unchanged(rule: str) -> None:
    def run(last: Any = rule, task: Callable[..., Tensor] | None = None) -> tuple[list[dict[str, Tensor]], Tensor]:
        torch.manual_seed(1)
        rules = {r"units\.[01]": rule, r"units\.2": last}
        manager = train(attached(rules, optimizer=sgd, task_loss=task), 4)
        return unit_weights(manager), manager.model.head.weight.detach().clone()

    (units, head), (others, other_head) = run(), run(task=turned)
    alone = registry[rule].local and not registry[rule].allow_cross
    assert same(units, others) is alone and not same(head, other_head)
    if alone:
        others, _ = run(last=louder(rule))
        assert same(units[:2], others[:2])
        key = "units.2.0.weight"
        assert not torch.equal(units[2][key], others[2][key])


@rules
def test_a_unit_emits_what_its_weights_said_before_its_step(rule: str) -> None:
    manager = attached(rule, Net(dropout=0.0), optimizer=sgd).bind(*batch())
    train(manager, 1)
    units = list(manager.units.values())
    before, after, seen = copy.deepcopy(manager.model), {}, {}
    for agent in units:
        unit = agent.unit.modules[0]
        name = agent.prop.name

        def note(module: nn.Module, args: Any, out: Tensor, name: str = name) -> None:
            seen.setdefault(name, []).append((args[0].detach().clone(), out.detach().clone()))

        unit.register_forward_hook(note)
    manager.step(*batch())
    after = copy.deepcopy(manager.model)
    for i, agent in enumerate(units):
        calls = seen[agent.prop.name]
        x, out = calls[-1] if agent.unit.objective.uses_data else calls[0]  # the call in which it learns
        x = x if agent.unit.entry is None else agent.unit.entry(x)
        torch.testing.assert_close(out, before.units[i](x), rtol=1e-5, atol=1e-6)
        moves = rule in MOVING and (i == 0 or rule in AT_ONCE)
        assert bool((out - after.units[i](x)).abs().max() > 1e-5) is moves


@rules
def test_detach_gives_the_very_model_back(rule: str) -> None:
    model = Net()
    classes = [type(m) for m in model.modules()]
    keys, ids = list(model.state_dict()), [id(p) for p in model.parameters()]
    manager = train(attached(rule, model))
    assert list(model.state_dict()) == keys and [id(p) for p in model.parameters()] == ids
    assert [n for n, _ in model.named_modules()] == [n for n, _ in Net().named_modules()]
    assert manager.detach() is model
    assert [type(m) for m in model.modules()] == classes and list(model.state_dict()) == keys
    assert not any("_imprint" in k for m in model.modules() for k in vars(m))
    x, y = batch()
    F.cross_entropy(model(x), y).backward()
    assert all(p.grad is not None for p in model.parameters()), "it is an ordinary model again"


@rules
def test_plain_checkpoints_load_both_ways(rule: str) -> None:
    torch.manual_seed(2)
    manager = train(attached(rule))
    plain = Net()
    plain.load_state_dict(manager.model.state_dict(), strict=True)
    other = attached(rule)
    other.model.load_state_dict(plain.state_dict(), strict=True)
    assert same(snapshot(other.model), snapshot(manager.model)) and not same(snapshot(plain), snapshot(Net()))


@rules
@pytest.mark.parametrize(
    "through", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_a_copy_is_a_plain_working_model(rule: str, through: Callable[[nn.Module], nn.Module]) -> None:
    manager = train(attached(rule))
    made = through(manager.model)
    assert [type(m) for m in made.modules()] == [type(m) for m in Net().modules()]
    assert same(snapshot(made), snapshot(manager.model))
    plain = Net()
    plain.load_state_dict(made.state_dict())
    x, y = batch()
    assert torch.equal(made.eval()(x), plain.eval()(x))
    before = snapshot(manager.model)
    F.cross_entropy(made(x), y).backward()
    assert all(p.grad is not None for p in made.parameters()) and same(before, snapshot(manager.model))
    assert all(p.grad is None for p in manager.model.parameters())
    train(manager, 1)  # and the attached one goes on learning
    assert same(before, snapshot(manager.model)) is False


def says(manager: imprint.Manager) -> bool:
    """Has any unit scores for the classes?"""
    objectives = [a.unit.objective for a in manager.units.values() if not a.open and a.rule.learns]
    parts = [p for o in objectives for p in (o.parts if isinstance(o, Mix) else [o])]
    return any(type(p).scores is not Objective.scores and p.needs_labels for p in parts)


@rules
def test_inference_changes_nothing(rule: str) -> None:
    manager = train(attached(rule))
    x, y = batch()
    before = copy.deepcopy(manager.state_dict())
    outputs = [manager.predict(x) for _ in range(2)]
    assert torch.equal(*outputs) and not outputs[0].requires_grad
    if says(manager):
        scores = [manager.predict(x, by="local") for _ in range(2)]
        assert torch.equal(*scores) and scores[0].shape == (BATCH, CLASSES) and not scores[0].requires_grad
        assert scores[0].std() > 0
    else:
        with pytest.raises(imprint.errors.StateError):
            manager.predict(x, by="local")
    manager.evaluate((x, y))
    assert same(before, manager.state_dict()) and manager.model.training
    manager.model.eval()
    with torch.no_grad():
        manager.model(x)
    manager.model.train()
    assert same(before, manager.state_dict())
    assert torch.equal(manager.predict(x), outputs[0])


@rules
def test_the_isolation_audit_passes(rule: str) -> None:
    manager = attached(rule)
    report = audit_isolation(manager, *batch(), strict=True)
    assert report.ok
    crosses = any("allow_cross" in row.note for row in report.rows)
    assert crosses is registry[rule].allow_cross
    plastic = rule in OBJECTIVES and OBJECTIVES[rule].needs_synapses  # weights of products are all that learns
    reached = [len(row.reached) == (1 if plastic else len(row.own)) for row in report.rows[:3]]
    assert reached == [registry[rule].learns, *[registry[rule].learns and rule not in ONE_BY_ONE] * 2]
    train(manager)
    assert audit_isolation(manager, *batch()).ok


@rules
@pytest.mark.parametrize("accumulate", [1, 2])
def test_resuming_is_bit_exact(rule: str, accumulate: int) -> None:
    def fresh(seed: int) -> imprint.Manager:
        torch.manual_seed(seed)
        decay = lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5)
        return attached(rule, accumulate=accumulate, scheduler=decay)

    def go_on(manager: imprint.Manager) -> dict[str, Any]:
        for _ in range(3):
            train(manager, accumulate)
            manager.step_schedulers()
        return manager.state_dict()

    manager = train(fresh(1))
    manager.step_schedulers()
    file = io.BytesIO()
    torch.save(manager.state_dict(), file)
    straight = go_on(manager)
    again = fresh(99)
    file.seek(0)
    again.load_state_dict(torch.load(file, weights_only=True))
    assert same(straight, go_on(again))
    other = fresh(99)
    other.model.load_state_dict(Net().state_dict())
    assert not same(straight["model"], go_on(other)["model"])


@rules
def test_no_gradient_is_left(rule: str) -> None:
    manager = train(attached(rule))
    own = [p for prop in manager.propagators.values() for p in prop.params.values()]
    assert all(p.grad is None for p in [*own, *manager.model.parameters()])
    assert not manager.step(*batch()).requires_grad
    assert all(prop.ticks == 0 for prop in manager.propagators.values())


@rules
def test_no_learning(rule: str) -> None:
    manager = train(attached(rule, Net(norm=False, dropout=0.0)))
    x, y = batch()
    expected = manager.predict(x)
    before = copy.deepcopy(manager.state_dict())
    with imprint.no_learning():
        out = manager.step(x, y)
    assert same(before, manager.state_dict())
    torch.testing.assert_close(out, expected)
    manager.step(x, y)
    assert not same(before["model"], manager.state_dict()["model"])


@learning
def test_an_outer_optimizer_moves_only_what_the_outer_loss_reached(rule: str) -> None:
    model = Net()
    outer = torch.optim.Adam(model.parameters(), 0.1, weight_decay=0.1)
    manager = train(attached(rule, model), 1)
    before = {k: v.detach().clone() for k, v in model.named_parameters()}
    for _ in range(3):
        x, y = batch()
        outer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        outer.step()
        outer.zero_grad()
    moved = {k: float((p.detach() - before[k]).abs().max()) for k, p in model.named_parameters()}
    inside = {k: v for k, v in moved.items() if k.startswith("units")}
    assert min(v for k, v in moved.items() if k.startswith("head")) > 0.01
    if registry[rule].local:
        assert set(inside.values()) == {0.0}
    else:
        assert min(inside.values()) > 0.01
    train(manager, 1)
    outer.step()  # a step of the manager leaves nothing behind for it
    assert all(p.grad is None for p in model.parameters())


@local
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_functional_gradient_equals_the_eager_one(rule: str, optimizer: str) -> None:
    """Without BatchNorm, whose buffers are not inputs of the function, and without dropout, in float64."""

    def run(diff: Any = None) -> list[dict[str, Tensor]]:
        torch.manual_seed(4)
        make = sgd if optimizer == "sgd" else lambda p: torch.optim.Adam(p, 1e-2)
        manager = attached(rule, Net(norm=False, dropout=0.0).double(), optimizer=make)
        x, y = batch()
        manager.bind(x.double(), y)
        if diff is not None:
            for agent in manager.units.values():
                agent.prop.diff = diff
        for _ in range(4):
            x, y = batch()
            manager.step(x.double(), y)
        return unit_weights(manager)

    def wrong(f: Any, params: Any) -> Any:
        grads, loss, aux = functional(f, params)
        return {k: g * 1.001 for k, g in grads.items()}, loss, aux

    eager, other = run(), run(functional)
    for a, b in zip(eager, other, strict=True):
        assert a.keys() == b.keys()
        for k in a:
            torch.testing.assert_close(a[k], b[k], rtol=1e-10, atol=1e-12)
    if optimizer == "sgd" and rule in MOVING:
        assert any((a[k] - b[k]).abs().max() > 1e-8 for a, b in zip(eager, run(wrong), strict=True) for k in a)


@supervised
def test_probabilities_that_are_sure_equal_labels(rule: str) -> None:
    def run(make: Callable[[Tensor], Tensor]) -> list[dict[str, Tensor]]:
        torch.manual_seed(4)
        manager = attached(rule, Net(dropout=0.0).double(), optimizer=sgd)
        for _ in range(3):
            x, y = batch()
            manager.step(x.double(), make(y))
        return unit_weights(manager)

    hard, soft = run(lambda y: y), run(lambda y: F.one_hot(y, CLASSES).double())
    for a, b in zip(hard, soft, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
    other = run(lambda y: F.one_hot(y.clamp(max=1), CLASSES).double())
    assert any((a[k] - b[k]).abs().max() > 1e-6 for a, b in zip(hard, other, strict=True) for k in a)


@supervised
def test_rows_without_a_label_teach_nothing(rule: str) -> None:
    """Their inputs may be anything. (Without BatchNorm, by which rows see each other.)"""

    def run(scale: float, label: int = -100) -> list[dict[str, Tensor]]:
        torch.manual_seed(4)
        manager = attached(rule, Net(norm=False, dropout=0.0).double(), optimizer=sgd)
        x, y = batch()
        manager.bind(x.double(), y)
        for _ in range(3):
            x, y = batch()
            x, y[:3] = x.double(), label
            x[:3] *= scale
            manager.step(x, y)
        return unit_weights(manager)

    one, other = run(1.0), run(2.0)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
    labelled = run(1.0, label=0)
    assert any((a[k] - b[k]).abs().max() > 1e-6 for a, b in zip(one, labelled, strict=True) for k in a)


@unsupervised
def test_labels_change_nothing_where_none_are_needed(rule: str) -> None:
    def run(scale: float, label: int | None) -> list[dict[str, Tensor]]:
        torch.manual_seed(4)
        manager = attached(rule, Net(norm=False, dropout=0.0).double(), optimizer=sgd)
        manager.bind(*((v.double() if v.is_floating_point() else v) for v in batch()))
        for _ in range(3):
            x, y = batch()
            x[:3] *= scale
            manager.step(x.double(), y if label is None else y * 0 + label)
        return unit_weights(manager)

    labelled = run(1.0, None)
    for label in (0, -100):
        assert all(same(a, b) for a, b in zip(labelled, run(1.0, label), strict=True))
    assert not any(same(a, b) for a, b in zip(labelled, run(2.0, None), strict=True))


@pytest.mark.gpu
@learning
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
def test_a_gpu_learns_the_same(rule: str, norm: bool) -> None:
    """In float64, from the same start, with the same random numbers: those of one context and of the label overlay."""
    start, data = Net(norm, dropout=0.0).double(), [batch() for _ in range(4)]
    manager = attached(rule, copy.deepcopy(start), optimizer=sgd)
    manager.bind(data[0][0].double(), data[0][1])
    bound = copy.deepcopy(manager.state_dict())
    there = attached(rule, copy.deepcopy(start).cuda(), optimizer=sgd)
    there.load_state_dict(bound)
    draw = torch.randint
    for x, y in data:
        drawn = draw(1, CLASSES, y.shape)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "randint", lambda *a, device="cpu", drawn=drawn, **k: drawn.to(device))
            out = manager.step(x.double(), y)
            torch.testing.assert_close(there.step(x.double().cuda(), y.cuda()).cpu(), out, rtol=1e-8, atol=1e-10)
    for a, b in zip(unit_weights(manager), unit_weights(there), strict=True):
        torch.testing.assert_close({k: v.cpu() for k, v in b.items()}, a, rtol=1e-8, atol=1e-10)
    x, y = data[0]
    assert audit_isolation(there, x.double().cuda(), y.cuda()).ok
    torch.testing.assert_close(
        there.predict(x.double().cuda()).cpu(), manager.predict(x.double()), rtol=1e-8, atol=1e-10
    )


@rules
def test_its_docstring_says_what_it_does(rule: str) -> None:
    text = inspect.getdoc(registry[rule]) or ""
    assert re.search(r"Differs from the paper:\s+\S", text)
    assert registry[rule].name == rule and registry[rule].__module__.startswith("imprint.rules.")
    if registry[rule].learns:
        assert re.search(r":math:`[^`]+`", text), "no formula"
        assert re.search(r"Reference:\s.*\(\d{4}\)", text), "no reference with a year"
    missing = [f.name for f in dataclasses.fields(registry[rule]) if f"    {f.name}: " not in text]
    assert not missing, "an option is not described"


@learning
def test_its_documented_optimizer_is_the_default(rule: str) -> None:
    manager = train(attached(rule), 1)
    for name, optimizer in manager.optimizers.items():
        kind, lr = (torch.optim.Adam, 5e-4) if name == "task" else registry[rule].documented
        assert type(optimizer) is kind and optimizer.param_groups[0]["lr"] == lr
    said = re.search(r"Optimizer: (\w+), lr ([\d.e-]+\d)", inspect.getdoc(registry[rule]) or "")
    kind, lr = registry[rule].documented
    assert said is None or (said[1], float(said[2])) == (kind.__name__, lr)


@learning
def test_options_are_checked(rule: str) -> None:
    with pytest.raises(imprint.errors.ImprintError, match="nonsense"):
        attached(rule, nonsense=1)
    with pytest.raises(imprint.errors.UnknownNameError, match=re.escape(repr(rule))):
        attached(rule + "x")


@pytest.fixture
def own_rule(tmp_path: Path) -> Iterator[Any]:
    """A rule in a file outside of the package."""
    file = tmp_path / "own_rule.py"
    file.write_text(
        '''"""A rule of one's own."""
from dataclasses import dataclass

import imprint
from imprint.objectives import Objective


class Quiet(Objective):
    """Small outputs."""

    needs_labels = False

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, view):
        return self.scale * view.h.square().mean()


@imprint.register_rule("own_quiet")
@dataclass(frozen=True)
class OwnRule(imprint.Rule):
    """Small outputs."""

    scale: float = 1.0

    def objective(self):
        return Quiet(self.scale)
''',
        encoding="utf-8",
    )
    spec = importlib.util.spec_from_file_location("own_rule", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules["own_rule"] = module
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        registry.pop("own_quiet", None)
        del sys.modules["own_rule"]


def test_a_rule_from_a_file_outside_the_package(own_rule: Any) -> None:
    assert "own_quiet" in registry and imprint.rules.resolve("own_quiet", scale=2.0) == own_rule.OwnRule(2.0)
    with pytest.raises(imprint.errors.UnknownNameError, match="own_quiet"):
        attached("own_quite")
    model = Net(norm=False, dropout=0.0)
    manager = attached("own_quiet", model, scale=2.0, optimizer=sgd)
    x, y = batch()
    manager.bind(x, y)
    unit = copy.deepcopy(model).units[0]
    (2.0 * unit(x).square().mean()).backward()
    expected = unit[0].weight - 0.05 * unit[0].weight.grad
    manager.step(x, y)
    torch.testing.assert_close(model.units[0][0].weight, expected)
    assert audit_isolation(manager, x, y).ok and "own_quiet" in repr(manager)
    before = unit_weights(manager)
    manager.step(x)  # no unit needs targets
    assert not same(before, unit_weights(manager))


def test_a_taken_name_and_what_is_no_rule_are_refused() -> None:
    with pytest.raises(imprint.errors.ArgumentError, match="the name is taken"):
        imprint.register_rule("sigprop")(type("Mine", (Rule,), {}))
    with pytest.raises(imprint.errors.ArgumentError, match="not a Rule"):
        imprint.register_rule("mine")(nn.Linear)  # type: ignore[type-var]
    assert "mine" not in registry
