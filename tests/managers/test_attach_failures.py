"""What goes wrong in the middle of a step: what is named, what stays as it was, and that the next step works."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import imprint
from imprint.errors import NonFiniteError, ShapeError, StateError

from references.wrapped import Naive, distance, sgd

K, B = 3, 8


class Trouble(nn.Module):
    """A layer that does what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.mode = nn.Linear(5, 5), nn.BatchNorm1d(5), "fine"

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.linear(x))
        if self.mode == "nan":
            h = h * float("nan")
        if self.mode == "inf":
            h = h + float("inf")
        if self.mode == "raise":
            raise RuntimeError("the user's own trouble")
        if self.mode == "interrupt":
            raise KeyboardInterrupt
        return torch.tanh(h) if self.mode == "fine" else h


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.middle, self.last, self.head = nn.Linear(4, 5), Trouble(), nn.Linear(5, 5), nn.Linear(5, K)
        self.norm = nn.BatchNorm1d(4)
        self.after = "fine"

    def forward(self, x: Tensor) -> Tensor:
        h = self.middle(torch.tanh(self.stem(self.norm(x))))
        if self.after == "raise":
            raise ValueError("between the units")
        return self.head(torch.tanh(self.last(h)))


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(B, 4).double(), torch.randint(K, (B,))


def attach(rule: str = "local_ce", **options: Any) -> tuple[Net, imprint.Manager]:
    model = Net().double()
    options.setdefault("optimizer", lambda p: torch.optim.Adam(p, 0.01))
    manager = imprint.attach(model, rule, num_classes=K, layers="stem|middle|last", exclude="norm", **options)
    manager.step(*batch()), manager.step(*batch())
    return model, manager


def snapshot(manager: imprint.Manager, unit: str) -> list[Tensor]:
    """Weights, head and optimizer state of one unit."""
    prop = manager.propagators[unit]
    state = [v for s in prop.optimizers[0].state.values() for v in s.values() if isinstance(v, Tensor)]
    return [v.detach().clone() for v in [*prop.params.values(), *state]]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def consistent(manager: imprint.Manager) -> bool:
    agents = manager.phase.agents
    clean = (
        manager.phase.name == "off"
        and manager.phase.target is None
        and not manager.phase.leaves
        and not manager.phase.scores
    )
    return (
        clean
        and all(not a.stash and a.sample is None and a.prop.carry in (None, {}) for a in agents)
        and manager.gathered == 0
    )


