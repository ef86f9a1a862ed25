"""What one forward pass tells about a model: a record of sizes and classes that everything else is built from."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from ..errors import CoverageError, DtypeError, ImprintError, LabelError, ShapeError
from ..objectives import Labels
from ..propagators.layer import borrowed_buffers, primary, rows_are_independent, saved_bytes
from .coverage import Coverage, Sight, classify, look
from .explain import locate
from .options import Inputs
from .rows import batch_dims
from .task import TaskUnit

if TYPE_CHECKING:
    from .agent import LayerAgent
    from .manager import Manager

SPATIAL = re.compile(r"(Conv|ConvTranspose|BatchNorm|InstanceNorm|MaxPool|AvgPool)(\d)d$")


def examine(manager: Manager, inputs: Inputs, y: Tensor | None) -> dict[str, Any]:
    """A record of sizes and classes, of plain values only: enough to build everything, also from a checkpoint.

    Raises:
        CoverageError: an orphan (unless ``strict=False``), a unit never called, weights read past their unit.
        LabelError: the number of classes is needed and cannot be told.
        DtypeError, ShapeError: a unit's output cannot be learned from.
    """
    try:
        sight = look(manager.model, manager.phase, inputs)
        options = manager.options
        coverage = classify(manager.model, manager.phase, sight, options.left_out, options.task_loss is not None)
        if coverage.orphans and options.strict:
            _refuse_orphans(coverage.orphans)
        labels = _labels(manager, sight, y)
        target = () if y is None or labels.soft(y) else tuple(y.shape[1:])
        opened = _opened(manager, coverage, y is not None or labels.num_classes is not None)
        if y is not None and (opened or coverage.task or any(a.open for a in manager.units.values())):
            _try_task_loss(manager, sight, y, labels)
        record: dict[str, Any] = {
            "num_classes": labels.num_classes, "calls": sight.calls, "opened": opened, "target": target,
            "task": coverage.task, "frozen": coverage.frozen, "orphans": coverage.orphans,
        }  # fmt: skip
        return record | _sizes(manager, inputs, sight, y, labels, record)
    finally:
        torch.clear_autocast_cache()
        for agent in manager.units.values():
            agent.sample = None
        if manager.context is not None:
            manager.context.seen = None


def _refuse_orphans(orphans: tuple[str, ...]) -> None:
    owner = orphans[0].rpartition(".")[0]
    add = f"add {owner!r} to layers=" if owner else "move it into a layer of its own and add that to layers="
    few = list(orphans) if len(orphans) < 5 else f"[{', '.join(map(repr, orphans[:4]))}, …]"
    raise CoverageError(
        f"parameter {orphans[0]!r}", "nothing would train it: it is in no unit, and units cut its way to the output",
        expected="every parameter in a unit, or reached by the task loss, or excluded", got=f"{len(orphans)} orphans",
        fix=f"{add}, or leave it as it is: exclude={few} (strict=False allows all)",
    )  # fmt: skip


def _labels(manager: Manager, sight: Sight, y: Tensor | None) -> Labels:
    """How targets are read, with the number of classes settled."""
    labels = manager.options.labels
    if labels.num_classes is None and y is not None and not y.is_floating_point():
        labels = replace(labels, num_classes=classes_of(sight.output, y))
        if labels.num_classes == 1:
            raise LabelError(
                "bind", "the targets are integers, which are read as classes, and the model's output has one channel",
                expected="two classes or more, or floating targets", got=y.dtype,
                fix="y.float() for values; or num_classes= and a task_loss= that reads one channel",
            )  # fmt: skip
    if labels.weight is not None and labels.num_classes not in (None, labels.weight.numel()):
        raise ShapeError(
            "bind", "the class weights do not fit", expected=f"{labels.num_classes} weights", got=labels.weight.numel(),
            fix="Labels(num_classes, weight=...) with one weight a class",
        )  # fmt: skip
    if y is not None:
        labels.check(y)
    elif labels.num_classes is None and any(_hears(a) for a in manager.units.values()):
        what = "whether targets are classes or values cannot be told"
        raise LabelError("bind", what, fix="pass num_classes= to attach, or call manager.bind(x, y)")
    return labels


def _try_task_loss(manager: Manager, sight: Sight, y: Tensor, labels: Labels) -> None:
    """What does not fit the model's output shall fail before any unit has learned."""
    with torch.no_grad():
        TaskUnit(labels, manager.options.task_loss).loss(sight.output, y)


