"""Precision and memory format: casts before and after bind, autocast, channels_last, mixed models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import imprint
from imprint.errors import DtypeError

K, B = 3, 8


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(6, 4, 3, stride=2), nn.Tanh())
        self.head = nn.Linear(4, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.conv(x)).mean((2, 3)))


def batch(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return torch.randn(B, 2, 6, 6, dtype=dtype), torch.randint(K, (B,))


def attach(model: nn.Module, rule: str = "local_ce", **options: Any) -> imprint.Manager:
    options.setdefault("optimizer", lambda p: torch.optim.SGD(p, 0.1, momentum=0.9))
    return imprint.attach(model, rule, num_classes=K, layers="conv|body", **options)


RULES = ["local_ce", "sigprop", "predsim", "forward_forward", "drtp"]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("cast", ["before attach", "after attach", "after bind", "after a step", "manager.to"])
def test_casting_the_model(rule: str, cast: str) -> None:
    """Heads, context inputs, feedback and momentum follow; a cast of fresh weights leaves what is learned."""
    start = Net().state_dict()
    batches = [batch() for _ in range(3)]

    def run(cast: str) -> tuple[list[Tensor], imprint.Manager]:
        torch.manual_seed(1)
        model = Net()
        model.load_state_dict(start)
        double = cast in ("before attach", "after attach")
        if cast == "before attach":
            model.double()
        manager = attach(model, rule)
        if cast == "after attach":
            model.double()
        x, y = batches[0]
        manager.bind(x if double else x.float(), y)
        if cast == "after a step":
            manager.step(x.float(), y)
        if cast == "manager.to":
            manager.to(torch.float64)
        model.double()
        for x, y in batches:
            manager.step(x, y)
        assert all(p.dtype == torch.float64 for a in manager.units.values() for p in a.prop.params.values())
        for optimizer in manager.optimizers.values():
            for p, state in optimizer.state.items():
                assert all(v.dtype == p.dtype for v in state.values() if isinstance(v, Tensor) and v.dim())
        assert manager.predict(x).dtype == torch.float64
        if rule != "drtp":
            assert manager.predict(x, by="local").dtype == torch.float64
        return list(model.parameters()), manager

    expected, _ = run("after bind")
    if rule in ("drtp", "predsim", "sigprop") and "attach" in cast:
        run(cast)  # what is drawn at bind is drawn in the precision of then: other numbers
        return
    found, _ = run(cast)
    for a, b in zip(found, expected, strict=True):
        if cast == "after a step":
            assert not torch.equal(a, b)
        else:
            assert torch.allclose(a, b, rtol=0, atol=1e-6)


def test_a_cast_in_the_middle_of_accumulation() -> None:
    model = Net()
    manager = attach(model, accumulate=2)
    x, y = batch(torch.float32)
    manager.step(x, y)
    before = model.conv[0].weight.clone()
    model.double()
    manager.step(x.double(), y)
    manager.step(x.double(), y), manager.step(x.double(), y)
    assert not torch.equal(model.conv[0].weight.float(), before)


def test_predicting_by_local_right_after_a_cast() -> None:
    model = Net()
    manager = attach(model, "sigprop")
    x, y = batch(torch.float32)
    manager.step(x, y)
    before = manager.predict(x, by="local")
    model.double()
    assert torch.allclose(manager.predict(x.double(), by="local").float(), before, atol=1e-4)


def test_a_wrong_dtype_names_the_unit() -> None:
    manager = attach(Net())
    x, y = batch(torch.float32)
    manager.step(x, y)
    with pytest.raises(DtypeError, match=r"unit 'conv'[\s\S]*torch\.float32[\s\S]*torch\.float64"):
        manager.step(x.double(), y)
    manager.step(x, y)


@pytest.mark.parametrize("rule", ["local_ce", "sigprop", "forward_forward"])
@pytest.mark.parametrize("bound", [False, True], ids=["first batch", "later"])
def test_pixels_as_bytes_and_other_precisions_are_refused_by_name(rule: str, bound: bool) -> None:
    for dtype in (torch.uint8, torch.float64, torch.float16):
        manager = attach(Net(), rule)
        x, y = batch(torch.float32)
        if bound:
            manager.step(x, y)
        before = {k: v.clone() for k, v in manager.model.state_dict().items()}
        with pytest.raises(DtypeError, match=rf"unit 'conv'[\s\S]*torch\.float32[\s\S]*{dtype}[\s\S]*x\.to\("):
            manager.step((10 * x.abs()).to(dtype), y)
        assert all(torch.equal(v, before[k]) for k, v in manager.model.state_dict().items())
        manager.step(x, y)


def test_tokens_that_are_no_integers_are_refused_by_name() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, K))
    with pytest.raises(DtypeError, match=r"unit '0': its input has a dtype that it does not take[\s\S]*Long, Int"):
        imprint.attach(model, "local_ce").step(torch.rand(8, 3), torch.randint(K, (8,)))


def test_a_model_of_two_precisions() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Linear(4, 5), nn.Linear(5, 5).double(), nn.Linear(5, K).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.second(torch.tanh(self.first(x)).double())))

    for rule in ("local_ce", "sigprop"):
        model = Mixed()
        manager = imprint.attach(model, rule, num_classes=K)
        before = [p.clone() for p in model.parameters()]
        for _ in range(3):
            manager.step(torch.randn(B, 4), torch.randint(K, (B,)))
        assert not any(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
        assert manager.units["first"].unit.objective.to  # heads live where their units do
        for name, dtype in (("first", torch.float32), ("second", torch.float64)):
            assert all(p.dtype == dtype for p in manager.units[name].prop.params.values())


@pytest.mark.parametrize("rule", [*RULES, "backprop"])
@pytest.mark.parametrize("whole_loop", [False, True])
def test_autocast_learns_what_full_precision_learns(rule: str, whole_loop: bool) -> None:
    """Every weight moves, in every step, also with predictions in between and one autocast block around the whole loop.

    Autocast keeps the casts it made of weights until its block ends, even such as were made without gradient.
    """
    torch.manual_seed(0)
    model, reference = Net(), Net()
    reference.load_state_dict(model.state_dict())
    batches = [batch(torch.float32) for _ in range(4)]
    managers = []
    for each, enabled in ((model, True), (reference, False)):
        torch.manual_seed(1)
        manager = attach(each, rule)
        managers.append(manager)
        outer = torch.autocast("cpu", torch.bfloat16, enabled=enabled and whole_loop)
        with outer:
            for x, y in batches:
                before = [p.clone() for p in each.parameters()]
                with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                    with torch.no_grad():
                        manager.predict(x)
                        each(x) if rule != "forward_forward" else None
                    out = manager.step(x, y)
                    assert out.dtype == (torch.bfloat16 if enabled else torch.float32)
                if manager.steps > 1 or rule not in ("local_ce",):
                    still = [n for (n, p), b in zip(each.named_parameters(), before, strict=True) if torch.equal(p, b)]
                    assert [n for n in still if n != "conv.0.bias"] == []
    for (n, a), b in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert a.dtype == torch.float32
        if n != "conv.0.bias":  # in front of BatchNorm: its gradient is zero but for rounding
            assert torch.allclose(a, b, rtol=0, atol=0.02 + 0.1 * float(b.detach().abs().max())), n


def test_autocast_of_a_unit_called_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.head = nn.Linear(4, 4), nn.Linear(4, K)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.block(torch.tanh(self.block(x)))))

    for rule in ("local_ce", "sigprop"):
        models = [Twice(), Twice()]
        models[1].load_state_dict(models[0].state_dict())
        x, y = torch.randn(B, 4), torch.randint(K, (B,))
        for model, enabled in zip(models, (True, False), strict=True):
            torch.manual_seed(2)
            manager = imprint.attach(model, rule, num_classes=K, optimizer=lambda p: torch.optim.SGD(p, 0.1))
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                for _ in range(3):
                    manager.step(x, y)
        for a, b in zip(*(m.parameters() for m in models), strict=True):
            assert torch.allclose(a, b, atol=0.02)


@pytest.mark.parametrize("rule", ["local_ce", "sigprop", "predsim", "backprop"])
def test_channels_last(rule: str) -> None:
    """Tensors in the other memory order train to the same numbers, by fused optimizers too, and stay in it."""
    models = [Net().double(), Net().double()]
    models[1].load_state_dict(models[0].state_dict())
    models[1].to(memory_format=torch.channels_last)
    batches = [batch() for _ in range(3)]
    for model, form in zip(models, (torch.contiguous_format, torch.channels_last), strict=True):
        torch.manual_seed(1)
        manager = attach(model, rule, optimizer=lambda p: torch.optim.Adam(p, 0.01, eps=1e-3, fused=True))
        for x, y in batches:
            manager.step(x.to(memory_format=form), y)
    for a, b in zip(*(m.parameters() for m in models), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-9)
    assert models[1].conv[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_switching_the_memory_format_after_bind() -> None:
    models = [Net().double(), Net().double()]
    models[1].load_state_dict(models[0].state_dict())
    batches = [batch() for _ in range(4)]
    for model, switch in zip(models, (False, True), strict=True):
        manager = attach(model, optimizer=lambda p: torch.optim.Adam(p, 0.01, eps=1e-3, fused=True))
        for i, (x, y) in enumerate(batches):
            if switch and i == 2:
                model.to(memory_format=torch.channels_last)
            manager.step(x, y)
    for a, b in zip(*(m.parameters() for m in models), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-9)


def test_bfloat16_models_train() -> None:
    model = Net().bfloat16()
    manager = attach(model, optimizer=lambda p: torch.optim.Adam(p, 0.01))
    x, y = batch(torch.bfloat16)
    for _ in range(60):
        out = manager.step(x, y)
    assert out.dtype == torch.bfloat16 and F.cross_entropy(out.float(), y) < 0.8