RULES = ["local_ce", "sigprop", "predsim", "forward_forward", "drtp"]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("mode", ["nan", "inf"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_that_is_not_finite_stops_with_its_units_name(rule: str, mode: str, accumulate: int) -> None:
    model, manager = attach(rule, accumulate=accumulate)
    before = {u: snapshot(manager, u) for u in manager.propagators if u != "signal"}
    buffers = {k: v.clone() for k, v in model.named_buffers()}
    model.middle.mode = mode
    for _ in range(accumulate):
        with pytest.raises(NonFiniteError, match=r"unit 'middle'[\s\S]*not finite[\s\S]*(nan|inf)"):
            manager.step(*batch())
    assert same(snapshot(manager, "middle"), before["middle"]) and same(snapshot(manager, "last"), before["last"])
    assert same(snapshot(manager, "task"), before["task"]) and consistent(manager)
    assert same(snapshot(manager, "stem"), before["stem"]) == (accumulate == 2)  # it had learned before the trouble
    assert all(torch.equal(v, buffers[k]) for k, v in model.named_buffers())
    model.middle.mode = "fine"
    for _ in range(accumulate):
        out = manager.step(*batch())
    assert torch.isfinite(out).all() and not any(same(snapshot(manager, u), before[u]) for u in before)


@pytest.mark.parametrize("rule", RULES)
def test_nan_in_the_input_leaves_everything_as_it_was(rule: str) -> None:
    """Running statistics too, of the units and of what lies before them: else one bad batch ends the training."""
    model, manager = attach(rule)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x, y = batch()
    with pytest.raises(NonFiniteError, match=r"unit '(stem|signal)'"):
        manager.step(x.index_fill(1, torch.tensor([3]), float("nan")), y)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and consistent(manager)
    assert torch.isfinite(manager.step(x, y)).all()


def test_a_learned_signal_that_is_not_finite() -> None:
    _model, manager = attach("sigprop", learned=True)
    before = snapshot(manager, "signal")
    x, y = batch()
    with pytest.raises(NonFiniteError, match="unit 'signal'"):
        manager.step(x * float("inf"), y)
    assert same(snapshot(manager, "signal"), before) and consistent(manager)


@pytest.mark.parametrize("rule", [*RULES, "backprop"])
def test_a_task_loss_that_is_not_finite(rule: str) -> None:
    bad = [False]

    def loss(out: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(out, y) * (float("nan") if bad[0] else 1.0)

    model, manager = attach(rule, task_loss=loss)
    before = snapshot(manager, "task")
    weights = model.last.weight.clone()
    bad[0] = True
    with pytest.raises(NonFiniteError, match=r"'task'[\s\S]*not finite"):
        manager.step(*batch())
    assert same(snapshot(manager, "task"), before) and consistent(manager)
    assert torch.equal(model.last.weight, weights) == (rule == "backprop")
    bad[0] = False
    manager.step(*batch())
    assert not same(snapshot(manager, "task"), before)


def test_a_non_finite_loss_of_an_opened_unit() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, K)).double()
    manager = imprint.attach(model, "local_ce")
    x, y = batch()
    manager.step(x, y)
    with torch.no_grad():
        model[2].weight[0, 0] = float("inf")
    weight = model[2].weight.clone()
    with pytest.raises(NonFiniteError, match="'task'"):
        manager.step(x, y)
    assert torch.equal(model[2].weight, weight)


@pytest.mark.parametrize("rule", [*RULES, "backprop"])
@pytest.mark.parametrize("where", ["unit", "between", "interrupt", "task loss", "hook", "optimizer", "monitor"])
def test_errors_of_user_code_pass_through_and_the_next_step_works(rule: str, where: str) -> None:
    trouble = [False]

    def loss(out: Tensor, y: Tensor) -> Tensor:
        if trouble[0] and where == "task loss":
            raise ZeroDivisionError("in the task loss")
        return F.cross_entropy(out, y)

    class Moody(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            if trouble[0] and where == "optimizer":
                raise OSError("in the optimizer")
            return super().step(closure)

    class Watch(imprint.monitors.Metric):
        name = "watch"

        def learned(self, prop: Any, x: Any, out: Any, y: Any, loss: Tensor) -> None:
            if trouble[0] and where == "monitor":
                raise LookupError("in the monitor")

    model, manager = attach(rule, task_loss=loss, optimizer=lambda p: Moody(p, 0.1), monitors=[Watch()])
    reference_model, reference = attach(rule, task_loss=loss, optimizer=lambda p: torch.optim.SGD(p, 0.1))
    buffers = {k: v.clone() for k, v in model.named_buffers()}
    trouble[0] = True
    model.middle.mode = {"unit": "raise", "interrupt": "interrupt"}.get(where, "fine")
    model.after = "raise" if where == "between" else "fine"
    handle = model.last.register_forward_hook(lambda m, a, out: 1 / 0) if where == "hook" else None
    expected: dict[str, tuple[type[BaseException], str]] = {
        "unit": (RuntimeError, "^the user's own trouble$"), "between": (ValueError, "^between the units$"),
        "interrupt": (KeyboardInterrupt, "^$"), "task loss": (ZeroDivisionError, "in the task loss"),
        "hook": (ZeroDivisionError, "division"), "optimizer": (OSError, "in the optimizer"),
        "monitor": (LookupError, "in the monitor"),
    }  # fmt: skip
    kind, match = expected[where]
    with pytest.raises(kind, match=match):
        manager.step(*batch())
    assert consistent(manager) and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, buffers[k]) for k, v in model.named_buffers())
    trouble[0] = False
    model.middle.mode = model.after = "fine"
    if handle is not None:
        handle.remove()
    # from equal weights, the next step is the one of a manager that never met trouble
    reference_model.load_state_dict(model.state_dict())
    for name, prop in manager.propagators.items():
        other = reference.propagators[name]
        for k, p in prop.params.items():
            other.params[k].data.copy_(p.data)
    if manager.context is not None:
        reference.context.stream.load_state_dict(manager.context.stream.state_dict())
        reference.context.stream.high = getattr(manager.context.stream, "high", None)
    for a, b in zip(manager.units.values(), reference.units.values(), strict=True):
        b.unit.objective.load_state_dict(a.unit.objective.state_dict())
    x, y = batch()
    torch.manual_seed(3)
    out = manager.step(x, y)
    torch.manual_seed(3)
    assert torch.allclose(reference.step(x, y), out, rtol=0, atol=1e-12)
    for a, b in zip(model.parameters(), reference_model.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)


def test_an_error_in_the_context_pass() -> None:
    model, manager = attach("sigprop")
    calls: list[int] = []

    def hook(m: nn.Module, a: Any, out: Tensor) -> None:
        calls.append(len(out))
        if len(out) == K:
            raise RuntimeError("context")

    handle = model.last.register_forward_hook(hook)
    with pytest.raises(RuntimeError, match="context"):
        manager.step(*batch())
    assert calls == [K] and consistent(manager)
    with pytest.raises(RuntimeError, match="context"):
        manager.predict(batch()[0], by="local")
    assert consistent(manager) and model.training
    handle.remove()
    manager.step(*batch())


