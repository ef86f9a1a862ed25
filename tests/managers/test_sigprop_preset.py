"""Preset: what goes where, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from imprint import errors, loss, managers, models, monitors, propagators, signals

V9, V14 = loss.v9_input_target_max_all, loss.v14_input_target_max_rand


def builder(module: nn.Module) -> torch.optim.Optimizer | None:
    weights = list(module.parameters())
    return torch.optim.SGD(weights, lr=0.1) if weights else None


def preset(**options) -> managers.Preset:
    return managers.Preset(models.Forward, propagators.Loss, propagators.signals.Loss, builder, **options)


def generator() -> nn.Module:
    return nn.Sequential(signals.LabelNumberToOnehot(3), signals.ProjectionContext(nn.Linear(3, 4), (3,), (4,)))


def test_options_come_from_the_call_before_the_configuration_before_the_builder() -> None:
    manager = preset(propagator_kwargs={"loss": V9}, signal_kwargs={"loss": V14})
    assert manager.set_signal(generator()).loss is V14
    layer = nn.Linear(4, 4)
    own = torch.optim.Adam(layer.parameters())
    made = manager.add_propagator(layer, optimizer=own, loss=V14, name="first", grad_clip=1.0)
    assert made.optimizer is own and made.loss is V14 and made.name == "first" and made.grad_clip == 1.0
    made = manager.add_propagator(nn.Linear(4, 4))
    assert isinstance(made.optimizer, torch.optim.SGD) and made.loss is V9 and made.name == "1 Linear"
    assert manager.add_propagator(nn.ReLU()).optimizer is None  # the builder may say None
    for cls in (propagators.Fixed, propagators.Forward, propagators.Identity):
        assert type(manager.add_propagator(nn.Linear(4, 4), cls)) is cls  # configured losses are left out
    assert len(manager.propagators) == 6
    model = manager.set_model(nn.Sequential(*manager.propagators))
    assert isinstance(model, models.Forward) and model.signal is manager.signal and manager.model is model
    assert model(torch.randn(5, 4), torch.arange(5) % 3).shape == (5, 4)


def test_config_methods_and_models_with_options() -> None:
    error = lambda out, y: out.softmax(1)[:, :3] - torch.eye(3)[y]
    manager = managers.Preset(models.LoopBack, propagators.Loss, propagators.signals.Fixed, builder)
    manager.config_propagator(loss=V9)
    manager.config_signal()
    manager.set_signal(signals.ProjectionContext(nn.Linear(3, 4), (3,), (4,)))
    layer = manager.add_propagator(nn.Linear(4, 4))
    with pytest.raises(errors.ArgumentError, match="needs error"):
        manager.set_model(layer)
    manager.config_model(error=error)
    model = manager.set_model(layer)
    assert model.error is error
    before = layer.module.weight.detach().clone()
    model(torch.randn(5, 4), torch.arange(5) % 3)
    assert not torch.equal(before, layer.module.weight)


def test_a_users_classes_are_given_what_they_take() -> None:
    class Plain(propagators.Propagator):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    class Takes(propagators.Loss):
        def __init__(self, module, alpha, **options):
            super().__init__(module, **options)
            self.alpha = alpha

    asked = []

    def counting(module: nn.Module) -> torch.optim.Optimizer | None:
        asked.append(module)
        return builder(module)

    manager = managers.Preset(models.Forward, Takes, propagators.signals.Loss, counting)
    manager.config_propagator(alpha=3, loss=V9)
    made = manager.add_propagator(nn.Linear(4, 4), optimizer=None)
    assert made.alpha == 3 and made.loss is V9 and asked == []
    assert isinstance(manager.add_propagator(nn.Linear(4, 4), Plain), Plain) and asked == []
    with pytest.raises(errors.ArgumentError, match="needs alpha"):
        managers.Preset(models.Forward, Takes, propagators.signals.Loss, builder).add_propagator(
            nn.Linear(2, 2), loss=V9, optimizer=None
        )


def test_a_monitor_wraps_every_loss_that_is_used() -> None:
    group = monitors.Group()
    manager = preset()
    manager.set_monitor(monitors.loss.LabelMetrics, group)
    manager.config_propagator(loss=V9)
    manager.set_signal(generator(), loss=V9, name="the signal")
    manager.add_propagator(nn.Linear(4, 4))
    manager.add_propagator(nn.Linear(4, 4), propagators.Identity)
    manager.add_propagator(nn.ReLU(), propagators.Fixed)
    manager.add_propagator(nn.Linear(4, 4), loss=V14)
    assert [m.name for m in group.monitors] == ["the signal", "0 Linear", "3 Linear"]
    assert [m.loss for m in group.monitors] == [V9, V9, V14]
    assert manager.propagators[0].loss is group.monitors[1] and manager.monitor_main is group
    alone = preset(monitor_cls=monitors.loss.LabelMetrics)
    alone.add_propagator(nn.Linear(4, 4), loss=V9)
    assert alone.monitor_main.metrics().startswith("[0 Linear]")


@pytest.mark.parametrize(
    "method", ["config_propagator", "config_signal", "config_model", "set_signal", "add_propagator", "set_model"]
)
def test_unknown_options_are_refused_with_the_nearest_name(method: str) -> None:
    manager = preset()
    if method == "set_model":
        manager.set_signal(generator(), loss=V9)
    arguments = () if method.startswith("config") else (nn.Linear(4, 4),)
    typo = "modle" if method.endswith("model") else "los"
    with pytest.raises(errors.ArgumentError, match=f"no option '{typo}'") as caught:
        getattr(manager, method)(*arguments, **{typo: V9})
    assert ("did you mean 'loss'" in str(caught.value)) == (typo == "los")
    with pytest.raises(errors.ArgumentError, match="no option"):
        preset(propagator_kwargs={"optimiser": None})


def test_options_a_class_does_not_have_are_refused_in_the_call() -> None:
    manager = preset()
    with pytest.raises(errors.ArgumentError, match="Fixed has no option 'loss'"):
        manager.add_propagator(nn.Linear(4, 4), propagators.Fixed, loss=V9)


def test_calls_twice_or_in_the_wrong_order_are_refused() -> None:
    manager = preset()
    with pytest.raises(errors.StateError, match="no signal yet"):
        manager.set_model(nn.Linear(4, 4))
    manager.set_signal(generator(), loss=V9)
    with pytest.raises(errors.StateError, match="already set"):
        manager.set_signal(generator(), loss=V9)
    with pytest.raises(errors.StateError, match="already there"):
        manager.config_signal(loss=V9)
    with pytest.raises(errors.StateError, match="already wrapped"):
        manager.set_monitor(monitors.loss.LabelMetrics, monitors.Group())
    layer = manager.add_propagator(nn.Linear(4, 4), loss=V9)
    with pytest.raises(errors.StateError, match="already there"):
        manager.config_propagator(loss=V9)
    manager.set_model(layer)
    with pytest.raises(errors.StateError, match="already set"):
        manager.set_model(layer)
    with pytest.raises(errors.StateError, match="already there"):
        manager.config_model()
    watched = preset(monitor_cls=monitors.loss.LabelMetrics)
    with pytest.raises(errors.StateError, match="already set"):
        watched.set_monitor(monitors.loss.LabelMetrics)


def test_wrong_kinds_and_missing_options_are_refused() -> None:
    with pytest.raises(errors.ArgumentError, match="Loss needs loss"):
        preset().add_propagator(nn.Linear(4, 4))
    with pytest.raises(errors.DtypeError, match="no torch module"):
        preset().add_propagator(lambda x: x, loss=V9)
    with pytest.raises(errors.ArgumentError, match="no propagator class"):
        preset().add_propagator(nn.Linear(4, 4), V9)
    with pytest.raises(errors.ArgumentError, match="model_cls is no class"):
        managers.Preset("Forward", propagators.Loss, propagators.signals.Loss, builder)
    with pytest.raises(errors.ArgumentError, match="optimizer_builder"):
        managers.Preset(models.Forward, propagators.Loss, propagators.signals.Loss, None)
    with pytest.raises(errors.ArgumentError, match="without monitor_cls"):
        preset(monitor_main=monitors.Group())
    with pytest.raises(errors.ArgumentError, match="no optimizer"):
        managers.Preset(
            models.Forward, propagators.Loss, propagators.signals.Loss, lambda m: m.parameters()
        ).add_propagator(nn.Linear(4, 4), loss=V9)


def test_one_parameter_cannot_learn_in_two_layers() -> None:
    manager = preset(propagator_kwargs={"loss": V9})
    shared = nn.Linear(4, 4)
    manager.add_propagator(shared)
    manager.add_propagator(shared, propagators.Fixed)
    with pytest.raises(errors.CoverageError, match="already learns in '0 Linear'"):
        manager.add_propagator(nn.Sequential(shared, nn.ReLU()))
