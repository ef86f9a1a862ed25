"""Blocks and activations that stand in several places, units called several times, skip paths, in-place layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import imprint
from imprint.errors import StateError

from references.wrapped import Naive, distance, sgd

K, B = 3, 6


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(B, 4).double(), torch.randint(K, (B,))


class Twice(nn.Module):
    """One block, called twice, with its own activation; and a stem."""

    def __init__(self, calls: int = 2) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 5)
        self.block = nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5), nn.Tanh())
        self.head = nn.Linear(5, K)
        self.calls = calls

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(self.calls):
            x = x + self.block(x)
        return self.head(x)


@pytest.mark.parametrize("rule", ["local_ce", "sigprop"])
@pytest.mark.parametrize("layers", [None, "stem|block|head"])
def test_a_block_called_twice_sums_its_gradients_and_steps_once(rule: str, layers: str | None) -> None:
    model = Twice().double()
    block = "block" if layers else ("block.0", "block.1", "block.2")
    naive = Naive(model, ("stem", block, "head"), K, rule="ce" if rule == "local_ce" else "contrast", opened="head")
    manager = imprint.attach(model, rule, num_classes=K, layers=layers, optimizer=sgd)
    context = None
    for i in range(3):
        x, y = batch()
        if rule == "sigprop":
            manager.bind(x, y) if i == 0 else None
            context = (dict(manager.context.stream.named_parameters())["weight0"].detach(),)
        out, expected = manager.step(x, y), naive.step((x,), y, context)
        assert torch.allclose(out, expected, rtol=0, atol=1e-12)
    assert distance(naive, model) < 1e-12


def test_the_step_comes_after_the_last_call() -> None:
    """Both calls see the weights of before the update."""
    model = Twice().double()
    seen: list[Tensor] = []
    model.block.register_forward_pre_hook(lambda m, args: seen.append(m[0].weight.detach().clone()))
    manager = imprint.attach(model, "local_ce", layers="stem|block|head")
    x, y = batch()
    manager.step(x, y)  # moves the zero-started heads only
    seen.clear()
    manager.step(x, y)
    assert len(seen) == 2 and torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], model.block[0].weight)


def test_one_block_by_several_names_is_one_unit() -> None:
    block = nn.Linear(4, 4)

    class Albert(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([block] * 3)
            self.head = nn.Linear(4, K)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.blocks:
                x = torch.tanh(layer(x))
            return self.head(x)

    for layers in (None, r"blocks\.\d|head", ["blocks.1", "head"]):
        manager = imprint.attach(Albert(), "local_ce", layers=layers)
        assert list(manager.units) == ["blocks.0", "head"]
        manager.bind(torch.randn(B, 4), torch.randint(K, (B,)))
        assert manager.bound["calls"] == {"blocks.0": 3, "head": 1}
        manager.detach()


def test_a_block_twice_in_one_sequential_takes_nothing_with_it() -> None:
    """``block, relu, block``: the ReLU follows one of its two calls only."""
    block = nn.Linear(4, 4)
    model = nn.Sequential(block, nn.ReLU(), block, nn.Linear(4, K)).double()
    naive = Naive(model, ("0", "3"), K, opened="3")
    manager = imprint.attach(model, "local_ce", optimizer=sgd)
    assert {n: tuple(a.unit.names) for n, a in manager.units.items()} == {"0": ("0",), "3": ("3",)}
    for _ in range(2):
        x, y = batch()
        assert torch.allclose(manager.step(x, y), naive.step((x,), y), rtol=0, atol=1e-12)
    assert distance(naive, model) < 1e-12


@pytest.mark.parametrize("inplace", [True, False])
def test_one_activation_in_several_places(inplace: bool) -> None:
    relu = nn.ReLU(inplace=inplace)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(nn.Linear(4, 5), relu, nn.Linear(5, 5), relu)
            self.act = relu
            self.last, self.head = nn.Linear(5, 5), nn.Linear(5, K)

        def forward(self, x: Tensor) -> Tensor:
            h = self.features(x)
            return self.head(self.act(self.last(self.act(h))) - 1)

    model = Model().double()
    naive = Naive(model, (("features.0", "features.1"), ("features.2", "features.3"), "last", "head"), K, opened="head")
    manager = imprint.attach(model, "local_ce", optimizer=sgd)
    assert [len(a.unit.names) for a in manager.units.values()] == [2, 2, 1, 1]
    for _ in range(3):
        x, y = batch()
        assert torch.allclose(manager.step(x, y), naive.step((x,), y), rtol=0, atol=1e-12)
    assert distance(naive, model) < 1e-12


def test_a_joined_layer_called_again_on_what_its_unit_emitted_runs_again() -> None:
    """Pooling twice, by one instance that stands in the Sequential and is called once more behind it."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.AvgPool1d(2)
            self.features = nn.Sequential(nn.Linear(4, 8), self.pool)
            self.head = nn.Linear(2, K)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.pool(self.features(x)))

    model, plain = Model(), Model()
    plain.load_state_dict(model.state_dict())
    manager = imprint.attach(model, "local_ce")
    x, y = torch.randn(B, 4), torch.randint(K, (B,))
    assert torch.equal(manager.step(x, y), plain(x))