def test_binding_where_gradients_are_off() -> None:
    model = Net().double()
    manager = imprint.attach(model, "sigprop", num_classes=K, layers="stem|middle|last", exclude="norm")
    with torch.inference_mode(), pytest.raises(StateError, match="inference_mode"):
        manager.bind(*batch())
    with torch.no_grad():
        manager.bind(*batch())
    manager.step(*batch())


def test_an_error_while_binding_leaves_it_unbound() -> None:
    model = Net().double()
    manager = imprint.attach(model, "sigprop", num_classes=K, layers="stem|middle|last", exclude="norm")
    rng, buffers = torch.get_rng_state(), {k: v.clone() for k, v in model.named_buffers()}
    model.after = "raise"
    x, y = batch()
    rng = torch.get_rng_state()
    with pytest.raises(ValueError, match="between"):
        manager.step(x, y)
    assert manager.bound is None and consistent(manager) and torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(v, buffers[k]) for k, v in model.named_buffers())
    model.after = "fine"
    manager.step(x, y)


@pytest.mark.parametrize("where", ["stem", "middle", "task", "interrupt"])
@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("rule", ["ce", "contrast"])
def test_what_was_gathered_before_a_step_that_failed_is_kept(rule: str, at: int, where: str) -> None:
    """The mean over three good batches, whichever step fails in between (also the due one), wherever it fails."""
    model = Net().double()
    names = {"ce": "local_ce", "contrast": "sigprop"}
    manager = imprint.attach(
        model, names[rule], layers="stem|middle|last", exclude="norm", optimizer=sgd, accumulate=3, num_classes=K
    )
    x, y = batch()
    manager.bind(x, y)
    naive = Naive(model, ("stem", "middle", "last"), K, rule=rule)
    naive.task = [p for p in naive.task if p.shape[0] != 4]
    start = None if manager.context is None else (manager.context.stream.weight0.detach(),)
    for i in range(3):
        if i == at:
            x, y = batch()
            if where == "stem":
                x[0] = float("nan")
            model.middle.mode = {"middle": "nan", "interrupt": "interrupt"}.get(where, "fine")
            model.after = "raise" if where == "task" else "fine"
            with pytest.raises((NonFiniteError, ValueError, KeyboardInterrupt)):
                manager.step(x, y)
            model.middle.mode = model.after = "fine"
            assert manager.gathered == i and not manager.phase.agents[0].stash
        x, y = batch()
        manager.step(x, y), naive.learn((x,), y, start)
    assert manager.gathered == 0 and manager.steps == 3 and distance(naive, model) > 1e-4
    naive.update(1 / 3)
    assert distance(naive, model) < 1e-12


def test_an_optimizer_that_fails_leaves_no_half_of_a_sum_behind() -> None:
    class Failing(torch.optim.SGD):
        fails = False

        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            if self.fails:
                raise RuntimeError("the optimizer's own trouble")
            super().step()

    model = Net().double()
    manager = imprint.attach(
        model, "local_ce", layers="stem|middle|last", exclude="norm", optimizer=lambda p: Failing(p, 0.1), accumulate=2
    )
    manager.step(*batch())
    optimizer = manager.optimizers["middle"]
    optimizer.fails = True
    with pytest.raises(RuntimeError, match="the optimizer's own trouble"):
        manager.step(*batch())
    optimizer.fails = False
    assert consistent(manager) and all(prop.ticks == 0 for prop in manager.propagators.values())
    before = snapshot(manager, "stem")
    manager.step(*batch())
    assert manager.gathered == 1 and same(snapshot(manager, "stem"), before)
    manager.step(*batch())
    assert manager.gathered == 0 and not same(snapshot(manager, "stem"), before)


def test_a_wrong_shape_names_the_unit_and_what_it_was_bound_with() -> None:
    model, manager = attach()
    before = {k: v.clone() for k, v in model.state_dict().items()}

    _, y = batch()
    model.norm.forward = lambda x: torch.cat([x, x], 1)  # type: ignore[method-assign]
    with pytest.raises(ShapeError, match=r"unit 'stem'[\s\S]*\('batch', 4\)[\s\S]*\(8, 8\)[\s\S]*torch says"):
        manager.step(torch.randn(B, 4).double(), y)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and consistent(manager)


@pytest.mark.parametrize("rule", ["local_ce", "sigprop", "backprop"])
def test_a_wrong_shape_of_the_first_batch_names_the_unit(rule: str) -> None:
    manager = imprint.attach(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, K)), rule, num_classes=K)
    with pytest.raises(ShapeError, match=r"unit '0'[\s\S]*\(8, 3\)[\s\S]*was made for; torch says: mat1") as caught:
        manager.step(torch.randn(B, 3), torch.randint(K, (B,)))
    assert isinstance(caught.value.__cause__, RuntimeError) and manager.bound is None
    manager.step(torch.randn(B, 4), torch.randint(K, (B,)))


