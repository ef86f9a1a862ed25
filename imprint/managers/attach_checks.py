"""What `attach` refuses before it touches a model."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.amp import GradScaler

from ..errors import ArgumentError, CoverageError, StateError, UnknownNameError, did_you_mean
from ..protos.auto import Auto
from .assignment import Assignment, options_of
from .intercept import AGENT
from .learning_pass import UPDATES
from .tree import parents

WRAPPERS = {
    "DistributedDataParallel": "it waits for gradients in a backward pass, and units use theirs up in the forward pass",
    "DataParallel": "it runs throw-away copies of the layers, so nothing would learn",
    "FullyShardedDataParallel": "it keeps shards of weights that units need whole",
    "FSDPModule": "it keeps shards of weights that units need whole",
    "OptimizedModule": "torch.compile traces through the boundaries of units",
    "ScriptModule": "TorchScript does not call the forward of its layers",
}


def check_model(model: nn.Module) -> None:
    """Refuse what is no torch model, is wrapped, attached already, or has layers of unknown size."""
    if not isinstance(model, nn.Module):
        raise ArgumentError(
            "attach", "not a torch model", expected="an nn.Module", got=type(model).__name__,
            fix="imprint.attach(nn.Sequential(...))",
        )  # fmt: skip
    check_wrapped("the model", model)
    for path, module in model.named_modules():
        if AGENT in module.__dict__:
            raise StateError(
                "attach", "the model is attached already", got=f"layer {path!r} belongs to a manager",
                fix="manager.detach(), or imprint.managers.detach(model)",
            )  # fmt: skip
        if isinstance(module, nn.modules.lazy.LazyModuleMixin):
            raise CoverageError(
                "attach", "the model has a lazy layer, whose sizes are not known yet", got=f"{path!r}",
                fix="run the model once on an example first",
            )  # fmt: skip


def check_wrapped(where: str, module: nn.Module) -> None:
    """Refuse a module whose wrapper goes past units."""
    kinds = {cls.__name__ for cls in type(module).__mro__}
    compiled = getattr(module, "_compiled_call_impl", None) is not None
    for name in [*WRAPPERS, *(["OptimizedModule"] if compiled else [])]:
        if name in kinds or (compiled and name == "OptimizedModule"):
            raise ArgumentError(
                "attach", f"{where} is wrapped by {name}: {WRAPPERS[name]}", expected="the plain model",
                fix="attach to the model inside: model.module, or the one from before torch.compile or torch.jit",
            )  # fmt: skip


def check_layer(model: nn.Module, paths: tuple[str, ...]) -> None:
    """Refuse layers that calls cannot be routed from."""
    for path in (*parents(paths[0]), *paths):
        check_wrapped(f"layer {path!r}", model.get_submodule(path))
    for path in paths:
        if "forward" in model.get_submodule(path).__dict__:
            raise ArgumentError(
                f"layer {path!r}", "its forward is patched on the object, so it cannot be routed to a unit",
                fix="write a subclass with that forward, or exclude= the layer",
            )  # fmt: skip


def check_options(rule: Assignment, options: dict[str, Any], mine: set[str]) -> None:
    """Refuse options that neither `attach`, which has `mine`, nor a rule has; what is no rule is refused later."""
    known = options_of(rule)
    for name in options:
        if name not in known and (known or not isinstance(rule, str)):
            raise UnknownNameError(
                "attach", f"neither attach nor the rule has an option {name!r}", fix=did_you_mean(name, known | mine)
            )


def check_update(update: Any) -> None:
    """Refuse modes that models do not have."""
    if update is not Auto and update not in UPDATES:
        raise ArgumentError(
            "attach", "unknown update=, for a model", expected=" | ".join(map(repr, UPDATES)), got=repr(update),
            fix="leave it out; ticks and rollouts are those of a graph",
        )  # fmt: skip


def check_scaler(scaler: Any) -> None:
    """Refuse what does not scale losses."""
    if scaler is not None and not isinstance(scaler, GradScaler):
        raise ArgumentError(
            "attach", "scaler= is no torch.amp.GradScaler", got=repr(scaler), fix="scaler=torch.amp.GradScaler('cuda')"
        )


def check_numbers(accumulate: Any, grad_clip: Any, num_classes: Any, block_size: Any = 1) -> None:
    """Refuse numbers out of their range."""
    for name, value in (("accumulate", accumulate), ("num_classes", num_classes), ("block_size", block_size)):
        if value is not None and (isinstance(value, bool) or not (isinstance(value, int) and value >= 1)):
            raise ArgumentError("attach", f"{name}= must be a whole number from 1", got=repr(value), fix=f"{name}=10")
    number = isinstance(grad_clip, int | float) and not isinstance(grad_clip, bool)
    if grad_clip is not None and not (number and grad_clip > 0):
        raise ArgumentError("attach", "grad_clip= must be positive", got=repr(grad_clip), fix="grad_clip=1.0")


BUILDERS = {
    "optimizer": "lambda params: torch.optim.Adam(params, 5e-4)",
    "scheduler": "lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 10)",
    "task_loss": "lambda output, y: torch.nn.functional.cross_entropy(output, y)",
}


def check_builders(**given: Any) -> None:
    """Refuse what is not callable."""
    for name, value in given.items():
        if value is not None and not callable(value):
            raise ArgumentError(
                "attach", f"{name}= is not callable", expected="a function", got=repr(value).split("\n")[0],
                fix=f"{name}={BUILDERS[name]}",
            )  # fmt: skip


def refuse(where: str, given: dict[str, Any], why: str) -> None:
    """Refuse options of the other world."""
    names = [name for name, value in given.items() if value is not None]
    if names:
        raise ArgumentError(
            where, f"options that have no meaning here: {', '.join(names)}", fix=f"leave them out; {why}"
        )
