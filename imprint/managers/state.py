"""Parts of a manager's state: copied out, compared and copied in."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from ..credit import Params
from ..errors import CheckpointError, did_you_mean

State = dict[str, Any]
LIKE_WEIGHTS = frozenset({
    "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "acc_delta", "grad_avg", "sum",
    "exp_inf", "prev", "step_size", "ax",
})  # fmt: skip
"""What torch's optimizers keep in the shape of a weight."""


def kept(value: Any) -> Any:
    """A copy that nothing else writes to: tensors on the CPU, detached; dicts and lists all the way down.

    >>> import torch
    >>> live = torch.zeros(1)
    >>> saved = kept({"a": [live]})
    >>> _ = live.add_(1)
    >>> saved
    {'a': [tensor([0.])]}
    """
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if type(value) is OrderedDict:
        made = OrderedDict((k, kept(v)) for k, v in value.items())
        made.__dict__.update(copy.deepcopy(value.__dict__))  # torch keeps versions of modules there
        return made
    if type(value) is dict:
        return {k: kept(v) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(kept(v) for v in value)
    return copy.deepcopy(value)


def optimizer_state(optimizer: Optimizer, params: Params) -> State:
    """State and options of an optimizer by parameter *name*; torch's own, by position, fit any weights."""
    names = {id(p): k for k, p in params.items()}
    groups = [
        {k: v for k, v in g.items() if k != "params"} | {"params": [names[id(p)] for p in g["params"]]}
        for g in optimizer.param_groups
    ]
    return {
        "class": type(optimizer).__name__,
        "state": {names[id(p)]: dict(s) for p, s in optimizer.state.items() if isinstance(p, Tensor)},
        "shared": {k: s for k, s in optimizer.state.items() if not isinstance(k, Tensor)},
        "groups": groups,
    }


def check_optimizer(optimizer: Optimizer, saved: State, params: Params, where: str) -> None:
    """Refuse a saved optimizer that does not fit, before anything is written."""
    mine = optimizer_state(optimizer, params)
    check_keys(saved, set(mine), where)
    if saved["class"] != mine["class"]:
        raise CheckpointError(
            where, "it was saved with another optimizer", expected=mine["class"], got=saved["class"],
            fix="attach with the same optimizer=",
        )  # fmt: skip
    here, there = ([sorted(g["params"]) for g in s["groups"]] for s in (mine, saved))
    if here != there:
        raise CheckpointError(
            where, "its optimizer has other parameter groups", expected=here, got=there,
            fix="attach with the same optimizer=",
        )  # fmt: skip
    for name, state in saved["state"].items():
        if name not in params:
            raise CheckpointError(where, f"its optimizer has state of {name!r}", fix=did_you_mean(name, params))
        for key, value in state.items():
            if key in LIKE_WEIGHTS and isinstance(value, Tensor) and value.shape != params[name].shape:
                raise CheckpointError(
                    where, f"{key!r} of {name!r} has another shape",
                    expected=tuple(params[name].shape), got=tuple(value.shape), fix="load another checkpoint",
                )  # fmt: skip


def load_optimizer(optimizer: Optimizer, saved: State, params: Params) -> None:
    """Write a checked state into `optimizer`, parameter by parameter name."""
    mine = optimizer_state(optimizer, params)["groups"]
    position = {name: i for i, name in enumerate(n for g in mine for n in g["params"])}
    groups = [
        {**here, **kept(there), "params": [position[n] for n in here["params"]]}
        for here, there in zip(mine, saved["groups"], strict=True)
    ]
    state = {position[n]: kept(s) for n, s in saved["state"].items()} | kept(saved["shared"])
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for name, its in saved["state"].items():
        own = optimizer.state[params[name]]
        for key, value in its.items():
            if isinstance(value, Tensor) and own[key].dtype != value.dtype:  # torch casts to the dtype of the weight
                own[key] = kept(value).to(own[key].device)


def check_keys(saved: Mapping[str, Any], expected: set[str], where: str) -> None:
    """Refuse a state with other entries than `expected`; the message names the first few that differ."""
    missing, extra = sorted(expected - set(saved)), sorted(set(saved) - expected)
    if missing or extra:
        named = [f"{what} {', '.join(map(repr, names[:4]))}{', …' if len(names) > 4 else ''}"
                 for what, names in (("without", missing), ("with", extra)) if names]  # fmt: skip
        raise CheckpointError(
            where, "it was saved with other entries", expected=f"{len(expected)} entries", got="; ".join(named),
            fix="build the same model, rule and optimizers as those that were saved",
        )  # fmt: skip


def check_tensors(saved: Mapping[str, Any], mine: Mapping[str, Any], where: str) -> None:
    """Refuse a module's state whose names, shapes or dtypes differ from `mine`."""
    check_keys(saved, set(mine), where)
    for key, value in mine.items():
        other = saved[key]
        if not isinstance(value, Tensor):
            continue
        if not isinstance(other, Tensor):
            raise CheckpointError(
                where, f"{key!r} is no tensor", got=type(other).__name__, fix="load another checkpoint"
            )
        if value.shape != other.shape:
            raise CheckpointError(
                where, f"{key!r} has another shape", expected=tuple(value.shape), got=tuple(other.shape),
                fix="build the same model as the one that was saved",
            )  # fmt: skip
        if value.dtype != other.dtype:
            raise CheckpointError(
                where, f"{key!r} has another dtype", expected=value.dtype, got=other.dtype,
                fix=f"put the model to {other.dtype} before loading: manager.to(…), or graph.to(…)",
            )  # fmt: skip
