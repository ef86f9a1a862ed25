"""Chains equal the method done by hand, weight for weight; wrong orders of doing it do not."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from imprint import errors, loss, models, propagators, signals

from references import sigprop as reference

CLASSES, BATCH, STEPS = 3, 6, 5
LOSSES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "v1": (loss.v1_input_label_direct, reference.v1),
    "v9": (loss.v9_input_target_max_all, reference.v9),
    "v14": (loss.v14_input_target_max_rand, reference.v14),
    "v15": (loss.v15_input_target_topk(k=2), reference.v15(2)),
}


def convolutional(norm: bool, dropout: float) -> tuple[list[nn.Module], tuple[int, ...], tuple[int, ...]]:
    def block(c_in: int, c_out: int) -> nn.Module:
        parts = [nn.Conv2d(c_in, c_out, 3, 1, 1), nn.BatchNorm2d(c_out) if norm else nn.Identity(), nn.Tanh()]
        return nn.Sequential(*parts, nn.Dropout(dropout))

    shape = (4, 2, 2)
    modules = [
        nn.Sequential(nn.Linear(CLASSES, 16, bias=False), nn.LayerNorm(16)),
        block(2, 4), block(4, 5), block(5, 4), nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES)),
    ]  # fmt: skip
    return modules, (2, 2, 2), shape


def dense(norm: bool, dropout: float) -> tuple[list[nn.Module], tuple[int, ...], tuple[int, ...]]:
    def block(d_in: int, d_out: int) -> nn.Module:
        parts = [nn.Linear(d_in, d_out), nn.BatchNorm1d(d_out) if norm else nn.Identity(), nn.Tanh()]
        return nn.Sequential(*parts, nn.Dropout(dropout))

    modules = [nn.Linear(CLASSES, 6), block(5, 6), block(6, 8), block(8, 6), nn.Linear(6, CLASSES)]
    return modules, (5,), (6,)


NETS = {"conv": convolutional, "dense": dense}
OPTIMIZERS = {
    "sgd": functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "adam": functools.partial(torch.optim.Adam, lr=0.02, weight_decay=0.01),
}


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def batches(shape: tuple[int, ...], balanced: bool) -> list[tuple[Tensor, Tensor]]:
    """Balanced: every class has two samples, so that the top two are never a choice among equals."""
    even = torch.arange(BATCH) % CLASSES
    made = [
        (torch.randn(BATCH, *shape), even if balanced else torch.randint(CLASSES, (BATCH,))) for _ in range(STEPS - 1)
    ]
    return [*made, (torch.randn(2, *shape), torch.tensor([0, 2]))]  # a ragged last batch


def by_hand(modules, shape, data, kind, learned, optimizer, seed, **control) -> nn.ModuleList:
    """The reference's run; the trained modules."""
    context, first, *units, head = modules = reference.clone(modules)
    value = LOSSES[kind][1]
    onehot = lambda y: torch.eye(CLASSES)[y] if kind != "v1" else torch.eye(CLASSES)
    signal = reference.Unit(first)
    if learned:
        signal = reference.Unit(first, value, optimizer([*context.parameters(), *first.parameters()]))
    chain = reference.Chain(
        context, first, signal, [reference.Unit(u, value, optimizer(u.parameters())) for u in units],
        reference.Unit(head, None, optimizer(head.parameters())), shape, onehot, **control,
    )  # fmt: skip
    torch.manual_seed(seed)
    for x, y in data:
        chain.step(x, y)
    return nn.ModuleList(modules)


def by_imprint(modules, shape, data, kind, learned, optimizer, seed) -> nn.ModuleList:
    """Our run, by hand-wired propagators and an outer loop over all parameters; the trained modules."""
    context, first, *units, head = modules = reference.clone(modules)
    value = LOSSES[kind][0]
    rows = [signals.DistinctBatchLabelsOnehot()] if kind == "v1" else []
    generator = signals.ProjectionContextInput(context, first, (CLASSES,), shape)
    module = nn.Sequential(signals.LabelNumberToOnehot(CLASSES), *rows, generator)
    if learned:
        signal = propagators.signals.Loss(module, optimizer(module.parameters()), value)
    else:
        signal = propagators.signals.Fixed(module)
    chain = nn.Sequential(*(propagators.Loss(u, optimizer(u.parameters()), value) for u in units))
    chain.append(propagators.Identity(head))
    model = models.Forward(chain, signal)
    outer = optimizer(model.parameters())
    torch.manual_seed(seed)
    for x, y in data:
        task = nn.functional.cross_entropy(model(x, y), y)
        outer.zero_grad()
        task.backward()
        outer.step()
    return nn.ModuleList(modules)


def furthest(a: nn.Module, b: nn.Module) -> float:
    """Largest difference of any weight or running statistic."""
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    return max(float((a[k].double() - b[k].double()).abs().max()) for k in a)