@pytest.mark.parametrize("rule", ["local_ce", "sigprop"])
def test_a_layer_called_with_two_sizes(rule: str) -> None:
    """A head fits one of them; contrasts fit any."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, K)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(self.conv(x).relu()[..., ::2, ::2]).mean((2, 3)))

    manager = imprint.attach(Twice(), rule, num_classes=K)
    x, y = torch.randn(B, 3, 8, 8), torch.randint(K, (B,))
    before = manager.model.conv.weight.clone()
    if rule == "sigprop":
        manager.step(x, y)
        assert not torch.equal(manager.model.conv.weight, before)
        return
    with pytest.raises(ShapeError, match=r"unit 'conv': it is called with inputs of different sizes[\s\S]*sigprop"):
        manager.step(x, y)
    assert torch.equal(manager.model.conv.weight, before)


@pytest.mark.parametrize("what", ["eval", "no_grad", "inference"])
def test_a_step_where_nothing_could_learn(what: str) -> None:
    model, manager = attach()
    x, y = batch()
    model.train(what != "eval")
    with pytest.raises(
        StateError, match={"eval": r"eval mode[\s\S]*model\.train\(\)"}.get(what, r"gradients are off[\s\S]*predict")
    ):
        if what == "eval":
            manager.step(x, y)
        elif what == "no_grad":
            with torch.no_grad():
                manager.step(x, y)
        else:
            with torch.inference_mode():
                manager.step(x, y)
    model.train()
    manager.step(x, y)


@pytest.mark.parametrize("x", [torch.zeros(0, 4).double(), torch.zeros(B, 0).double()])
def test_an_empty_batch(x: Tensor) -> None:
    _, manager = attach()
    for call in (
        lambda: manager.step(x, torch.zeros(len(x), dtype=torch.long)),
        lambda: manager.predict(x),
        lambda: manager.bind(x),
    ):
        with pytest.raises(ShapeError, match="empty"):
            call()


@pytest.mark.parametrize("x", ["text", 3, None, [1.0, 2.0], ((), {})])
def test_an_input_without_a_tensor(x: Any) -> None:
    _, manager = attach()
    with pytest.raises(TypeError, match=r"no tensor[\s\S]*torch\.as_tensor"):
        manager.step(x, torch.zeros(B, dtype=torch.long))


@pytest.mark.parametrize("call", ["step", "predict", "bind", "predict local", "detach"])
def test_a_manager_called_within_its_own_forward_pass(call: str) -> None:
    model, manager = attach()
    x, y = batch()
    calls = {
        "step": lambda: manager.step(x, y), "predict": lambda: manager.predict(x), "bind": lambda: manager.bind(x, y),
        "predict local": lambda: manager.predict(x, by="local"), "detach": lambda: manager.detach(),
    }  # fmt: skip
    busy = [True]

    def hook(m: nn.Module, a: Any, out: Tensor) -> None:
        if busy[0]:
            calls[call]()

    model.middle.register_forward_hook(hook)
    with pytest.raises(StateError, match=r"in the middle of a forward pass[\s\S]*one thread"):
        manager.step(x, y)
    busy[0] = False
    assert consistent(manager) and model.training
    manager.step(x, y)


def test_two_threads_at_once_are_refused() -> None:
    model, manager = attach()
    inside, go = threading.Event(), threading.Event()
    model.middle.register_forward_hook(lambda m, a, out: (inside.set(), go.wait(10))[2:] or None)
    x, y = batch()
    errors: list[BaseException] = []
    thread = threading.Thread(target=lambda: manager.step(x, y))
    thread.start()
    assert inside.wait(10)
    with pytest.raises(StateError, match="one thread"):
        manager.step(x, y)
    go.set()
    thread.join()
    assert not errors and manager.steps == 3 and consistent(manager)


def test_training_in_another_thread() -> None:
    _model, manager = attach()
    before = manager.steps
    thread = threading.Thread(target=lambda: manager.step(*batch()))
    thread.start()
    thread.join()
    assert manager.steps == before + 1


def test_two_models_take_turns() -> None:
    """One manager's step may use another attached model, as a teacher or a discriminator."""
    model, manager = attach()
    teacher, other = attach()
    x, y = batch()
    seen: list[Tensor] = []
    model.middle.register_forward_hook(lambda m, a, out: seen.append(other.predict(x)))
    manager.step(x, y)
    assert torch.equal(seen[0], teacher.eval()(x))
    teacher.train()
    other.step(x, y)
    assert consistent(manager) and consistent(other)
