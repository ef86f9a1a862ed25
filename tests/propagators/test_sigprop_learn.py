"""Propagators of hand-wired chains: when they learn, what they emit, what they leave behind, what they refuse."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from imprint import errors, loss, propagators, signals


def unit(
    layer: nn.Module, value: Callable[..., Tensor] = loss.v9_input_target_max_all, lr: float = 0.1
) -> propagators.Loss:
    return propagators.Loss(layer, torch.optim.SGD(layer.parameters(), lr=lr), value)


def streams(rows: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    y = torch.arange(rows) % 3
    return torch.randn(rows, 4), torch.eye(3, 4)[y], y


def test_the_step_and_the_emission_by_hand() -> None:
    layer = nn.Linear(4, 2, bias=False)
    w = layer.weight.detach().clone()
    h0, t0, y = streams()
    # d/dW of -mean_i (W h_i).(W t_i) is -(W/B) sum_i (t_i h_i' + h_i t_i'); a step down adds lr times its negative
    change = 0.1 * w @ (t0.T @ h0 + h0.T @ t0) / len(y)
    prop = unit(layer, loss.hebbian)
    h1, t1, context = prop((h0, t0, y))
    torch.testing.assert_close(h1, h0 @ w.T)
    torch.testing.assert_close(t1, t0 @ w.T)
    torch.testing.assert_close(layer.weight.detach(), w + change)
    assert (h1 - h0 @ layer.weight.T).abs().max() > 0.01  # not the output of after the update
    assert torch.equal(context, y)
    assert not h1.requires_grad and not t1.requires_grad and layer.weight.grad is None
    torch.testing.assert_close(prop.last_loss, -((h0 @ w.T) * (t0 @ w.T)).sum(1).mean())


@pytest.mark.parametrize("way", ["eval", "no context", "no grad", "no learning", "no optimizer"])
def test_when_it_does_not_learn(way: str) -> None:
    prop = unit(nn.Linear(4, 4))
    before = prop.module.weight.detach().clone()
    h0, t0, y = streams()
    expected = h0 @ before.T + prop.module.bias.detach()
    if way == "eval":
        h1, t1, _ = prop.eval()((h0, t0, y))
    elif way == "no context":
        h1, t1, context = prop((h0, None, None))
        assert t1 is None and context is None
    elif way == "no grad":
        with torch.no_grad():
            h1, t1, _ = prop((h0, t0, y))
    elif way == "no learning":
        with propagators.no_learning():
            h1, t1, _ = prop((h0, t0, y))
    else:
        prop.optimizer = None
        h1, t1, _ = prop((h0, t0, y))
    torch.testing.assert_close(h1, expected)
    assert torch.equal(prop.module.weight, before) and not h1.requires_grad
    if way in ("eval", "no grad", "no optimizer"):  # the loss is found all the same
        value = loss.v9_input_target_max_all(None, h1, t1, h0, t0, y)
        torch.testing.assert_close(prop.last_loss, value)
    else:
        assert prop.last_loss is None
    prop.train()
    prop.optimizer = torch.optim.SGD(prop.module.parameters(), lr=0.1)
    prop((h0, t0, y))
    assert (prop.module.weight - before).abs().max() > 1e-4  # the control


def test_evaluation_leaves_batch_norm_alone_and_runs_on_running_statistics() -> None:
    norm = nn.BatchNorm1d(4)
    prop = propagators.Loss(norm, torch.optim.SGD(norm.parameters(), lr=1.0), loss.v9_input_target_max_all)
    state = copy.deepcopy(norm.state_dict())
    h0, t0, y = streams()
    _, t1, _ = prop.eval()((h0, t0, y))
    torch.testing.assert_close(t1, t0 / (1 + norm.eps) ** 0.5)
    for k, v in norm.state_dict().items():
        assert torch.equal(v, state[k])
    prop.train()((h0, t0, y))
    assert any(not torch.equal(v, state[k]) for k, v in norm.state_dict().items())


def test_nothing_crosses_a_boundary() -> None:
    prop = unit(nn.Linear(4, 4))
    h0, t0, y = streams()
    h0.requires_grad_()
    t0.requires_grad_()
    h1, t1, _ = prop((h0, t0, y))
    assert h0.grad is None and t0.grad is None
    assert h1.grad_fn is None and t1.grad_fn is None


def test_a_signal_that_emits_its_weights_emits_those_of_before_the_step() -> None:
    class Rows(signals.Generator):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Parameter(torch.ones(3, 4))

        def forward(self, input):
            h0, t0 = input
            return h0, self.rows.view(3, 4), h0, t0

    rows = Rows()
    prop = propagators.signals.Loss(rows, torch.optim.SGD(rows.parameters(), lr=1.0), loss.v1_input_label_direct)
    _, t1 = prop((torch.randn(6, 4), torch.eye(3), torch.arange(6) % 3))
    assert torch.equal(t1, torch.ones(3, 4))
    assert not torch.equal(rows.rows, torch.ones(3, 4))


def test_a_loss_with_parameters_learns_with_the_unit_and_is_listed() -> None:
    class Head(loss.Loss):
        def __init__(self) -> None:
            super().__init__()
            self.read = nn.Linear(4, 3)

        def forward(self, sp_learn, h1, t1, h0, t0, y_onehot):
            return nn.functional.cross_entropy(self.read(h1), y_onehot)

    layer, head = nn.Linear(4, 4), Head()
    optimizer = torch.optim.SGD([*layer.parameters(), *head.parameters()], lr=0.1)
    prop = propagators.Loss(layer, optimizer, head)
    assert {"loss.read.weight", "loss.read.bias"} < {n for n, _ in prop.named_parameters()}
    before = [p.detach().clone() for p in prop.parameters()]
    h0, t0, y = streams()
    logits = head.read(layer(h0))
    expected = torch.autograd.grad(nn.functional.cross_entropy(logits, y), list(prop.parameters()))
    prop((h0, t0, y))
    for p, b, g in zip(prop.parameters(), before, expected, strict=True):
        torch.testing.assert_close(p.detach(), b - 0.1 * g)
        assert p.grad is None


def test_only_what_the_optimizer_holds_moves() -> None:
    layer = nn.Linear(4, 4)
    prop = propagators.Loss(layer, torch.optim.SGD([layer.bias], lr=0.1), loss.v9_input_target_max_all)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    prop(streams())
    assert torch.equal(layer.weight, weight) and not torch.equal(layer.bias, bias)
    assert list(prop.trained()) == ["module.bias"]
    layer.bias.requires_grad_(False)
    bias = layer.bias.detach().clone()
    prop(streams())
    assert torch.equal(layer.bias, bias)


def test_clipping_bounds_the_step() -> None:
    layer = nn.Linear(4, 4)
    prop = propagators.Loss(layer, torch.optim.SGD(layer.parameters(), lr=1.0), loss.hebbian, grad_clip=1e-3)
    before = torch.cat([p.detach().clone().flatten() for p in layer.parameters()])
    prop(streams())
    step = torch.cat([p.detach().flatten() for p in layer.parameters()]) - before
    assert step.norm().item() == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_with_the_name_and_changes_nothing(bad: float) -> None:
    layer = nn.Linear(4, 4)
    prop = propagators.Loss(
        layer, torch.optim.Adam(layer.parameters()), lambda *six: (six[1] * bad).sum(), name="encoder.3"
    )
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    with pytest.raises(errors.NonFiniteError, match=r"encoder\.3"):
        prop(streams())
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
    assert not prop.optimizer.state


def test_a_probe_sees_every_step() -> None:
    class Note(propagators.Probe):
        seen: list[str] = []

        def learned(self, prop, x, out, y, loss):
            self.seen.append(f"learned {prop.name} {loss.requires_grad} {out[0].requires_grad}")

        def updated(self, prop, grads):
            self.seen.append("updated " + " ".join(sorted(grads)))

    prop = unit(nn.Linear(4, 4))
    prop.probes.append(Note())
    prop(streams())
    prop.eval()(streams())
    assert Note.seen == ["learned Linear False False", "updated module.bias module.weight"]


def test_a_copy_and_a_saved_state_learn_on_by_themselves() -> None:
    prop = unit(nn.Linear(4, 4))
    prop(streams())
    twin = copy.deepcopy(prop)
    assert twin.optimizer.param_groups[0]["params"][0] is twin.module.weight
    data, before = streams(), prop.module.weight.detach().clone()
    twin(data)
    assert torch.equal(prop.module.weight, before) and not torch.equal(twin.module.weight, before)
    prop(data)
    assert torch.equal(prop.module.weight, twin.module.weight)
    file = io.BytesIO()
    torch.save(prop.state_dict(), file)
    file.seek(0)
    fresh = unit(nn.Linear(4, 4))
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(fresh.module.weight, prop.module.weight)
    assert list(prop.state_dict()) == ["module.weight", "module.bias"]


def test_fixed_forward_and_identity_route_as_they_say() -> None:
    layer = nn.Linear(4, 2)
    h0, t0, y = streams()
    h0.requires_grad_()
    fixed, through, head = propagators.Fixed(layer), propagators.Forward(layer), propagators.Identity(layer)
    for prop, h_learns, t_runs in ((fixed, False, True), (through, True, True), (head, True, False)):
        h1, t1, context = prop((h0, t0, y))
        torch.testing.assert_close(h1.detach(), layer(h0).detach())
        torch.testing.assert_close(t1.detach(), layer(t0).detach() if t_runs else t0)
        assert h1.requires_grad == h_learns and context is y
        h1, t1, context = prop((h0, None, None))
        assert t1 is None and context is None
    through((h0, t0, y))[0].sum().backward()
    assert h0.grad is not None and layer.weight.grad is not None
    assert propagators.Identity(layer, optimizer=None, loss=None).module is layer
    assert propagators.Propagator().optimizers == []


def test_a_fixed_signal_makes_streams_without_a_graph() -> None:
    project = nn.Linear(3, 4)
    prop = propagators.signals.Fixed(signals.ProjectionContext(project, (3,), (4,)))
    h, t = prop((torch.ones(2, 4), torch.eye(3), None))
    torch.testing.assert_close(t, project.weight.T + project.bias)
    assert not t.requires_grad
    h, t = prop((torch.ones(2, 4), None, None))
    assert t is None and torch.equal(h, torch.ones(2, 4))


@pytest.mark.parametrize(
    "make",
    [propagators.Fixed, propagators.Forward, propagators.Identity, unit],
    ids=["Fixed", "Forward", "Identity", "Loss"],
)
@pytest.mark.parametrize("wrong", [torch.ones(2, 4), (torch.ones(2, 4), None)], ids=["tensor", "pair"])
def test_what_is_no_triple_is_refused(make: Callable[[nn.Module], nn.Module], wrong: object) -> None:
    with pytest.raises(errors.ArgumentError, match="not a triple"):
        make(nn.Linear(4, 4))(wrong)


def test_misuse_is_refused() -> None:
    layer = nn.Linear(4, 4)
    with pytest.raises(errors.ArgumentError, match="no optimizer"):
        propagators.Loss(layer, layer.parameters(), loss.hebbian)
    with pytest.raises(errors.ArgumentError, match="not callable"):
        propagators.Loss(layer, None, "v9")
    with pytest.raises(errors.StateError, match="what its loss is"):
        propagators.Learn(layer)(streams())
    with pytest.raises(errors.ShapeError, match="not one number"):
        unit(layer, lambda *six: six[1])(streams())
    with pytest.raises(errors.ShapeError, match="not one number"):
        unit(layer, lambda *six: 0.5)(streams())
    with pytest.raises(errors.ArgumentError, match="no generator"):
        propagators.signals.Fixed(nn.Identity())((torch.ones(2, 4), None, None))


def test_an_optimizer_of_other_weights_is_refused() -> None:
    layer, other = nn.Linear(4, 4), nn.Linear(4, 3)
    with pytest.raises(errors.ArgumentError, match="none of its parameters"):
        propagators.Loss(layer, torch.optim.SGD(other.parameters(), lr=0.1), loss.hebbian)
    prop = unit(layer)
    before = prop.optimizer
    with pytest.raises(errors.ArgumentError, match="none of its parameters"):
        prop.optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    assert prop.optimizer is before
    prop.optimizer = torch.optim.SGD([*other.parameters(), layer.bias], lr=0.1)
    prop.optimizer = None


def test_an_optimizer_of_the_losses_own_weights_alone_is_fine() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(4, 3)

        def forward(self, unit: nn.Module, h1: Tensor, t1: Tensor, h0: Tensor, t0: Tensor, y: Tensor) -> Tensor:
            return nn.functional.cross_entropy(self.map(h1), y)

    layer, head = nn.Linear(4, 4), Head()
    prop = propagators.Loss(layer, torch.optim.SGD(head.parameters(), lr=0.1), head)
    layer_before, head_before = layer.weight.detach().clone(), head.map.weight.detach().clone()
    prop(streams())
    assert torch.equal(layer.weight, layer_before) and not torch.equal(head.map.weight, head_before)