def _hears(agent: LayerAgent) -> bool:
    return agent.rule.local and agent.unit.objective.needs_labels


def _opened(manager: Manager, coverage: Coverage, hears: bool) -> str | None:
    """The unit that learns from the task loss, where nothing else would."""
    if coverage.task or coverage.last is None or any(a.open for a in manager.units.values()):
        return None
    # without targets there is no task, and units that need none learn on their own
    return coverage.last if hears or manager.units[coverage.last].unit.objective.needs_labels else None


def _sizes(
    manager: Manager, inputs: Inputs, sight: Sight, y: Tensor | None, labels: Labels, record: dict[str, Any]
) -> dict[str, Any]:  # fmt: skip
    """What heads and context inputs are made for."""
    names, context = list(sight.outputs), manager.context
    batch = len(y) if y is not None else _batch_of(inputs, sight)

    def run(inputs: Inputs) -> list[Any]:
        sight = look(manager.model, manager.phase, inputs)
        return [primary(sight.output, ""), *(sight.outputs.get(n) for n in names), *([context.seen] if context else ())]

    for name, agent in manager.units.items():
        if agent.unit.objective.needs_synapses and agent.sample is not None and name != record["opened"]:
            _look_at_synapses(agent)
    outputs = [primary(sight.output, ""), *sight.outputs.values(), *([context.seen] if context else ())]
    of_inputs, of_outputs = batch_dims(inputs, outputs, batch, run)
    found = dict(zip(names, of_outputs[1:], strict=False))
    made, opened = sight.outputs, record["opened"]
    specs = {n: _spec(a, made.get(n), found.get(n), batch, n == opened) for n, a in manager.units.items()}
    modes = _context_modes(manager, names, batch, labels, opened)
    for name, spec in specs.items():
        spec["context"] = modes.get(name, "kept")
    leaves = inputs.leaves()
    first = next((i for i, v in enumerate(leaves) if isinstance(v, Tensor) and v.is_floating_point()), None)
    sizes: dict[str, Any] = {
        "specs": specs, "rows": of_inputs, "parts": inputs.parts(), "output_dim": of_outputs[0] or 0,
        "input": () if first is None else _sample(leaves[first], of_inputs[first]),
        "output": _sample(outputs[0], of_outputs[0]),
        "order": [*names, *(n for n in manager.units if n not in sight.outputs)],
    }  # fmt: skip
    if context is not None:
        width = labels.num_classes if labels.num_classes is not None else int(torch.Size(record["target"]).numel())
        context.labels = labels
        sizes["context"] = context.describe(inputs, of_inputs, of_outputs[-1], width)
    return sizes


def _look_at_synapses(agent: LayerAgent) -> None:
    """Let the objective refuse products it cannot learn from, before any unit has learned."""
    assert agent.sample is not None
    devices = [p.device for p in agent.unit.weights() if p.is_cuda][:1]
    try:
        with borrowed_buffers(agent.unit.modules), torch.random.fork_rng(devices), torch.no_grad():
            _, synapses = agent.unit.forward(agent.unit.parameters(), agent.sample)
        agent.unit.objective.check(synapses)
    except ImprintError as error:
        locate(error, f"unit {agent.prop.name!r}")
        raise


def _sample(v: Tensor, dim: int | None) -> tuple[int, ...]:
    """Shape of one sample."""
    return tuple(v.movedim(dim or 0, 0).shape[1:]) if v.dim() else ()


def _spec(agent: LayerAgent, out: Tensor | None, dim: int | None, batch: int, opened: bool) -> dict[str, Any]:
    where, objective = f"unit {agent.prop.name!r}", agent.unit.objective
    learns = agent.learns and not agent.open and not opened
    if learns and out is None:
        raise DtypeError(
            where, "no floating tensor comes out of it", expected="a floating output to learn from",
            fix="leave it out of layers=, or give it the rule imprint.Frozen()",
        )  # fmt: skip
    if learns and dim is None and objective.needs_labels:
        raise ShapeError(
            where, "no dimension of its output is the batch", expected=f"{batch} samples in one dimension",
            got=None if out is None else tuple(out.shape),
            fix="choose the layer around it, whose output has one row a sample",
        )  # fmt: skip
    agent.unit.batch_dim = dim or 0
    return {
        "shape": () if out is None else _sample(out, dim),
        "batch_dim": dim or 0,
        "channels_last": out is not None and _channels_last(agent, out),
        "seen": [tuple(s) for s in agent.seen],
        "changes": (agent.input_changes, agent.output_changes),
    }  # fmt: skip


