"""What a compiled step refuses, what it leaves behind when a step fails, and when it is captured anew."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

import imprint
from imprint.errors import (
    ArgumentError,
    CaptureError,
    CompileError,
    ImprintError,
    NonFiniteError,
    ShapeError,
    StateError,
    UnknownNameError,
)
from imprint.managers import Manager
from imprint.monitors import Metric
from imprint.runtime.codegen import generators


def attached(*inside: nn.Module, rule: str = "local_ce", **options: Any) -> Manager:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), *inside),
        nn.Sequential(nn.Linear(6, 5), nn.Tanh()), nn.Linear(5, 3),
    ).double()  # fmt: skip
    return imprint.attach(model, rule, num_classes=3, **options)


def batch(rows: int = 5) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, 4).double(), torch.arange(rows) % 3


def snapshot(manager: Manager) -> list[Any]:
    state = manager.state_dict()
    return tree_flatten({k: v for k, v in state.items() if k != "rng"})[0]


def equal(a: list[Any], b: list[Any], within: float = 0.0) -> bool:
    return len(a) == len(b) and all(
        float((u.double() - v.double()).abs().max()) <= within if isinstance(u, Tensor) and u.numel() else u == v
        for u, v in zip(a, b, strict=True) if not (isinstance(u, Tensor) and not u.numel())
    )  # fmt: skip


def refused(manager: Manager, match: str, kind: type[ImprintError] = CaptureError) -> ImprintError:
    """Refused by name, before anything is changed; eager instead where that is asked for."""
    x, y = batch()
    if manager.bound is None:
        manager.bind(x, y)
    compiled, before = manager.compile("eager"), snapshot(manager)
    drawn = torch.get_rng_state()
    with pytest.raises(kind, match=match) as caught:
        manager.step(x, y)
    assert equal(before, snapshot(manager)) and manager.steps == 0 == manager.gathered
    assert torch.equal(drawn, torch.get_rng_state())
    compiled = manager.compile("eager", fallback=True)
    manager.step(x, y)
    manager.step(x, y)
    assert manager.steps == 2 and "eager, as fallback=True asks" in repr(compiled)
    assert str(caught.value.where) in repr(compiled)
    assert not equal(before, snapshot(manager))
    return caught.value


class Reads(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum().item() > 0 else x


class Remembers(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        self.last = x.detach()
        return x


class Counts(nn.Module):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


class PythonRandom(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * random.random()


class Checkpointed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        run = lambda h: torch.dropout(h, 0.5, True) * 2
        return torch.utils.checkpoint.checkpoint(run, x, use_reentrant=False)


@pytest.mark.parametrize(
    ("module", "match"),
    [
        (Reads, r"unit '0' \(rule 'local_ce'\)"), (Remembers, "changes an attribute"),
        (Counts, "changes an attribute"), (PythonRandom, "random numbers of Python"), (Checkpointed, "checkpointing"),
    ],
)  # fmt: skip
def test_python_in_a_forward(module: Callable[[], nn.Module], match: str) -> None:
    refused(attached(module(), layers=["0", "1", "2"]), match)


def test_hooks() -> None:
    manager = attached()
    manager.model[1][0].register_forward_hook(lambda *_: None)  # type: ignore[index]
    error = refused(manager, "has hooks, which a compiled step would skip")
    assert error.where == "module '1.0'" and "monitor" in str(error.fix)
    manager = attached()
    manager.model[0][0].weight.register_hook(lambda g: g * 2)  # type: ignore[index]
    refused(manager, r"weight '0\.0\.weight': it has hooks")


def test_a_hook_that_comes_later_is_seen() -> None:
    manager = attached()
    manager.compile("eager")
    manager.step(*batch())
    handle = manager.model[0].register_forward_pre_hook(lambda *_: None)  # type: ignore[index]
    with pytest.raises(CaptureError, match="hooks"):
        manager.step(*batch())
    handle.remove()
    manager.step(*batch())
    assert manager.steps == 2


class Peak(Metric):
    name = "peak"

    def __init__(self) -> None:
        super().__init__()
        self.largest: dict[str, Tensor] = {}

    def learned(self, prop: Any, x: Any, out: Any, y: Any, loss: Tensor) -> None:
        before = self.largest.get(prop.name)
        self.largest[prop.name] = loss if before is None else torch.maximum(before, loss)


class PythonCount(Metric):
    name = "count"

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def learned(self, prop: Any, x: Any, out: Any, y: Any, loss: Tensor) -> None:
        self.seen += 1


class Spy(imprint.propagators.probe.Probe):
    pass


def test_monitors() -> None:
    refused(attached(monitors=[PythonCount()]), "monitor 'count': it counts in Python")
    refused(attached(monitors=["linear_probe"]), "monitor 'linear_probe'")
    refused(attached(monitors=["alignment"]), "monitor 'alignment'")
    watched = attached()
    watched.units["1.0"].prop.probes.append(Spy())
    refused(watched, "what watches it is no monitor")
    peak = Peak()
    manager = attached(monitors=[peak])
    manager.compile("eager")
    seen: list[Tensor] = []
    for _ in range(4):
        before = {k: v.clone() for k, v in peak.largest.items()}
        manager.step(*batch())
        seen += [v for k, v in peak.largest.items() if k in before and v < before[k]]
    assert len(peak.largest) == 3 and not seen


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_a_step_that_is_not_finite(backend: str, size: int) -> None:
    if backend == "inductor" and size == 3:
        pytest.skip("compiled once is enough")
    found = []
    for compiled in (False, True):
        manager = attached(accumulate=size)
        manager.bind(*batch())
        if compiled:
            manager.compile(backend)
        torch.manual_seed(2)
        for i in range(7):
            x, y = batch()
            if i in (1, 4):
                with torch.no_grad():
                    kept = manager.model[1][0].weight.clone()  # type: ignore[index]
                    manager.model[1][0].weight[0, 0] = torch.nan  # type: ignore[index]
                with pytest.raises(NonFiniteError, match=r"unit '1\.0'"):
                    manager.step(x, y)
                with torch.no_grad():
                    manager.model[1][0].weight.copy_(kept)  # type: ignore[index]
            else:
                manager.step(x, y)
        found.append(
            (snapshot(manager), manager.steps, manager.gathered, [p.ticks for p in manager.propagators.values()])
        )
    assert found[0][1:] == found[1][1:]
    assert equal(found[0][0], found[1][0], 1e-12), "the first unit has learned, its statistics are as they were"


def test_a_gradient_that_is_not_finite() -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 0 + (x[:1, :1] * self.zero).sqrt()

        zero = 0.0

    found = []
    for compiled in (False, True):
        manager = attached(Root(), layers=["0", "1", "2"], accumulate=2, grad_clip=1.0, strict=False)
        manager.bind(*batch())
        if compiled:
            manager.compile("eager")
        torch.manual_seed(2)
        manager.step(*batch())
        with pytest.raises(NonFiniteError, match="gradient"):
            manager.step(*batch())
        found.append((snapshot(manager), manager.steps, manager.gathered))
    assert found[0][1:] == found[1][1:] == (1, 0)
    assert equal(found[0][0], found[1][0], 1e-12)


def test_staleness() -> None:
    manager = attached()
    compiled = manager.compile("eager", on_stale="error")
    assert compiled.stale() == []
    manager.step(*batch())
    manager.step(*batch())
    assert compiled.stale() == [], "the first step's optimizer state is no change"
    for o in manager.optimizers.values():
        o.param_groups[0]["lr"] = 0.01
    assert compiled.stale() == []
    manager.freeze("0.0")
    assert compiled.stale() == ["frozen units"]
    before = snapshot(manager)
    with pytest.raises(StateError, match="another state") as caught:
        manager.step(*batch())
    assert "frozen units" in str(caught.value) and equal(before, snapshot(manager))
    compiled.refresh()
    manager.step(*batch())
    manager.model[0][1].eval()  # type: ignore[index]
    assert compiled.stale() == ["training modes"]
    compiled.refresh()
    manager.step(*batch())
    manager.optimizers["2"].param_groups[0]["betas"] = (0.5, 0.9)
    assert compiled.stale() == ["optimizers"]
    manager.load_state_dict(manager.state_dict())
    assert "optimizers" in compiled.stale()


def test_settings_that_change_are_captured_anew() -> None:
    found = []
    for compiled in (False, True):
        manager = attached(optimizer=lambda p: torch.optim.SGD(p, 0.1, momentum=0.9))
        manager.bind(*batch())
        if compiled:
            manager.compile("eager")
        torch.manual_seed(2)
        for i in range(5):
            for o in manager.optimizers.values():
                o.param_groups[0]["momentum"] = 0.9 if i < 2 else 0.1
            if i == 3:  # another tensor in place of a weight
                manager.model[0][0].weight = nn.Parameter(manager.model[0][0].weight.detach() * 0.5)  # type: ignore[index]
            manager.step(*batch())
        found.append(snapshot(manager))
    assert equal(*found, 1e-12)


def test_sizes() -> None:
    manager = attached()
    compiled = manager.compile("eager", on_shape="error")
    manager.step(*batch(5))
    before = snapshot(manager)
    with pytest.raises(ShapeError, match="another size") as caught:
        manager.step(*batch(4))
    assert "[5, 4]" in str(caught.value) and "[4, 4]" in str(caught.value) and equal(before, snapshot(manager))
    manager.step(*batch(5))
    assert "ran 2x" in compiled.explain()


@pytest.mark.parametrize(
    ("options", "kind", "match"),
    [
        ({"backend": "inducter"}, UnknownNameError, "inductor"),
        ({"on_shape": "pad"}, ArgumentError, "rows of an attached model may see each other"),
        ({"on_shape": "grow"}, ArgumentError, "on_shape"), ({"on_stale": "pad"}, ArgumentError, "on_stale"),
        ({"fallback": 1}, ArgumentError, "fallback"),
        ({"codegen": "inductor", "backend": "eager"}, ArgumentError, "codegen"),
        ({"allow_emulation": True}, ArgumentError, "allow_emulation"),
    ],
)  # fmt: skip
def test_options(options: dict[str, Any], kind: type[ImprintError], match: str) -> None:
    manager = attached()
    with pytest.raises(kind, match=match):
        manager.compile(**options)
    assert manager.compiled is None


def test_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(captured: Any) -> Callable[[], None]:
        def run() -> None:
            raise CompileError("plan", "a block could not be compiled", got="no compiler", fix="install one")

        return run

    monkeypatch.setitem(generators, "eager", broken)
    refused(attached(), "could not be compiled", CompileError)


def test_a_step_that_does_not_run_says_what_an_eager_one_says() -> None:
    manager = attached()
    manager.bind(*batch())
    compiled, before = manager.compile("eager"), snapshot(manager)
    said = []
    for _ in range(2):
        with pytest.raises(ShapeError) as caught:
            manager.step(torch.randn(5, 7).double(), batch()[1])
        said.append(str(caught.value))
        if len(said) == 1:
            assert equal(before, snapshot(manager))
        compiled.close()
    assert said[0] == said[1] and manager.compiled is None


def test_an_optimizer_that_would_come_too_late() -> None:
    manager = attached(rule="forward_forward", optimizer=lambda p: torch.optim.Adagrad(p, 0.1))
    refused(manager, "steps before the data pass.*Adagrad")


def test_no_learning_and_detach() -> None:
    manager = attached()
    manager.compile("eager")
    x, y = batch()
    manager.step(x, y)
    before = snapshot(manager)
    with imprint.no_learning():
        manager.step(x, y)
    assert not equal(before, snapshot(manager)), "statistics move in a forward pass"
    assert manager.steps == 1
    model = manager.detach()
    assert manager.compiled is None and type(model) is nn.Sequential


def test_outputs_are_the_callers_own() -> None:
    manager = attached()
    manager.compile("eager")
    first = manager.step(*batch())
    kept = first.clone()
    second = manager.step(*batch())
    assert torch.equal(first, kept) and not torch.equal(first, second) and not second.requires_grad


def test_a_copy_of_the_model_is_plain() -> None:
    manager = attached()
    manager.compile("eager")
    manager.step(*batch())
    assert type(copy.deepcopy(manager.model)[1][0]) is nn.Linear  # type: ignore[index]
