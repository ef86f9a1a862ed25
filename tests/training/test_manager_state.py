"""A manager's state is complete, exact, by name, a copy, and loaded whole or not at all."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import lr_scheduler as schedulers

import imprint
from imprint.errors import CheckpointError

from references.states import differences, flat

CLASSES = 3


class Net(nn.Module):
    """Named layers, registered in any order; dropout, running statistics, a skip path."""

    def __init__(self, width: int = 8, order: str = "abc", classes: int = CLASSES) -> None:
        super().__init__()
        made = {
            "a": nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2)),
            "b": nn.Sequential(nn.Linear(width, width), nn.Tanh()),
            "c": nn.Linear(width, classes),
        }
        for name in order:
            self.add_module(name, made[name])

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.c(h + self.b(h))


def batches(count: int, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    sizes = [9 - i % 3 for i in range(count)]  # ragged
    draw = {"generator": generator}
    return [(torch.randn(n, 6, **draw), torch.randint(CLASSES, (n,), **draw)) for n in sizes]


def make(rule: Any = "sigprop", seed: int = 0, net: Callable[[], nn.Module] = Net, **options: Any) -> imprint.Manager:
    torch.manual_seed(seed)
    chosen = {"layers": ["a", "b"], "num_classes": CLASSES, "optimizer": lambda p: torch.optim.Adam(p, 0.02)}
    return imprint.attach(net(), rule, **(chosen | options))


def steps(manager: imprint.Manager, data: list[tuple[Tensor, Tensor]]) -> None:
    for x, y in data:
        manager.step(x, y)
        if not manager.gathered:
            manager.step_schedulers()


def through_file(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    torch.save(state, folder / "state.pt")
    return torch.load(folder / "state.pt", weights_only=True)


def check_goes_on(folder: Path, rule: Any = "sigprop", before: int = 5, after: int = 4, **options: Any) -> None:
    """Straight on = saved, loaded into an unbound and into a bound manager of another start, and gone on."""
    data = batches(before + after)
    straight = make(rule, **options)
    steps(straight, data[:before])
    saved = through_file(straight.state_dict(), folder)
    steps(straight, data[before:])
    expected = straight.state_dict()
    for bound in (False, True):
        other = make(rule, seed=7, **options)
        if bound:
            steps(other, batches(3, seed=5))
        other.load_state_dict(saved)
        assert differences(other.state_dict(), saved) == []
        steps(other, data[before:])
        assert differences(other.state_dict(), expected) == []
        assert repr(other) == repr(straight)
    assert any(".model." in k for k in differences(saved, expected))


@pytest.mark.parametrize("rule", ["sigprop", "local_ce", "predsim", "sim", "forward_forward", "drtp", "backprop"])
def test_every_rule_goes_on_exactly(rule: str, tmp_path: Path) -> None:
    check_goes_on(tmp_path, rule)


OPTIMIZERS: dict[str, Callable[[list[Tensor]], torch.optim.Optimizer]] = {
    "default": lambda p: torch.optim.Adam(p, fused=True),
    "amsgrad": lambda p: torch.optim.AdamW(p, 0.01, amsgrad=True),
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    "nadam": lambda p: torch.optim.NAdam(p, 0.01),
    "radam": lambda p: torch.optim.RAdam(p, 0.01),
    "adamax": lambda p: torch.optim.Adamax(p, 0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.1),
    "adadelta": lambda p: torch.optim.Adadelta(p),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.5, centered=True),
    "rprop": lambda p: torch.optim.Rprop(p, 0.01),
    "asgd": lambda p: torch.optim.ASGD(p, 0.1),
    "adafactor": lambda p: torch.optim.Adafactor(p, 0.01),
    "groups": lambda p: torch.optim.Adam([{"params": p[1:], "lr": 0.03}, {"params": p[:1]}], 0.01),
    "tensor lr": lambda p: torch.optim.Adam(p, torch.tensor(0.01)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_on_exactly(name: str, tmp_path: Path) -> None:
    check_goes_on(tmp_path, optimizer=OPTIMIZERS[name])


@pytest.mark.parametrize(
    "name", sorted(OPTIMIZERS.keys() - {"adafactor"})
)  # torch computes that one in single precision
def test_state_of_an_optimizer_keeps_its_own_precision(name: str, tmp_path: Path) -> None:
    """torch casts what it loads to the dtype of the weight, also what was kept in another one."""
    managers = [make("local_ce", s, lambda: Net().double(), optimizer=OPTIMIZERS[name]) for s in (0, 7)]
    data = [(x.double(), y) for x, y in batches(5)]
    steps(managers[0], data[:3])
    managers[1].load_state_dict(through_file(managers[0].state_dict(), tmp_path))
    for manager in managers:
        torch.manual_seed(2)
        steps(manager, data[3:])
    assert differences(*(m.state_dict() for m in managers)) == []


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "multistep": lambda o: schedulers.MultiStepLR(o, [2, 6], 0.3),
    "onecycle": lambda o: schedulers.OneCycleLR(o, 0.1, 20),
    "restarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 3),
    "lambda": lambda o: schedulers.LambdaLR(o, lambda epoch: 0.9**epoch),
    "cyclic": lambda o: schedulers.CyclicLR(o, 0.001, 0.1, 3, cycle_momentum=False),
    "sequence": lambda o: schedulers.SequentialLR(
        o, [schedulers.LinearLR(o, 0.1, total_iters=3), schedulers.ExponentialLR(o, 0.8)], [3]
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_schedule_goes_on_exactly(name: str, tmp_path: Path) -> None:
    check_goes_on(tmp_path, scheduler=SCHEDULERS[name])


def test_a_plateau_schedule_goes_on_exactly(tmp_path: Path) -> None:
    made = [make(seed=s, scheduler=lambda o: schedulers.ReduceLROnPlateau(o, patience=1, factor=0.5)) for s in (0, 7)]
    data = batches(6)
    for i, value in enumerate((1.0, 2.0)):
        made[0].step(*data[i])
        made[0].step_schedulers(value)
    made[1].load_state_dict(through_file(made[0].state_dict(), tmp_path))
    for manager in made:
        torch.manual_seed(3)
        manager.step(*data[3])
        manager.step_schedulers(2.0)
        assert manager.optimizers["a"].param_groups[0]["lr"] == 0.01  # the second bad one: halved
    assert differences(*(m.state_dict() for m in made)) == []


def test_accumulation_clipping_frozen_units_and_learned_context_go_on_exactly(tmp_path: Path) -> None:
    check_goes_on(tmp_path, accumulate=3, grad_clip=0.1)
    check_goes_on(tmp_path, imprint.rules.SigProp(learned=True))
    check_goes_on(tmp_path, {"a": imprint.Frozen(), "b": "local_ce"}, layers=None)
    data = batches(6)
    first, other = make(), make(seed=4)
    first.freeze("a")
    steps(first, data[:3])
    assert not first.state_dict()["units"]["a"]["optimizers"][0]["state"]
    other.load_state_dict(first.state_dict())
    assert other.units["a"].frozen and not other.units["b"].frozen
    for each in (first, other):
        torch.manual_seed(0)
        each.unfreeze("a")
        steps(each, data[3:])
    assert differences(first.state_dict(), other.state_dict()) == []


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.a, self.b = nn.Embedding(9, 6), nn.Linear(6, 8), nn.Linear(8, 8)
        self.c = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(torch.relu(self.a(self.embed(x).mean(1))))))


@pytest.mark.parametrize("at", ["embed", None])
def test_the_random_context_of_token_inputs_is_part_of_the_state(at: str | None, tmp_path: Path) -> None:
    draw = {"generator": torch.Generator().manual_seed(2)}
    data = [(torch.randint(9, (8, 4), **draw), torch.randint(CLASSES, (8,), **draw)) for _ in range(6)]
    options = {"context_at": at, "exclude": "embed.*", "net": Tokens}
    first, other = make(**options), make(seed=5, **options)
    steps(first, data[:3])
    other.load_state_dict(through_file(first.state_dict(), tmp_path))
    for each in (first, other):
        torch.manual_seed(0)
        steps(each, data[3:])
    assert differences(first.state_dict(), other.state_dict()) == []
    third = make(seed=6, **options)
    steps(third, data[:3])
    state, drawn = third.state_dict(), first.state_dict()
    assert differences(state["signal"], drawn["signal"])  # it is drawn: without the state it would differ


def test_what_a_bound_manager_saw_in_its_first_batch_is_replaced(tmp_path: Path) -> None:
    data = batches(4)
    first, other = make("forward_forward"), make("forward_forward", seed=3)
    steps(first, data[:2])
    other.step(data[0][0] * 50, data[0][1])  # another largest value, which the labels are written with
    assert other.context.stream.high > 10 * first.context.stream.high
    other.load_state_dict(through_file(first.state_dict(), tmp_path))
    for each in (first, other):
        torch.manual_seed(0)
        steps(each, data[2:])
    assert differences(first.state_dict(), other.state_dict()) == []


def test_the_state_is_a_copy_and_can_be_loaded_twice() -> None:
    data = batches(6)
    manager = make(accumulate=2, scheduler=lambda o: schedulers.StepLR(o, 2))
    steps(manager, data[:3])
    state = manager.state_dict()
    before = copy.deepcopy(state)
    ends = []
    for _ in range(2):
        steps(manager, data[3:])
        assert differences(state, before) == []
        ends.append(manager.state_dict())
        manager.load_state_dict(state)
        assert differences(manager.state_dict(), before) == []
    assert differences(*ends) == [] and differences(ends[0], before)
    other = make(seed=3, accumulate=2, scheduler=lambda o: schedulers.StepLR(o, 2))
    other.load_state_dict(state)
    steps(other, data[3:])
    assert differences(state, before) == []
    assert all(v.device.type == "cpu" for v in flat(state).values() if isinstance(v, Tensor))


def test_random_numbers_of_torch_python_and_numpy_are_restored_last() -> None:
    manager = make()
    steps(manager, batches(2))
    state = manager.state_dict()
    drawn = torch.rand(3), random.random(), np.random.randn(3).tolist()  # noqa: NPY002
    other = make(seed=9)
    other.load_state_dict(state)  # it makes heads and context on the way
    assert torch.equal(drawn[0], torch.rand(3)) and drawn[1:] == (random.random(), np.random.randn(3).tolist())  # noqa: NPY002


def test_optimizer_state_is_by_name_so_a_permuted_model_gets_its_own() -> None:
    data = batches(6)
    first = make("local_ce", net=lambda: Net(order="abc"))
    turned = make("local_ce", seed=3, net=lambda: Net(order="cba"))

    def swap(module: nn.Module) -> nn.Module:
        """The same names, registered the other way round."""
        for m in module.modules():
            m._parameters = dict(reversed(m._parameters.items()))
        return module

    inner = make("local_ce", seed=4, net=lambda: swap(Net()))
    steps(first, data[:3])
    state = first.state_dict()
    for other in (turned, inner):
        names = [n for n, _ in other.model.named_parameters()]
        assert names != [n for n, _ in first.model.named_parameters()]
        other.load_state_dict(state)
        for unit in ("a", "b", "task"):
            mine, its = first.propagators[unit], other.propagators[unit]
            for name, p in mine.params.items():
                saved, loaded = mine.optimizers[0].state[p], its.optimizers[0].state[its.params[name]]
                assert torch.equal(saved["exp_avg"], loaded["exp_avg"])
    order = [list(m.propagators["a"].params) for m in (first, inner)]
    assert order[0] != order[1] and sorted(order[0]) == sorted(order[1])
    for each in (first, inner):
        torch.manual_seed(0)
        steps(each, data[3:])
    assert differences(first.state_dict()["model"], inner.state_dict()["model"]) == []
    # torch's own state, by position, lands on other weights
    wrong = [first.optimizers["b"], make("local_ce", net=lambda: swap(Net())).bind(*data[0]).optimizers["b"]]
    with pytest.raises(RuntimeError):
        wrong[1].load_state_dict(wrong[0].state_dict())
        for p in wrong[1].param_groups[0]["params"]:
            p.grad = torch.zeros_like(p)
        wrong[1].step()


def test_calls_counted_by_binding_again_are_part_of_the_state() -> None:
    class Loop(Net):
        times = 1

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            for _ in range(self.times):
                h = self.b(h)
            return self.c(h)

    first, other = make(net=Loop), make(net=Loop, seed=2)
    data = batches(3)
    steps(first, data[:1])
    first.model.times = other.model.times = 3
    first.bind(*data[0])
    other.load_state_dict(first.state_dict())
    assert other.units["b"].expected == first.units["b"].expected == 3
    for each in (first, other):
        torch.manual_seed(0)
        steps(each, data)
    assert differences(first.state_dict(), other.state_dict()) == []


def snapshot(manager: imprint.Manager) -> dict[str, Any]:
    """Everything of a manager, without asking it."""
    units = {
        name: [
            {k: p.detach() for k, p in prop.params.items()}, [o.state_dict() for o in prop.optimizers],
            [s.state_dict() for s in manager.schedulers.get(name, [])], prop.carry, prop.ticks,
        ]
        for name, prop in manager.propagators.items()
    }  # fmt: skip
    agents = {name: [a.open, a.frozen, a.expected, a.seen] for name, a in manager.units.items()}
    own = [manager.steps, manager.gathered, manager.bound, manager.options.labels.num_classes]
    rng = [torch.get_rng_state(), list(random.getstate()[1]), np.random.get_state()[1].tolist()]  # noqa: NPY002
    return copy.deepcopy(
        {"model": manager.model.state_dict(), "units": units, "agents": agents, "own": own, "rng": rng}
    )


WITH_SCHEDULE = {"scheduler": lambda o: schedulers.StepLR(o, 2)}
OTHERS: dict[str, tuple[Callable[[], imprint.Manager], str]] = {
    "width": (lambda: make(net=lambda: Net(9)), r"'a\.0\.weight' has another shape"),
    "depth": (lambda: make(net=lambda: nn.Sequential(Net().a, nn.Linear(8, 3)), layers=None), "other units"),
    "layers": (lambda: make(layers=["a"]), "other units"),
    "rule": (lambda: make("local_ce"), r"unit 'a'.*another rule[\s\S]*local_ce[\s\S]*sigprop"),
    "rule of one unit": (lambda: make({"a": "sigprop", "b": "local_ce"}, layers=None), "unit 'b'.*another rule"),
    "option of the rule": (lambda: make("sigprop", temperature=0.2), r"'temperature'[\s\S]*0\.2[\s\S]*0\.1"),
    "optimizer": (lambda: make(optimizer=lambda p: torch.optim.SGD(p, 0.1)), r"another optimizer[\s\S]*SGD[\s\S]*Adam"),
    "groups": (lambda: make(optimizer=OPTIMIZERS["groups"]), "other parameter groups"),
    "schedule": (lambda: make(**WITH_SCHEDULE), "another number of schedulers"),
    "dtype": (lambda: make(net=lambda: Net().double()), "another dtype"),
    "buffers": (lambda: make(net=lambda: _without_statistics(Net())), "running_mean"),
}


def _without_statistics(net: Net) -> Net:
    net.a[1] = nn.BatchNorm1d(8, track_running_stats=False)
    return net


@pytest.mark.parametrize("bound", [False, True], ids=["unbound", "bound"])
@pytest.mark.parametrize("what", OTHERS)
def test_a_state_of_something_else_is_refused_by_name_and_nothing_is_loaded(what: str, bound: bool) -> None:
    saved = make()
    steps(saved, batches(3))
    state = saved.state_dict()
    other, message = OTHERS[what][0](), OTHERS[what][1]
    if bound:
        dtype = next(other.model.parameters()).dtype
        steps(other, [(x.to(dtype), y) for x, y in batches(2, seed=4)])
    other_state = snapshot(other)
    with pytest.raises(CheckpointError, match=message):
        other.load_state_dict(state)
    assert differences(snapshot(other), other_state) == []


def test_another_schedule_or_more_classes_are_refused() -> None:
    saved = make(**WITH_SCHEDULE)
    steps(saved, batches(2))
    other = make(scheduler=lambda o: schedulers.ExponentialLR(o, 0.9))
    with pytest.raises(CheckpointError, match=r"another scheduler[\s\S]*ExponentialLR[\s\S]*StepLR"):
        other.load_state_dict(saved.state_dict())
    wide = make(num_classes=5, net=lambda: Net(classes=5)).bind(torch.randn(6, 6), torch.arange(5)[[0, 1, 2, 3, 4, 0]])
    with pytest.raises(CheckpointError, match=r"'c\.weight' has another shape"):
        wide.load_state_dict(saved.state_dict())
    unbound = make(**WITH_SCHEDULE)
    made = make(seed=3, **WITH_SCHEDULE)
    made.load_state_dict(unbound.state_dict())
    assert made.bound is None and differences(made.model.state_dict(), unbound.model.state_dict()) == []


@pytest.mark.parametrize("rule", ["sigprop", "local_ce", "predsim", "backprop"])
def test_a_state_of_before_bind_undoes_bind(rule: str) -> None:
    straight, other = make(rule), make(rule)
    start = straight.state_dict()
    steps(straight, batches(4))
    steps(other, batches(2, seed=5))
    other.load_state_dict(copy.deepcopy(start))
    assert other.bound is None and other.steps == 0 and other.labels == make(rule).labels
    assert differences(other.state_dict(), start) == []
    steps(other, batches(4))
    assert differences(other.state_dict(), straight.state_dict()) == []


def test_a_damaged_state_of_before_bind_leaves_a_bound_manager_as_it_was() -> None:
    other = make()
    state = make(seed=1).state_dict()
    state["rng"] = "nonsense"
    steps(other, batches(2, seed=5))
    before = snapshot(other)
    with pytest.raises(CheckpointError):
        other.load_state_dict(state)
    assert differences(snapshot(other), before) == []
    steps(other, batches(2))


OPTIONS: dict[str, dict[str, Any]] = {
    "accumulate": {"accumulate": 2}, "grad_clip": {"grad_clip": 1.0}, "task_loss": {"task_loss": F.cross_entropy},
    "weight": {"labels": imprint.Labels(CLASSES, weight=torch.tensor([1.0, 2.0, 3.0]))},
    "label_smoothing": {"labels": imprint.Labels(CLASSES, label_smoothing=0.1)},
    "ignore_index": {"labels": imprint.Labels(CLASSES, ignore_index=-1)},
}  # fmt: skip


@pytest.mark.parametrize("bound", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_another_option_is_refused_and_the_same_one_loads(name: str, bound: bool) -> None:
    saved, same, other = make("local_ce", **OPTIONS[name]), make("local_ce", **OPTIONS[name]), make("local_ce")
    steps(saved, batches(2))
    for manager in (same, other) if bound else ():
        steps(manager, batches(1, seed=4))
    before = snapshot(other)
    with pytest.raises(CheckpointError, match=f"saved with another {name}="):
        other.load_state_dict(saved.state_dict())
    assert differences(snapshot(other), before) == []
    same.load_state_dict(saved.state_dict())
    assert differences(same.state_dict(), saved.state_dict()) == []


def damaged(state: dict[str, Any], depth: int = 5) -> Iterator[tuple[str, dict[str, Any]]]:
    """The state with one entry gone or replaced by nonsense, for every entry of its upper floors."""

    def paths(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        if path:
            yield path
        if len(path) < depth and isinstance(value, dict | list):
            for k in value if isinstance(value, dict) else range(len(value)):
                yield from paths(value[k], (*path, k))

    for path in paths(state, ()):
        for junk in ("gone", "nonsense", None):
            made = copy.deepcopy(state)
            place = made
            for k in path[:-1]:
                place = place[k]
            if place[path[-1]] is None and junk is None:
                continue
            if junk == "gone":
                del place[path[-1]]
            else:
                place[path[-1]] = junk
            yield f"{path} {junk}", made


@pytest.mark.parametrize("bound", [False, True], ids=["unbound", "bound"])
def test_a_damaged_state_is_refused_or_harmless_and_never_half_loaded(bound: bool) -> None:
    saved = make("local_ce", accumulate=2)
    steps(saved, batches(3))
    state = saved.state_dict()
    manager = make("local_ce", seed=3, accumulate=2)
    if bound:
        steps(manager, batches(2, seed=4))
    before, refused, loaded = snapshot(manager), 0, []
    for what, broken in damaged(state):
        try:
            manager.load_state_dict(broken)
        except CheckpointError:
            refused += 1
            assert differences(snapshot(manager), before) == [], what
        else:
            loaded.append(what)
            manager = make("local_ce", seed=3, accumulate=2)
            if bound:
                steps(manager, batches(2, seed=4))
            before = snapshot(manager)
    assert refused > 250
    # values that stand for themselves; a file guards them by its checksums
    allowed = ("'groups'", "'frozen'", "'carry'", "('bound'", "'cuda'", "'python', 2")
    assert [w for w in loaded if not any(word in w for word in allowed)] == []


def test_other_things_are_no_state() -> None:
    manager = make()
    for thing in (None, [], nn.Linear(1, 1).state_dict(), {"format": 1}):
        with pytest.raises(CheckpointError):
            manager.load_state_dict(thing)  # type: ignore[arg-type]
    state = manager.state_dict() | {"format": 99}
    with pytest.raises(CheckpointError, match=r"another format[\s\S]*99"):
        manager.load_state_dict(state)


def test_an_optimizer_with_shared_state_is_kept() -> None:
    class Counting(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            self.state["calls"] = self.state.get("calls", 0) + 1
            super().step(closure)

    first, other = (make("local_ce", s, optimizer=lambda p: Counting(p, 0.1, momentum=0.9)) for s in (0, 1))
    steps(first, batches(3))
    other.load_state_dict(first.state_dict())
    assert other.optimizers["a"].state["calls"] == 3
    assert F.mse_loss(other.model.c.weight, first.model.c.weight) == 0


@pytest.mark.gpu
def test_a_state_of_a_gpu_loads_on_the_cpu_and_back(tmp_path: Path) -> None:
    manager = make(net=lambda: Net().cuda(), optimizer=OPTIMIZERS["default"])
    data = [(x.cuda(), y.cuda()) for x, y in batches(6)]
    steps(manager, data[:3])
    saved = through_file(manager.state_dict(), tmp_path)
    assert all(v.device.type == "cpu" for v in flat(saved).values() if isinstance(v, Tensor))
    again = make(seed=3, net=lambda: Net().cuda(), optimizer=OPTIMIZERS["default"])
    again.load_state_dict(saved)
    for each in (manager, again):
        torch.manual_seed(0)
        steps(each, data[3:])
    assert differences(manager.state_dict(), again.state_dict()) == []
    host = make(seed=3, optimizer=OPTIMIZERS["default"])
    host.load_state_dict(saved)
    assert differences(host.state_dict()["model"], saved["model"]) == []
    steps(host, batches(1))