def test_layers_in_place_between_and_inside_units() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True))
            self.b = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(5, 5))
            self.head = nn.Linear(5, K)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x).sub_(0.3)
            g = self.b(h)
            return self.head(g.add_(h).relu_())

    for rule in ("local_ce", "sigprop"):
        model = Model().double()
        naive = Naive(model, ("a", "b"), K, rule="ce" if rule == "local_ce" else "contrast")
        manager = imprint.attach(model, rule, num_classes=K, layers="a|b", optimizer=sgd)
        for i in range(3):
            x, y = batch()
            kept = x.clone()
            manager.bind(x, y) if i == 0 else None
            context = (
                (dict(manager.context.stream.named_parameters())["weight0"].detach(),) if rule == "sigprop" else None
            )
            out, expected = manager.step(x, y), naive.step((x,), y, context)
            assert torch.allclose(out, expected, rtol=0, atol=1e-12) and torch.equal(x, kept)
        assert distance(naive, model) < 1e-12


def test_a_block_whose_calls_differ_in_their_arguments() -> None:
    """Rows may be stacked in the first call, which has one argument, and not in the second."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
            return torch.tanh(self.linear(x) * (1 if scale is None else scale))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.head = Block(), nn.Linear(4, K)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.block(self.block(x), scale=x.mean(1, keepdim=True)))

    model = Model().double()
    naive = Naive(model, ("block",), K, rule="contrast")
    manager = imprint.attach(model, "sigprop", num_classes=K, layers="block", optimizer=sgd)
    for i in range(3):
        x, y = batch()
        manager.bind(x, y) if i == 0 else None
        context = (dict(manager.context.stream.named_parameters())["weight0"].detach(),)
        manager.step(x, y), naive.step((x,), y, context)
    assert distance(naive, model) < 1e-12


def test_a_model_that_writes_into_its_input_sees_it_once_a_step() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = nn.Linear(4, 4), nn.Linear(4, K)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.a(x.mul_(2))) + x)

    model = Model().double()
    naive = Naive(model, ("a",), K)
    manager = imprint.attach(model, "local_ce", layers="a", optimizer=sgd)
    x, y = batch()
    expected = naive.step((x.clone(),), y)
    given = x.clone()
    assert torch.allclose(manager.step(given, y), expected, rtol=0, atol=1e-12) and torch.equal(given, 2 * x)


@pytest.mark.parametrize("where", ["output", "input"])
@pytest.mark.parametrize("norm", [True, False])
def test_writes_in_place_that_begin_after_bind_are_noticed(where: str, norm: bool) -> None:
    """What a unit remembers of the context is not copied where nothing was written to it at bind."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4) if norm else nn.Identity(), nn.Tanh())
            self.head, self.writes = nn.Linear(4, K), False

        def forward(self, x: Tensor) -> Tensor:
            x = x + 0
            h = self.a(x)
            if self.writes:
                (h if where == "output" else x).mul_(2)
            return self.head(h + x)

    model = Model().double()
    naive = Naive(model, ("a",), K, rule="contrast")
    manager = imprint.attach(model, "sigprop", num_classes=K, layers="a", optimizer=sgd)
    x, y = batch()
    manager.bind(x, y)
    model.writes = naive.model.writes = True
    before = {k: v.clone() for k, v in model.state_dict().items()}
    if norm or where == "input":  # else the unit is run again anyway, and its outputs are not remembered
        with pytest.raises(StateError, match=r"unit 'a'[\s\S]*written[\s\S]*manager\.bind"):
            manager.step(x, y)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    manager.bind(x, y)
    context = (dict(manager.context.stream.named_parameters())["weight0"].detach(),)
    for _ in range(2):
        x, y = batch()
        manager.step(x, y), naive.step((x,), y, context)
        manager.predict(x, by="local")
    assert distance(naive, model) < 1e-12


