"""A manager's state: checked whole before any of it is loaded."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import CheckpointError
from ..propagators import Propagator
from ..utils import random_state, set_random_state
from .binding import build, take_sizes, unbuild
from .place import follow
from .state import check_keys, check_optimizer, check_tensors, kept, load_optimizer, optimizer_state

if TYPE_CHECKING:
    from .manager import Manager

FORMAT = 1
KEYS = {"format", "rules", "options", "bound", "model", "units", "signal", "steps", "gathered", "rng", "scaler"}
UNIT = {"objective", "optimizers", "schedulers", "carry", "ticks", "frozen"}
SAME = ("num_classes", "target", "opened", "task", "frozen", "orphans")
WRONG = (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError)
"""What looking into a damaged state raises."""


def state_dict(manager: Manager) -> dict[str, Any]:
    """See :meth:`imprint.managers.Manager.state_dict`."""
    follow(manager)
    units: dict[str, Any] = {}
    for name, prop in manager.propagators.items():
        agent = manager.units.get(name)
        units[name] = {
            "objective": agent.unit.objective.state_dict() if agent else {},
            "optimizers": [optimizer_state(o, prop.params) for o in prop.optimizers],
            "schedulers": [_scheduler(s) for s in manager.schedulers.get(name, [])],
            "carry": prop.carry, "ticks": prop.ticks, "frozen": bool(agent and agent.frozen),
        }  # fmt: skip
    return kept({
        "format": FORMAT, "rules": _rules(manager), "options": _options(manager), "bound": manager.bound,
        "model": manager.model.state_dict(),
        "units": units, "signal": manager.context.stream.state_dict() if manager.context else {},
        "steps": manager.steps, "gathered": manager.gathered, "rng": random_state(),
        "scaler": manager.scaled.scaler.state_dict() if manager.scaled is not None else {},
    })  # fmt: skip


def load_state_dict(manager: Manager, state: dict[str, Any]) -> None:
    """See :meth:`imprint.managers.Manager.load_state_dict`."""
    if not isinstance(state, dict):
        raise CheckpointError(
            "load_state_dict", "not a state", expected="what state_dict() gave", got=type(state).__name__,
            fix="manager.load_state_dict(manager.state_dict()), or torch.load of a file of it",
        )  # fmt: skip
    check_keys(state, KEYS, "load_state_dict")
    if state["format"] != FORMAT:
        raise CheckpointError(
            "load_state_dict", "another format", expected=FORMAT, got=state["format"],
            fix="load it with the version of imprint that saved it",
        )  # fmt: skip
    before = state_dict(manager)
    try:
        _check_before(manager, state)
        if manager.bound is None and state["bound"] is not None:
            build(manager, kept(state["bound"]))
        elif manager.bound is not None and state["bound"] is None:
            unbuild(manager)
        _check(manager, state)
        _load(manager, state)
    except BaseException as error:
        _go_back(manager, before)
        if isinstance(error, CheckpointError) or not isinstance(error, WRONG):
            raise
        raise CheckpointError(
            "load_state_dict", "the state is damaged", expected="what state_dict() gave", got=repr(error),
            fix="load another checkpoint",
        ) from error  # fmt: skip


def _go_back(manager: Manager, before: dict[str, Any]) -> None:
    """To `before`, whatever happened since."""
    if before["bound"] is None and manager.unbuilt is not None:
        unbuild(manager)
    elif before["bound"] is not None and manager.bound is None:
        build(manager, kept(before["bound"]))
    _load(manager, before)


def _scheduler(scheduler: Any) -> dict[str, Any]:
    return {"class": type(scheduler).__name__, "state": scheduler.state_dict()}


def _rules(manager: Manager) -> dict[str, dict[str, Any]]:
    """Each unit's rule and its plain options."""
    rules: dict[str, dict[str, Any]] = {}
    for name, agent in manager.units.items():
        rule = agent.rule
        options: dict[str, Any] = {f.name: getattr(rule, f.name) for f in fields(rule)} if is_dataclass(rule) else {}
        plain = {k: v for k, v in options.items() if v is None or isinstance(v, bool | int | float | str)}
        rules[name] = {"rule": rule.name, **plain}
    return rules


def _options(manager: Manager) -> dict[str, Any]:
    """What else decides how it learns, in plain values."""
    options, labels = manager.options, manager.options.labels
    loss, weight = options.task_loss, labels.weight
    return {
        "accumulate": options.accumulate, "grad_clip": options.grad_clip,
        "task_loss": None if loss is None else str(getattr(loss, "__qualname__", type(loss).__qualname__)),
        "weight": None if weight is None else weight.tolist(),
        "label_smoothing": labels.label_smoothing, "ignore_index": labels.ignore_index,
        "scaler": options.scaler is not None,
    }  # fmt: skip


