"""A compiled step of an attached model learns what an eager one learns: every rule, several models, all state."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

import imprint
from imprint.errors import CaptureError, CoverageError
from imprint.managers import Manager
from imprint.objectives import Objective
from imprint.rules import registry

RULES = sorted(name for name, rule in registry.items() if "layers" in rule.worlds)
CLASSES = 3


class Residual(nn.Module):
    """Two convolutional units with BatchNorm, the second one with a shortcut around it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.out = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.out((h + self.second(h)).flatten(1))


class Encoder(nn.Module):
    """Two transformer blocks with dropout, and a weight after the last unit that no unit owns."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Linear(5, 8), nn.Linear(8, CLASSES)
        self.scale = nn.Parameter(torch.rand(CLASSES))
        layer = lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.blocks = nn.ModuleList(layer() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.out(x.mean(1)) * self.scale


def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 7), nn.Tanh(), nn.Dropout(0.2), nn.Linear(7, CLASSES))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dense": (dense, (6,)), "residual": (Residual, (2, 4, 4)), "encoder": (Encoder, (4, 5)),
}  # fmt: skip


def replays(rule: str) -> bool:
    """Has it a second pass with the random numbers of the first?"""
    stream = registry[rule]().stream()
    return stream is not None and stream.modulates


def reaches_in(rule: str) -> bool:
    """Has it to see every product with a weight? Those of attention are closed."""
    made = registry[rule]()
    return rule == "fa" or (made.objective() or Objective()).needs_synapses


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    return model


def batches(shape: tuple[int, ...], rows: tuple[int, ...] = (6, 6, 4, 6)) -> list[tuple[Any, Any]]:
    return [(torch.randn(n, *shape).double(), torch.randint(CLASSES, (n,))) for n in rows]


def trained(
    net: nn.Module, data: list[tuple[Any, Any]], compiled: bool, rule: Any, act: Any = None, **options: Any
) -> tuple[Manager, list[Any]]:
    """A manager after these steps; `act` is called with it and the number of the step before each."""
    torch.manual_seed(1)
    manager = imprint.attach(copy.deepcopy(net).double(), rule, **copy.deepcopy(options))
    if compiled:
        manager.compile("eager")
    found = []
    for i, (x, y) in enumerate(data):
        if act is not None:
            act(manager, i)
        found.append(manager.step(x, y))
    return manager, found


def everything(manager: Manager, outputs: list[Any]) -> list[Any]:
    """Weights, heads, optimizers, buffers, schedules, random numbers, monitors and outputs, flat."""
    return tree_flatten((outputs, manager.state_dict(), manager.metrics()))[0]


def furthest(a: list[Any], b: list[Any]) -> float:
    """Largest difference of any number; everything else is the same."""
    assert len(a) == len(b)
    far = 0.0
    for u, v in zip(a, b, strict=True):
        if isinstance(u, Tensor) and u.is_floating_point():
            assert u.shape == v.shape and u.dtype == v.dtype
            far = max(far, float((u - v).abs().max()) if u.numel() else 0.0)
        elif isinstance(u, float):
            far = max(far, abs(u - v))
        elif isinstance(u, Tensor):
            assert torch.equal(u, v)
        else:
            assert u == v
    return far


def same(net: nn.Module, data: list[tuple[Any, Any]], rule: Any, act: Any = None, **options: Any) -> Manager:
    """Eager and compiled steps leave the same; returns the compiled manager."""
    eager = trained(net, data, False, rule, act, **options)
    compiled = trained(net, data, True, rule, act, **options)
    assert furthest(everything(*eager), everything(*compiled)) < 1e-12
    assert eager[0].steps == compiled[0].steps and eager[0].gathered == compiled[0].gathered
    if compiled[0].compiled is not None:
        assert "eager, as" not in compiled[0].compiled.explain()
    return compiled[0]


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("rule", RULES)
def test_every_rule(rule: str, net: str) -> None:
    torch.manual_seed(0)
    make, shape = NETS[net]
    model = make()
    if net == "encoder" and reaches_in(rule):
        with pytest.raises(CoverageError, match="multi_head_attention_forward multiplies with it inside"):
            trained(model, batches(shape), False, rule, num_classes=CLASSES)
        return
    if replays(rule):  # the same dropout masks twice cannot be captured: see the errors
        model = without_dropout(model)
    manager = same(model, batches(shape), rule, num_classes=CLASSES)
    assert manager.compiled is not None
    explained = manager.compiled.explain()
    assert "2 captured" in explained, "one for each size of batch"
    assert "ran 3x" in explained and "ran 1x" in explained


def test_the_same_dropout_twice_is_refused() -> None:
    torch.manual_seed(0)
    with pytest.raises(CaptureError, match=r"sets torch's random numbers back[\s\S]*'pepita' no dropout"):
        trained(dense(), batches((6,)), True, "pepita", num_classes=CLASSES)


@pytest.mark.parametrize("rule", ["local_ce", "sigprop", "forward_forward", "dfa", "efp"])
@pytest.mark.parametrize("update", ["deferred", "summed"])
def test_every_update_mode(rule: str, update: str) -> None:
    torch.manual_seed(0)
    manager = same(dense(), batches((6,)), rule, num_classes=CLASSES, update=update)
    assert manager.compiled is not None and "2 captured" in manager.compiled.explain()


@pytest.mark.parametrize("rule", ["local_ce", "sigprop", "forward_forward", "backprop", "dfa"])
@pytest.mark.parametrize("size", [2, 3])
def test_gathering(rule: str, size: int) -> None:
    torch.manual_seed(0)
    manager = same(dense(), batches((6,), (6,) * 7), rule, accumulate=size, num_classes=CLASSES, grad_clip=0.05)
    assert manager.compiled is not None and "gathers, and updates" in manager.compiled.explain()
    assert any(prop.ticks for prop in manager.propagators.values()), "what is gathered is in the propagators"


def test_an_update_by_hand_and_eager_steps_between() -> None:
    torch.manual_seed(0)

    def act(manager: Manager, i: int) -> None:
        if i == 2:
            manager.update()
        if manager.compiled is not None and i == 5:
            manager.compiled.close()

    manager = same(dense(), batches((6,), (6,) * 8), "local_ce", act, accumulate=3)
    assert manager.compiled is None


OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-2, centered=True, momentum=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, 1e-2),
    "fused": lambda p: torch.optim.Adam(p, 1e-2, fused=True, weight_decay=0.1),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_optimizers(kind: str) -> None:
    torch.manual_seed(0)
    manager = same(Residual(), batches((2, 4, 4)), "sigprop", optimizer=OPTIMIZERS[kind], num_classes=CLASSES)
    assert manager.compiled is not None
    assert ("steps by itself" in manager.compiled.explain()) == (kind == "adagrad")


def test_schedules() -> None:
    torch.manual_seed(0)

    def act(manager: Manager, i: int) -> None:
        if i:
            manager.step_schedulers()

    halve = lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    manager = same(dense(), batches((6,)), "local_ce", act, scheduler=halve, optimizer=OPTIMIZERS["adamw"])
    assert {g["lr"] for o in manager.optimizers.values() for g in o.param_groups} == {1e-2 / 8}
    assert manager.compiled is not None and "2 captured" in manager.compiled.explain(), "rates are not captured"


TARGETS: dict[str, tuple[dict[str, Any], Callable[[Tensor], Any]]] = {
    "unlabelled rows": ({"num_classes": 3}, lambda y: y.masked_fill(torch.arange(len(y)) % 3 == 0, -100)),
    "no labels": ({"num_classes": 3}, lambda y: torch.full_like(y, -100) if len(y) == 4 else y),
    "weights": ({"labels": imprint.Labels(3, torch.tensor([1.0, 0.5, 2.0]), label_smoothing=0.1)}, lambda y: y),
    "soft": ({"num_classes": 3}, lambda y: torch.eye(3).double()[y] * 0.8 + 0.05),
    "values": ({}, lambda y: torch.stack([y, -y, y * 0.5], 1).double()),
    "own loss": (
        {"num_classes": 3, "task_loss": lambda out, y: (out.logsumexp(1) - out.sum(1) * y).mean()}, lambda y: y,
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", ["local_ce", "sigprop", "predsim"])
@pytest.mark.parametrize("target", TARGETS)
def test_targets(target: str, rule: str) -> None:
    if target == "values" and rule == "predsim":
        pytest.skip("similarity matching has classes")
    torch.manual_seed(0)
    options, change = TARGETS[target]
    same(dense(), [(x, change(y)) for x, y in batches((6,))], rule, **options)


class Pair(nn.Module):
    """Two inputs and a mask; returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 8), nn.Linear(4, 8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor, z: Tensor, mask: Tensor, scale: float = 1.0) -> dict[str, Any]:
        h = torch.tanh(self.a(x)) + torch.tanh(self.b(z)).masked_fill(mask, 0.0) * scale
        return {"logits": self.out(h), "hidden": [h, "tanh"]}