class Calls(nn.Module):
    """Calls its block as often as `times` says."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = nn.Linear(4, 4), nn.Linear(4, K)
        self.times = [1, 1, 1]

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times.pop(0) if len(self.times) > 1 else self.times[0]):
            x = torch.tanh(self.block(x))
        return self.head(x)


@pytest.mark.parametrize("rule", ["local_ce", "sigprop", "forward_forward"])
def test_more_calls_than_at_bind_are_refused(rule: str) -> None:
    model = Calls()
    manager = imprint.attach(model, rule, num_classes=K, layers=["block"])
    x, y = torch.randn(B, 4), torch.randint(K, (B,))
    model.times = [2]
    manager.bind(x, y)
    model.times = [3]
    with pytest.raises(StateError, match=r"unit 'block'[\s\S]*more often[\s\S]*2 calls[\s\S]*3"):
        manager.step(x, y)
    model.times = [2]
    manager.step(x, y)
    model.times = [3]
    manager.bind(x, y)  # counts again
    manager.step(x, y)


def test_fewer_calls_than_at_bind_still_step_once() -> None:
    model = Calls().double()
    naive = Naive(model, ("block",), K)
    manager = imprint.attach(model, "local_ce", layers=["block"], optimizer=sgd)
    model.times = naive.model.times = [2]
    for times in (2, 1, 2):
        model.times = [2, times] if manager.bound is None else [times]
        naive.model.times = [times]
        x, y = batch()
        manager.step(x, y), naive.step((x,), y)
    assert distance(naive, model) < 1e-12


def test_a_unit_the_context_pass_did_not_reach() -> None:
    model = Calls()
    manager = imprint.attach(model, "sigprop", num_classes=K, layers=["block"])
    x, y = torch.randn(B, 4), torch.randint(K, (B,))
    manager.bind(x, y)
    model.times = [0, 1]
    with pytest.raises(StateError, match=r"unit 'block'[\s\S]*not called in the context pass[\s\S]*context_at"):
        manager.step(x, y)


def test_activation_checkpointing_around_a_unit_is_refused() -> None:
    """It would run the unit again during the task's backward pass, with other weights."""
    from torch.utils.checkpoint import checkpoint

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.norm, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, K)

        def part(self, x: Tensor) -> Tensor:
            return torch.tanh(self.norm(self.inner(x)))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(checkpoint(self.part, x, use_reentrant=False))

    manager = imprint.attach(Model(), "local_ce", layers=["inner"])
    x, y = batch()
    with pytest.raises(StateError, match=r"unit 'inner'[\s\S]*checkpointing"):
        manager.to(torch.float64).step(x, y)


def test_activation_checkpointing_inside_a_unit_is_fine() -> None:
    from torch.utils.checkpoint import checkpoint

    class Block(nn.Module):
        def __init__(self, again: bool) -> None:
            super().__init__()
            self.inner, self.again = nn.Linear(4, 4), again

        def forward(self, x: Tensor) -> Tensor:
            run = lambda x: torch.tanh(self.inner(x))
            return checkpoint(run, x, use_reentrant=False) if self.again else run(x)

    models = [nn.Sequential(Block(again), nn.Linear(4, K)).double() for again in (True, False)]
    models[1].load_state_dict(models[0].state_dict())
    x, y = batch()
    for model in models:
        manager = imprint.attach(model, "local_ce")
        for _ in range(2):
            manager.step(x, y)
    for a, b in zip(*(m.parameters() for m in models), strict=True):
        assert torch.equal(a, b)
