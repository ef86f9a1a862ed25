"""From the record of what a probe saw to heads, optimizers and the opened unit; and back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import ImprintError, StateError
from ..objectives import Labels, Spec
from ..rules import Backprop
from .coverage import check_disjoint
from .examine import classes_of as classes_of
from .examine import examine
from .explain import locate
from .options import Inputs
from .place import follow, remember

if TYPE_CHECKING:
    from .manager import Manager


def bind(manager: Manager, inputs: Inputs, y: Tensor | None) -> None:
    """Probe the model on `inputs` and build what the record of it says.

    Once it is built, heads stay: calls are counted anew, and what is written in place is looked at anew.
    """
    follow(manager)
    check_disjoint(manager.model, manager.units.values())
    record = examine(manager, inputs, y)
    if manager.bound is None:
        try:
            build(manager, record)
        except BaseException:
            unbuild(manager)
            raise
        return
    manager.bound["calls"] = record["calls"]
    for name, spec in record["specs"].items():
        manager.bound["specs"][name] |= {k: spec[k] for k in ("context", "changes")}
    take_sizes(manager, manager.bound)


def build(manager: Manager, record: dict[str, Any]) -> None:
    """Make heads, context and optimizers, and open the unit that learns from the task."""
    options = manager.options
    manager.unbuilt = Unbuilt.of(manager)
    labels = options.labels = replace(options.labels, num_classes=record["num_classes"])
    manager.task.unit.labels = labels  # type: ignore[union-attr]
    params = dict(manager.model.named_parameters())
    anchor = next(iter(params.values()))
    take_sizes(manager, record)
    learning = [n for n in record["order"] if manager.units[n].learns and n != record["opened"]]
    depths = {name: i / max(1, len(learning) - 1) for i, name in enumerate(learning)}
    for name, agent in manager.units.items():
        saved = record["specs"][name]
        own = agent.unit.weights()[0]
        if name == record["opened"]:
            agent.open, agent.unit.still = True, False
        if agent.learns and not agent.open:
            kind = (own.dtype, own.device)
            spec = Spec(
                saved["shape"], saved["batch_dim"], *kind, record["target"], saved["channels_last"],
                tuple(record["input"]), tuple(record["output"]), depths.get(name, 0.0),
            )  # fmt: skip
            try:
                agent.unit.objective.bind(spec, labels)
            except ImprintError as error:
                locate(error, f"unit {name!r}")
                raise
            agent.speaks = True
    if manager.context is not None:
        manager.context.build(record["context"], labels, anchor.device, record["rows"])
    for name, agent in manager.units.items():
        if agent.learns:
            manager.schedulers[name] = options.equip(agent.prop, agent.unit.parameters(), agent.rule, agent.open)
        else:
            agent.frozen, agent.prop.params = True, agent.unit.parameters()
    rule = next((a.rule for a in manager.units.values() if a.rule.learns), Backprop())
    manager.schedulers["task"] = options.equip(manager.task, {n: params[n] for n in record["task"]}, rule, True)
    if manager.context is not None and manager.context.learned:
        manager.schedulers["signal"] = options.equip(manager.context.prop, manager.context.parameters(), rule)
    manager.bound = record
    remember(manager)


def take_sizes(manager: Manager, record: dict[str, Any]) -> None:
    """Tell every unit what a record says of its calls and sizes."""
    for name, agent in manager.units.items():
        saved = record["specs"][name]
        agent.expected = int(record["calls"][name])
        agent.unit.batch_dim, agent.unit.channels_last = int(saved["batch_dim"]), bool(saved["channels_last"])
        agent.unit.context_mode, agent.seen = str(saved["context"]), tuple(torch.Size(s) for s in saved["seen"])
        agent.input_changes, agent.output_changes = (bool(changes) for changes in saved["changes"])


def unbuild(manager: Manager) -> None:
    """Undo :func:`build`: no heads, no optimizers, nothing known of sizes."""
    if manager.unbuilt is not None:
        manager.unbuilt.restore(manager)
    manager.bound, manager.unbuilt, manager.schedulers, manager.places = None, None, {}, {}
    manager.hung = []
    for agent in manager.units.values():
        agent.open, agent.frozen, agent.speaks = not agent.rule.local, not agent.rule.learns, False
        agent.unit.still = not agent.rule.trains_weights
        agent.expected, agent.seen = 0, ()
    for prop in manager.propagators.values():
        prop.params, prop.optimizers = {}, []
        prop.reset()


@dataclass(frozen=True, eq=False)
class Unbuilt:
    """What building changes for good: the labels, and what objectives and context stream consist of."""

    labels: Labels
    modules: dict[nn.Module, dict[str, Any]]

    @staticmethod
    def of(manager: Manager) -> Unbuilt:
        """Of a manager that is not bound."""
        tops: list[nn.Module] = [agent.unit.objective for agent in manager.units.values()]
        tops += [manager.context.stream] if manager.context else []
        modules = [m for top in tops for m in top.modules()]
        parts = {m: {k: v.copy() if isinstance(v, dict) else v for k, v in m.__dict__.items()} for m in modules}
        return Unbuilt(manager.options.labels, parts)

    def restore(self, manager: Manager) -> None:
        """Put it back."""
        for module, attributes in self.modules.items():
            module.__dict__.clear()
            module.__dict__.update({k: v.copy() if isinstance(v, dict) else v for k, v in attributes.items()})
        manager.options.labels = manager.task.unit.labels = self.labels  # type: ignore[union-attr]


def require_reader(manager: Manager) -> None:
    """Refuse targets that nothing would learn from.

    Raises:
        StateError: no unit needs them, and nothing learns from the task loss.
    """
    units = manager.units.values()
    if manager.task.optimizers or any(a.open or a.unit.objective.needs_labels for a in units):
        return
    if any(a.learns_alone for a in units):
        raise StateError(
            "manager.step", "it is bound without targets, so that every unit learns on its own and none would read y",
            fix="manager.bind(x, y), attach(..., num_classes=), or steps without y",
        )  # fmt: skip


def require_bound(manager: Manager, what: str) -> None:
    """Refuse what only a bound manager has."""
    if manager.bound is None:
        raise StateError("manager", f"{what} exist only once it is bound", fix="manager.bind(x, y), or take a step")