@pytest.mark.parametrize("norm,dropout", [(False, 0.0), (True, 0.0), (True, 0.2)], ids=["plain", "norm", "norm+drop"])
@pytest.mark.parametrize("learned", [True, False], ids=["learned", "fixed"])
@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("net", NETS)
def test_a_chain_equals_the_method_done_by_hand(
    double: None, net: str, kind: str, learned: bool, norm: bool, dropout: float
) -> None:
    modules, x_shape, shape = NETS[net](norm, dropout)
    data = batches(x_shape, balanced=kind == "v15" and dropout > 0)
    optimizer = OPTIMIZERS["adam" if net == "dense" else "sgd"]
    run = (modules, shape, data, kind, learned, optimizer, 1)
    start = nn.ModuleList(modules)
    right, ours = by_hand(*run), by_imprint(*run)
    assert furthest(ours, right) < 1e-11
    assert furthest(ours, start) > 1e-3
    wrong = {"backward": "joint"} if norm and not dropout else {"emit": "after"}
    assert furthest(ours, by_hand(*run, **wrong)) > 1e-6
    if dropout:
        assert furthest(ours, by_hand(*run[:-1], 2)) > 1e-6


def test_batch_norm_sees_each_stream_by_itself_and_counts_two_batches_a_step() -> None:
    norm = nn.BatchNorm1d(2)
    unit = propagators.Loss(norm, None, loss.v9_input_target_max_all)
    h0, t0 = torch.randn(5, 2), torch.randn(5, 2) + 3
    h1, t1, _ = unit((h0, t0, torch.arange(5)))
    assert norm.num_batches_tracked == 2
    expected = (t0 - t0.mean(0)) / (t0.var(0, unbiased=False) + norm.eps).sqrt()
    torch.testing.assert_close(t1, expected)
    torch.testing.assert_close(h1.mean(0), torch.zeros(2), atol=1e-6, rtol=0)
    together = nn.BatchNorm1d(2)(torch.cat([h0, t0]))
    assert (together[5:] - t1).abs().max() > 0.1


@pytest.mark.parametrize("name", ["AdamW", "Adam", "SGD"])
def test_an_outer_optimizer_over_all_parameters_moves_only_what_the_outer_loss_reached(name: str) -> None:
    options = {"weight_decay": 0.1} | ({"momentum": 0.9} if name == "SGD" else {})
    layer, head = nn.Linear(4, 4), nn.Linear(4, 3)
    generator = signals.ProjectionContext(nn.Linear(3, 4), (3,), (4,))
    module = nn.Sequential(signals.LabelNumberToOnehot(3), generator)
    still = functools.partial(torch.optim.SGD, lr=0.0)  # local steps of length zero: every move is the outer loop's
    signal = propagators.signals.Loss(module, still(module.parameters()), loss.v9_input_target_max_all)
    local = propagators.Loss(layer, still(layer.parameters()), loss.v9_input_target_max_all)
    model = models.Forward(nn.Sequential(local, propagators.Identity(head)), signal)
    names = {n for n, _ in model.named_parameters()}
    assert len(names) == 6
    outer = getattr(torch.optim, name)(model.parameters(), lr=0.1, **options)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for _ in range(3):
        y = torch.randint(3, (6,))
        task = nn.functional.cross_entropy(model(torch.randn(6, 4), y), y)
        outer.zero_grad()
        task.backward()
        assert {n for n, p in model.named_parameters() if p.grad is not None} == {
            "model.1.module.weight",
            "model.1.module.bias",
        }
        outer.step()
    moved = {n: float((p.detach() - before[n]).abs().max()) for n, p in model.named_parameters()}
    assert all((v > 0.01) if ".1.module" in n and "signal" not in n else v == 0.0 for n, v in moved.items()), moved


def test_a_later_loss_leaves_earlier_layers_bitwise_alone() -> None:
    def run(last: Callable[..., Tensor]) -> nn.Sequential:
        torch.manual_seed(3)
        units = [nn.Linear(4, 4) for _ in range(3)]
        values = [loss.v9_input_target_max_all, loss.v9_input_target_max_all, last]
        chain = nn.Sequential(
            *(propagators.Loss(u, torch.optim.Adam(u.parameters()), v) for u, v in zip(units, values, strict=True))
        )
        y = torch.randint(3, (6,))
        for _ in range(3):
            chain((torch.randn(6, 4), torch.eye(4)[y], y))
        return chain

    one, other = run(loss.hebbian), run(loss.v15_input_target_topk)
    for i in (0, 1):
        assert torch.equal(one[i].module.weight, other[i].module.weight)
    assert not torch.equal(one[2].module.weight, other[2].module.weight)


@pytest.mark.parametrize("nested", [False, True])
def test_a_layer_left_unwrapped_is_refused_by_name(nested: bool) -> None:
    links = [propagators.Fixed(nn.Linear(2, 2)), nn.ReLU(), propagators.Identity(nn.Linear(2, 3))]
    chain = nn.Sequential(nn.Sequential(*links)) if nested else nn.Sequential(*links)
    signal = propagators.signals.Fixed(signals.ProjectionContext(nn.Linear(3, 2), (3,), (2,)))
    with pytest.raises(errors.ArgumentError, match="not wrapped") as caught:
        models.Forward(chain, signal)
    assert caught.value.where == f"layer {'0.1' if nested else '1'!r} of the chain"
    links[1] = nn.Identity()  # hands the triple on
    assert models.Forward(nn.Sequential(*links), signal)(torch.zeros(5, 2), torch.eye(5, 3)).shape == (5, 3)
