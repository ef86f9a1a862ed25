"""What a captured step of an attached model takes for granted besides the sizes of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from ..errors import CaptureError
from ..monitors.metric import Metric
from ..propagators import Propagator
from ..runtime.optimizers import Steps
from ..runtime.settings import settings_of

if TYPE_CHECKING:
    from .manager import Manager

Facts = dict[str, tuple[Any, ...]]
PLACES = ("weights", "buffers", "optimizers")
"""Facts that, once they have changed, do not come back: captures that hold others are dropped."""


def modules_of(manager: Manager) -> list[nn.Module]:
    """Of model, objectives and context stream, each once."""
    tops: list[nn.Module] = [manager.model, *(agent.unit.objective for agent in manager.units.values())]
    tops += [manager.context.stream] if manager.context is not None else []
    return list({id(m): m for top in tops for m in top.modules()}.values())


def names_of(manager: Manager) -> dict[int, str]:
    """How modules are called in errors, by id."""
    names = {id(m): f"module {name!r}" if name else "the model" for name, m in manager.model.named_modules()}
    for name, agent in manager.units.items():
        names |= {id(m): f"objective of unit {name!r}" for m in agent.unit.objective.modules()}
    return names


def facts_of(manager: Manager, modules: list[nn.Module]) -> Facts:
    """Two steps of equal facts and sizes are the same calls on the same tensors."""
    props, device = list(manager.propagators.values()), next(manager.model.parameters()).device.type
    params = [p for prop in props for p in prop.params.values()]
    buffers = [b for m in modules for b in m._buffers.values() if b is not None]
    return {
        "training modes": tuple([m.training for m in modules]),
        "settings": settings_of(modules),
        "hooks": (bool(_has_any_global_hook()), *[id(m) for m in modules if hooked(m)]),
        "frozen units": tuple(
            [(a.frozen, a.waits, a.open, a.expected, a.unit.context_mode) for a in manager.units.values()]
        ),
        "what wants gradient": tuple([p.requires_grad for p in params]),
        "clipping": tuple([prop.grad_clip for prop in props]),
        "monitors": tuple([id(probe) for prop in props for probe in prop.probes]),
        "precision": (
            torch.is_autocast_enabled(device), torch.get_autocast_dtype(device), torch.get_default_dtype(),
            torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled(),
        ),
        "weights": tuple([(id(p), p.data_ptr(), p.dtype, p.stride()) for p in params]),
        "buffers": tuple([(id(b), b.data_ptr(), b.dtype) for b in buffers]),
        "optimizers": optimizers_of(props),
    }  # fmt: skip


def optimizers_of(props: list[Propagator]) -> tuple[Any, ...]:
    """Which there are, their settings but for learning rates, their weights, hooks, and where their state is."""
    found: list[Any] = []
    for prop in props:
        for o in prop.optimizers:
            found += [id(o), id(o.state), bool(o._optimizer_step_pre_hooks or o._optimizer_step_post_hooks)]
            found += [id(vars(o).get("step"))]
            for group in o.param_groups:
                found += [id(v) if isinstance(v, Tensor | list) else v for k, v in group.items() if k not in MOVING]
                found += [id(p) for p in group["params"]]
                found += [id(v) for p in group["params"] for k, v in o.state.get(p, {}).items() if k != "step"]
    return tuple(found)


MOVING = ("params", "lr", "initial_lr")


def hooked(m: nn.Module) -> bool:
    """Has somebody hung a hook on it?"""
    return bool(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks)


def refuse(manager: Manager, modules: list[nn.Module], steps: Steps) -> None:
    """Refuse what would run once, while the step is captured, and never again; and optimizers that would come too late.

    Raises:
        CaptureError: a module or a weight has hooks, something watches the units that is no monitor, or an optimizer
            that has to step by itself has to do so in the middle of the step.
    """
    for name, agent in manager.units.items():
        why = [steps.left[id(o)] for o in agent.prop.optimizers if id(o) in steps.left]
        if why and not agent.open and not agent.unit.objective.uses_data:
            raise CaptureError(
                f"unit {name!r}", f"its optimizer steps before the data pass, and cannot be captured: {why[0]}",
                expected="Adam, AdamW, RMSprop or SGD", fix="optimizer=torch.optim.Adam",
            )  # fmt: skip
    names, fix = names_of(manager), "a monitor of your own: its emitted() and learned() are part of the compiled step"
    for m in modules:
        if hooked(m):
            raise CaptureError(
                names.get(id(m), type(m).__name__), "it has hooks, which a compiled step would skip",
                got=", ".join(f"{len(found)} of {kind[1:]}" for kind in HOOKS if (found := getattr(m, kind))), fix=fix,
            )  # fmt: skip
    if _has_any_global_hook():
        raise CaptureError("all modules", "there are global hooks, which a compiled step would skip", fix=fix)
    for prop in manager.propagators.values():
        for name, p in prop.params.items():
            if p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None):
                raise CaptureError(
                    f"unit {prop.name!r}, weight {name!r}", "it has hooks, which a compiled step would skip",
                    fix="a monitor of your own: its updating() is given the gradients",
                )  # fmt: skip
        for probe in prop.probes:
            if not isinstance(probe, Metric):
                raise CaptureError(
                    f"unit {prop.name!r}", "what watches it is no monitor, so it would see nothing",
                    expected="a subclass of imprint.monitors.Metric", got=type(probe).__name__,
                    fix="take it away, or manager.compiled.close()",
                )  # fmt: skip


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def fixed_of(manager: Manager, modules: list[nn.Module], steps: Steps) -> Iterator[tuple[str, Tensor]]:
    """All tensors that a step may write besides its own, by name."""
    for name, prop in manager.propagators.items():
        yield from ((f"{name}, {k}", p) for k, p in prop.params.items())
    yield from ((f"model, {k}", p) for k, p in manager.model.named_parameters())
    for i, m in enumerate(modules):
        yield from ((f"buffer {k} of module {i}", b) for k, b in m._buffers.items() if b is not None)
        yield from ((f"parameter {k} of module {i}", p) for k, p in m._parameters.items() if p is not None)
    yield from ((f"optimizer {i}", v) for i, v in enumerate(steps.tensors()))
