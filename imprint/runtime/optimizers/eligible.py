"""Which optimizers a captured block can step itself, and what such a block takes for granted about them."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import optimizer as hooked

from .maths import registry

DTYPES = (torch.float32, torch.float64)


def why_not(optimizer: torch.optim.Optimizer, device: torch.device) -> str | None:
    """Why this optimizer has to step by itself; None if its step is known as maths.

    >>> p = torch.nn.Parameter(torch.zeros(2))
    >>> why_not(torch.optim.Adam([p]), torch.device("cpu"))
    >>> why_not(torch.optim.Adagrad([p]), torch.device("cpu"))
    'its type Adagrad has no step as maths; Adam, AdamW, RMSprop, SGD have one'
    """
    kind = type(optimizer)
    if kind not in registry:
        known = ", ".join(sorted(known.__name__ for known in registry))
        return f"its type {kind.__name__} has no step as maths; {known} have one"
    hooks = (
        optimizer._optimizer_step_pre_hooks,
        optimizer._optimizer_step_post_hooks,
        hooked._global_optimizer_pre_hooks,
        hooked._global_optimizer_post_hooks,
    )
    if any(hooks):
        return "a step hook is registered"
    own = vars(optimizer).get("step")
    # torch's schedulers wrap step() to see it called; anything else there is somebody's own step
    if own is not None and getattr(own, "__wrapped__", None) is not kind.step:
        return "its step() was replaced"
    for group in optimizer.param_groups:
        if why := _group(kind, group) or _params(group["params"], device):
            return why
    return None


def _group(kind: type[torch.optim.Optimizer], group: dict[str, Any]) -> str | None:
    lr = group["lr"]
    if group["differentiable"] or (isinstance(lr, torch.Tensor) and lr.requires_grad):
        return "its step is differentiable"
    for name in registry[kind].options:
        value = group[name]
        if any(isinstance(v, torch.Tensor) for v in (value if isinstance(value, (tuple, list)) else (value,))):
            return f"its {name} is a tensor"
    return registry[kind].why_not(group)


def _params(params: list[torch.Tensor], device: torch.device) -> str | None:
    if len({id(p) for p in params}) != len(params):
        return "a parameter is in it twice"
    for p in params:
        if p.layout is not torch.strided:
            return f"a parameter's layout is {p.layout}"
        if p.dtype not in DTYPES:
            return f"a parameter's dtype is {p.dtype}"
        if p.device != device:
            return f"a parameter is on {p.device}, not on {device}"
    return None


def facts(optimizer: torch.optim.Optimizer) -> tuple[Any, ...]:
    """Type, settings and parameters of an optimizer that has a step as maths: all that a capture bakes in but state.

    The lr is no part of it, nor are ``foreach``, ``fused`` and ``capturable``, which choose among ways to the same
    numbers.
    """
    maths = registry[type(optimizer)]
    groups = []
    for group in optimizer.param_groups:
        # settings read from a file are lists where they were tuples
        values = [group[name] for name in maths.options]
        settings = tuple(tuple(value) if isinstance(value, list) else value for value in values)
        groups.append((settings, tuple((id(p), p.dtype, tuple(p.shape)) for p in group["params"])))
    return type(optimizer).__name__, tuple(groups)