@pytest.mark.parametrize("form", ["tuple", "dict"])
@pytest.mark.parametrize("rule", ["local_ce", "sigprop"])
def test_several_inputs(rule: str, form: str) -> None:
    torch.manual_seed(0)
    data: list[tuple[Any, Any]] = []
    for n, scale in ((6, 1.0), (6, 0.5), (5, 1.0), (6, 1.0)):
        x = (torch.randn(n, 6).double(), torch.randn(n, 4).double(), torch.rand(n, 8) < 0.3, scale)
        data.append(
            (x if form == "tuple" else dict(zip(("x", "z", "mask", "scale"), x, strict=True)), torch.arange(n) % 3)
        )
    manager = same(Pair(), data, rule, num_classes=CLASSES)
    assert manager.compiled is not None and "3 captured" in manager.compiled.explain(), "numbers are captured"


def test_a_learned_signal() -> None:
    torch.manual_seed(0)
    same(dense(), batches((6,)), "sigprop", signal=nn.Linear(3, 6).double(), num_classes=CLASSES)


def test_freezing_and_modes() -> None:
    torch.manual_seed(0)

    def act(manager: Manager, i: int) -> None:
        if i == 1:
            manager.freeze("0")
        if i == 3:
            manager.unfreeze("0")
            manager.model[4].eval()  # type: ignore[index]
        if i == 4:
            manager.model.train()
            manager.model[5].bias.requires_grad_(False)  # type: ignore[index]

    same(dense(), batches((6,), (6,) * 6), "local_ce", act, optimizer=OPTIMIZERS["adamw"])