def _context_modes(
    manager: Manager, order: list[str], batch: int, labels: Labels, opened: str | None
) -> dict[str, str]:  # fmt: skip
    """How each unit learns from its context, in the order in which they are called.

    ``together``: data and context in one product, where rows are independent. ``kept``: the graph of the context pass
    waits for the data. ``again``: the unit is run again; so that behind the largest unit, whose own memory is the peak,
    no more than an eighth of it waits, and where somebody writes into a unit's input. ``held``: the objective takes
    the context's output as a constant, and no graph waits.
    """
    share = min(labels.num_classes or batch, batch) / batch
    modes, waiting = {}, {}
    for name in order:
        agent = manager.units[name]
        objective = agent.unit.objective
        if (
            name == opened
            or agent.sample is None
            or not (agent.learns and objective.needs_context and objective.uses_data)
        ):
            continue
        if objective.held:
            modes[name] = "held"
        elif rows_are_independent(agent.unit, agent.sample):
            modes[name] = "together"
        elif agent.input_changes:
            modes[name] = "again"
        else:
            modes[name], waiting[name] = "kept", saved_bytes(agent.unit, agent.sample)
    largest = max(waiting, key=lambda n: waiting[n], default="")
    behind = list(waiting)[list(waiting).index(largest) + 1 :] if waiting else []
    left = waiting.get(largest, 0) / 8
    for name in reversed(behind):
        left -= waiting[name] * share
        if left < 0:
            modes[name] = "again"
            left += waiting[name] * share
    return modes


def _batch_of(inputs: Inputs, sight: Sight) -> int:
    """The number of samples, without targets: the output's first dimension, if an input has one as long."""
    shapes = [v.shape for v in inputs.leaves() if isinstance(v, Tensor) and v.dim()]
    out = primary(sight.output, "the model's output")
    return len(out) if out.dim() and any(len(out) in s for s in shapes) else shapes[0][0]


def classes_of(output: Any, y: Tensor) -> int:
    """The number of classes, from the width of the output."""
    out = next((v for v in tree_flatten(output)[0] if isinstance(v, Tensor) and v.is_floating_point()), None)
    if out is None or out.dim() < 2:
        got = None if out is None else tuple(out.shape)
        raise LabelError(
            "bind", "the model's output has no classes", expected="an output [batch, classes]", got=got,
            fix="pass num_classes= to attach",
        )  # fmt: skip
    return int(out.shape[-1] if y.shape == out.shape[:-1] else out.shape[1])


def _channels_last(agent: LayerAgent, out: Tensor) -> bool:
    """Tokens ``[B, S, E]`` rather than maps ``[B, C, ...]``.

    A layer for maps of so many dimensions inside says maps, also one derived from torch's. Without any, four dimensions
    are tokens only where a layer makes the last one, as in windowed transformers; three are.
    """
    inside = [m for top in agent.unit.modules for m in top.modules()]
    if out.dim() < 3 or any(_spatial(m) + 2 == out.dim() for m in inside):
        return False
    return out.dim() == 3 or any(_last_width(m) == out.shape[-1] for m in inside)


def _spatial(module: nn.Module) -> int:
    """Of how many dimensions the maps are that a layer is for; 0 if it is for no maps."""
    return max((int(hit[2]) for c in type(module).__mro__ if (hit := SPATIAL.search(c.__name__))), default=0)


def _last_width(module: nn.Module) -> int | None:
    """What a layer makes of the last dimension."""
    if isinstance(module, nn.Linear):
        return module.out_features
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
        return module.normalized_shape[0]
    if isinstance(module, nn.MultiheadAttention):
        return module.embed_dim
    return module.embedding_dim if isinstance(module, nn.Embedding) else None
