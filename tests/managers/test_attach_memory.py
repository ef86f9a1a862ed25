"""After a step nothing of it is left: no activation, no graph, no context; without the garbage collector's help."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import imprint

K, B = 3, 8


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear, self.norm, self.act = nn.Linear(width, width), nn.BatchNorm1d(width), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.act(self.norm(self.linear(x)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(4, 6), nn.Identity(), nn.ReLU())
        self.blocks = nn.ModuleList([Block(6), Block(6)])
        self.head = nn.Linear(6, K)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks:
            h = block(h)
        return self.head(block(h))


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(B, 4), torch.randint(K, (B,))


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Kept:
    """What a graph holds in place of a tensor it saved for its backward pass."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()  # an output itself would hold its own graph


@pytest.fixture
def refs() -> Iterator[list[weakref.ref[Any]]]:
    """Weak references of everything that any graph saves during the test; and of what :func:`watch` adds."""
    made: list[weakref.ref[Any]] = []

    def pack(tensor: Tensor) -> Kept:
        kept = Kept(tensor)
        made.append(weakref.ref(kept))
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        yield made


def watch(model: nn.Module, refs: list[weakref.ref[Any]]) -> None:
    """Add every tensor that leaves a layer of `model`."""
    for layer in model.modules():
        layer.register_forward_hook(lambda m, args, out: refs.append(weakref.ref(out)))


def alive(refs: list[weakref.ref[Any]]) -> list[Any]:
    return [ref() for ref in refs if ref() is not None]


RULES = ["local_ce", "sigprop", "predsim", "sim", "forward_forward", "drtp", "backprop"]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_nothing_survives_a_step(rule: str, accumulate: int, refs: list[weakref.ref[Any]]) -> None:
    model = Net()
    watch(model, refs)
    manager = imprint.attach(model, rule, num_classes=K, accumulate=accumulate, monitors=["loss", "accuracy"])
    x, y = batch()
    manager.bind(x, y)
    assert refs and not alive(refs)
    refs.clear()
    for _ in range(2):
        out = manager.step(x, y)
        assert refs and [v for v in alive(refs) if v is not out] == [] and out.grad_fn is None
        refs.clear()
    del out
    manager.predict(x)
    if rule not in ("drtp", "sim", "backprop"):
        manager.predict(x, by="local")
    assert not alive(refs)


@pytest.mark.parametrize("rule", ["local_ce", "sigprop", "forward_forward", "backprop"])
def test_nothing_survives_a_step_that_failed(rule: str, refs: list[weakref.ref[Any]]) -> None:
    model = Net()
    watch(model, refs)
    manager = imprint.attach(model, rule, num_classes=K)
    x, y = batch()
    manager.step(x, y)
    handle = model.head.register_forward_pre_hook(lambda m, a: 1 / 0)
    refs.clear()
    for call in (lambda: manager.step(x, y), lambda: manager.predict(x, by="local"), lambda: manager.bind(x, y)):
        try:
            call()
        except ZeroDivisionError as error:
            error.__traceback__ = None
        else:
            pytest.fail("the hook did not fire")
        gc.collect()  # the traceback held frames in a cycle
        assert refs and not alive(refs)
        refs.clear()
    handle.remove()


def test_a_context_that_starts_inside_keeps_nothing(refs: list[weakref.ref[Any]]) -> None:
    model = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, K))
    watch(model, refs)
    manager = imprint.attach(model, "sigprop", num_classes=K, context_at="0", layers=["2", "3", "4"], exclude="0")
    x, y = torch.randint(7, (B, 3)), torch.randint(K, (B,))
    manager.bind(x, y)
    assert refs and not alive(refs)
    refs.clear()
    out = manager.step(x, y)
    assert [v for v in alive(refs) if v is not out] == []


def test_a_unit_the_data_does_not_reach_leaves_no_context_behind(refs: list[weakref.ref[Any]]) -> None:
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head, self.short = nn.Linear(4, 4), Block(4), nn.Linear(4, K), False

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.a(x))
            return self.head(h if self.short and len(x) == B else self.b(h))

    model = Skips()
    watch(model, refs)
    manager = imprint.attach(model, "sigprop", num_classes=K)
    x, y = batch()
    manager.bind(x, y)
    model.short = True
    out = manager.step(x, y)
    assert [v for v in alive(refs) if v is not out] == [] and not any(a.stash for a in manager.units.values())


def test_inputs_are_released() -> None:
    manager = imprint.attach(Net(), "sigprop", num_classes=K)
    x, y = batch()
    manager.step(x, y)
    ref = weakref.ref(x)
    del x
    assert ref() is None


def test_what_is_held_does_not_grow() -> None:
    model = Net()
    manager = imprint.attach(model, "sigprop", num_classes=K, monitors=["loss"])

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(v), Tensor) for v in gc.get_objects())

    x, y = batch()
    for _ in range(3):
        manager.step(x, y)
    before = tensors()
    for _ in range(5):
        manager.step(x, y), manager.predict(x), model.stem[0](x), model(x)
    assert tensors() <= before
    followers = [f for a in manager.units.values() for f in a.followers]
    assert followers and all(len(f.emitted) <= 1 for f in followers)


def test_transient_memory_does_not_grow_with_depth(refs: list[weakref.ref[Any]]) -> None:
    """At most a few units' activations are alive at once, where backprop holds those of all."""

    class Deep(nn.Module):
        def __init__(self, depth: int) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Block(4) for _ in range(depth)])
            self.head = nn.Linear(4, K)

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = block(x)
            return self.head(x)

    def peak(rule: str, depth: int) -> int:
        model, most = Deep(depth), [0]
        manager = imprint.attach(model, rule, num_classes=K)
        x, y = batch()
        manager.bind(x, y)
        refs.clear()
        for layer in model.modules():
            layer.register_forward_hook(lambda m, args, out: most.append(max(most.pop(), len(alive(refs)))))
        manager.step(x, y)
        return most[0]

    assert 0 < peak("local_ce", 4) == peak("local_ce", 16)
    assert peak("backprop", 16) > 3 * peak("backprop", 4)