def _check_before(manager: Manager, state: dict[str, Any]) -> None:
    """What can be compared before heads are made."""
    mine, saved = _rules(manager), state["rules"]
    if not isinstance(saved, dict) or mine.keys() != saved.keys():
        raise CheckpointError(
            "load_state_dict", "it was saved with other units", expected=", ".join(mine), got=", ".join(saved),
            fix="attach with the same layers= as the run that was saved",
        )  # fmt: skip
    for name, rule in mine.items():
        for key in ("rule", *sorted(rule.keys() | saved[name].keys())):
            if repr(rule.get(key, "absent")) != repr(saved[name].get(key, "absent")):
                what = "another rule" if key == "rule" else f"another {key!r} of its rule"
                raise CheckpointError(
                    f"unit {name!r}", f"it was saved with {what}", expected=rule.get(key), got=saved[name].get(key),
                    fix="attach with the same rule as the run that was saved",
                )  # fmt: skip
    options = _options(manager)
    check_keys(state["options"], set(options), "load_state_dict")
    for key, value in options.items():
        if state["options"][key] != value:
            raise CheckpointError(
                "load_state_dict", f"it was saved with another {key}=", expected=value, got=state["options"][key],
                fix="attach with the same options and labels as the run that was saved",
            )  # fmt: skip
    scaler = set() if manager.scaled is None else set(manager.scaled.scaler.state_dict())
    if not isinstance(state["scaler"], dict) or set(state["scaler"]) != scaler:
        raise CheckpointError(
            "load_state_dict", "the state of its scaler does not fit", expected=sorted(scaler), got=state["scaler"],
            fix="attach with scaler= as the run that was saved was, or load another checkpoint",
        )  # fmt: skip
    check_tensors(state["model"], manager.model.state_dict(), "the model's weights")
    bound = state["bound"]
    for key in SAME if manager.bound is not None and bound is not None else ():
        if bound[key] != manager.bound[key]:  # type: ignore[index]
            raise CheckpointError(
                "load_state_dict", f"it was bound with another {key!r}", got=bound[key],
                expected=manager.bound[key],  # type: ignore[index]
                fix="load before the first step, or bind with data and labels like those of the run that was saved",
            )  # fmt: skip


def _check(manager: Manager, state: dict[str, Any]) -> None:
    """What is compared with heads and optimizers."""
    check_keys(state["units"], set(manager.propagators), "load_state_dict")
    stream = manager.context.stream.state_dict() if manager.context else {}
    check_tensors(state["signal"], stream, "the context stream")
    for name, prop in manager.propagators.items():
        saved, where, agent = state["units"][name], f"unit {name!r}", manager.units.get(name)
        check_keys(saved, UNIT, where)
        check_tensors(saved["objective"], agent.unit.objective.state_dict() if agent else {}, f"{where}, its objective")
        for kind, here in (("optimizers", prop.optimizers), ("schedulers", manager.schedulers.get(name, []))):
            if len(saved[kind]) != len(here):
                raise CheckpointError(
                    where, f"another number of {kind}", expected=len(here), got=len(saved[kind]),
                    fix="attach with the same optimizer= and scheduler= as the run that was saved",
                )  # fmt: skip
        for optimizer, its in zip(prop.optimizers, saved["optimizers"], strict=True):
            check_optimizer(optimizer, its, prop.params, where)
        for scheduler, its in zip(manager.schedulers.get(name, []), saved["schedulers"], strict=True):
            if its["class"] != type(scheduler).__name__ or not isinstance(its["state"], dict):
                raise CheckpointError(
                    where, "it was saved with another scheduler", expected=type(scheduler).__name__, got=its["class"],
                    fix="attach with the same scheduler= as the run that was saved",
                )  # fmt: skip
        _check_carry(prop, saved["carry"] or {}, where)
    counts = [state["steps"], state["gathered"], *(u["ticks"] for u in state["units"].values())]
    if not all(type(n) is int and n >= 0 for n in counts):
        raise CheckpointError(
            "load_state_dict", "its counts are damaged", expected="integers >= 0", got=counts,
            fix="load another checkpoint",
        )  # fmt: skip


def _check_carry(prop: Propagator, carry: dict[str, Tensor], where: str) -> None:
    for key, value in carry.items():
        if key not in prop.params or value.shape != prop.params[key].shape:
            raise CheckpointError(
                where, f"its gathered gradient {key!r} does not fit", got=tuple(value.shape),
                expected=tuple(prop.params[key].shape) if key in prop.params else sorted(prop.params),
                fix="build the same model as the one that was saved",
            )  # fmt: skip


def _load(manager: Manager, state: dict[str, Any]) -> None:
    """Write all of it; random numbers last."""
    bound = state["bound"] is not None
    manager.model.load_state_dict(state["model"])
    if bound:
        _adopt(manager, kept(state["bound"]))
    if manager.context:
        manager.context.stream.load_state_dict(state["signal"], strict=bound)
    for name, prop in manager.propagators.items():
        saved, agent = state["units"][name], manager.units.get(name)
        if agent:
            agent.frozen = saved["frozen"]
        if not bound:
            prop.reset()
            continue
        if agent:
            agent.unit.objective.load_state_dict(saved["objective"])
        for optimizer, its in zip(prop.optimizers, saved["optimizers"], strict=True):
            load_optimizer(optimizer, its, prop.params)
        for scheduler, its in zip(manager.schedulers.get(name, []), saved["schedulers"], strict=True):
            scheduler.load_state_dict(kept(its["state"]))
        carry = saved["carry"]
        prop.carry = None if carry is None else {k: kept(v).to(prop.params[k]) for k, v in carry.items()}
        prop.ticks = saved["ticks"]
    manager.steps, manager.gathered = state["steps"], state["gathered"]
    if manager.scaled is not None:
        manager.scaled.scaler.load_state_dict(state["scaler"])
    set_random_state(state["rng"])


def _adopt(manager: Manager, bound: dict[str, Any]) -> None:
    """Take over what another batch at bind leaves different in a record."""
    take_sizes(manager, bound)
    stream = manager.context.stream if manager.context else None
    if stream is not None and not any(True for _ in stream.parameters()):
        device = next(manager.model.parameters()).device
        manager.context.build(bound["context"], manager.options.labels, device, bound["rows"])  # type: ignore[union-attr]
    manager.bound = bound