def test_monitors() -> None:
    torch.manual_seed(0)
    names = ["loss", "accuracy", "grad_norm", "update_ratio", "activations"]
    read: dict[bool, list[Any]] = {False: [], True: []}

    def act(manager: Manager, i: int) -> None:
        if i in (2, 3, 6):
            read[manager.compiled is not None].append(manager.metrics())
        if i == 5 and manager.compiled is not None:  # an eager step between
            manager.compiled.close()
        if i == 6 and read[True]:
            manager.compile("eager")

    net, data = dense(), batches((6,), (6,) * 9)
    eager = trained(net, data, False, "local_ce", act, monitors=names)
    read[True].append(None)
    compiled = trained(net, data, True, "local_ce", act, monitors=names)
    read[True].remove(None)
    assert furthest(everything(*eager), everything(*compiled)) < 1e-12
    first, second = (tree_flatten(read[kind][:2])[0] for kind in (False, True))
    assert len(first) > 20 and max(abs(a - b) for a, b in zip(first, second, strict=True)) < 1e-12


def test_a_state_goes_on_in_another_manager() -> None:
    torch.manual_seed(0)
    net, data = Residual(), batches((2, 4, 4), (6,) * 6)
    whole, _ = trained(net, data, True, "local_ce", accumulate=2)
    half, _ = trained(net, data[:3], True, "local_ce", accumulate=2)
    other = imprint.attach(copy.deepcopy(net).double(), "local_ce", accumulate=2)
    other.load_state_dict(half.state_dict())
    other.compile("eager")
    for i, (x, y) in enumerate(data[3:]):
        other.step(x, y)
        if i == 0:  # into a manager that has captured
            other.load_state_dict(copy.deepcopy(other.state_dict()))
    assert furthest(*(tree_flatten(manager.state_dict())[0] for manager in (whole, other))) < 1e-12


def test_a_difference_is_seen() -> None:
    torch.manual_seed(0)
    net, data = dense(), batches((6,))
    eager = trained(net, data, False, "local_ce")
    other = trained(net, data, True, "local_ce", lambda m, i: m.freeze("0") if i == 3 else None)
    assert furthest(everything(eager[0], eager[1])[:4], everything(other[0], other[1])[:4]) < 1e-12
    assert float((eager[0].model[0].weight - other[0].model[0].weight).detach().abs().max()) > 1e-5  # type: ignore[index]


class Scaled(nn.Module):
    """One number as weight, and one as statistic: torch's compiler takes such for numbers of Python's."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.seen = nn.Parameter(torch.tensor(1.5)), nn.Buffer(torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.seen.mul_(0.9).add_(x.square().mean())
        return x * self.scale


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
def test_inductor() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.PReLU(), nn.Flatten(), Scaled()),
        nn.Dropout(0.3), nn.Linear(16, CLASSES),
    )  # fmt: skip
    data = batches((2, 4, 4), (6,) * 4)
    eager = trained(net, data, False, "sigprop", num_classes=CLASSES)
    torch.manual_seed(1)
    manager = imprint.attach(copy.deepcopy(net).double(), "sigprop", num_classes=CLASSES)
    manager.compile()
    found = [manager.step(x, y) for x, y in data]
    assert furthest(everything(*eager), everything(manager, found)) < 1e-12
