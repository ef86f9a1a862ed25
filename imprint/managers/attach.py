"""Give every layer of an existing model its own objective and optimizer."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import nn
from torch.amp import GradScaler

from ..credit import Credit
from ..errors import ArgumentError
from ..graph import Graph
from ..monitors.metric import Metric, make_metrics
from ..objectives import Labels, Objective
from ..propagators import Propagator
from ..propagators.layer import LayerUnit
from ..protos.auto import Auto
from ..rules import resolve
from .agent import LayerAgent, Phase
from .assignment import Assignment, Layers, assign, in_blocks
from .attach_checks import (
    check_builders,
    check_layer,
    check_model,
    check_numbers,
    check_options,
    check_scaler,
    check_update,
    refuse,
)
from .attach_graph import attach_graph
from .context import context_pass
from .coverage import check_disjoint
from .intercept import Attached, Follower, detach, intercept
from .manager import Manager
from .options import OptimizerBuilder, Options
from .schedules import SchedulerBuilder
from .task import TaskLoss
from .tree import excluded


def attach(
    model: Any,
    rule: Assignment | None = None,
    *,
    credit: Credit | None = None,
    update: Any = Auto,
    block_size: int = 1,
    scaler: GradScaler | None = None,
    num_classes: int | None = None,
    labels: Labels | None = None,
    layers: Layers = None,
    exclude: str | Iterable[str] = (),
    optimizer: OptimizerBuilder | None = None,
    scheduler: SchedulerBuilder | None = None,
    grad_clip: float | None = None,
    accumulate: int = 1,
    signal: nn.Module | None = None,
    context_at: str | None = None,
    task_loss: TaskLoss | None = None,
    monitors: str | Iterable[str | Metric] = ("loss",),
    strict: bool = True,
    example: Any = None,
    **options: Any,
) -> Any:
    """Make every layer of `model` learn by `rule` while data flows forward; the model itself stays as it is.

    Units are the layers that `rule` applies to. What enters and leaves a unit is cut from the graph; each learns from
    its own objective with its own optimizer, inside ``manager.step(x, y)`` and nowhere else. Parameters outside all
    units that the output depends on learn from the task loss; if there are none, the unit nearest to the output does.

    With a :class:`imprint.Graph` every module learns while the graph rolls forward (rules ``local``, ``local_ce``,
    ``predict_input``, ``sigprop``, ``backprop``): see :class:`imprint.managers.GraphManager`.

    Args:
        model: any torch model that is not wrapped by DDP, ``torch.compile`` or TorchScript; or a graph.
        rule: a name (see ``imprint.rules.registry``), a Rule, or ``{pattern of module paths: rule}``; ``"sigprop"`` for
            models and ``"local"`` for graphs by default.
        credit: of a graph: ``Instant()``, ``ETrace()``, ``Window(k)`` or ``Unrolled()``; by default the rule's:
            ``Instant()``, and ``Unrolled()`` for ``"backprop"``.
        update: of a graph: ``"tick"``, a number of ticks, ``"rollout"``; Auto is the credit's own. Of a model, with
            equal numbers: ``"immediate"`` steps each unit in the forward, which takes the least memory (Auto);
            ``"deferred"`` finds gradients in the forward and steps all units after it; ``"summed"`` differentiates the
            sum of all losses in one backward pass after it.
        scaler: a ``torch.amp.GradScaler`` for steps under float16 autocast: losses are scaled up before they are
            differentiated, a unit whose gradient overflows rests in that step, and the scale follows.
        block_size: that many neighbouring layers of one rule, under one parent, are one unit with one local loss.
        num_classes: of the labels; None reads it off the model's output, or means regression for floating targets.
        labels: the same with class weights, ``ignore_index`` and label smoothing.
        layers: a regex (matched in full; the outermost match wins), a list of paths, ``f(path, module) -> bool``; None
            is the direct children with parameters, containers opened, where in a Sequential what has no parameters, and
            normalisation, joins the layer before it.
        exclude: regex or regexes of names of modules or parameters that nothing shall train.
        optimizer: ``f(parameters of one unit) -> Optimizer`` (or None: the unit does not learn); by default the rule's.
        scheduler: ``f(optimizer) -> scheduler``, one a unit; stepped by ``manager.step_schedulers()``.
        grad_clip: largest gradient norm of one unit.
        accumulate: update every that many batches with the mean gradient.
        signal: map ``[R, classes] -> [R, numel of an input]`` that makes the context inputs and learns; for sigprop.
        context_at: path of the module whose output the context stream replaces; for token inputs.
        task_loss: ``f(output, y)``; cross entropy for labels and mean square error for values by default.
        monitors: metrics per unit, by name (``imprint.monitors.registry``) or as objects.
        strict: refuse parameters that nothing trains.
        example: an input (tensor, tuple or dict) to bind with at once; else the first step binds.
        options: of the rule, where it is given by name: ``attach(model, "sigprop", temperature=0.2)``.

    Raises:
        UnknownNameError: no such rule, option, layer or monitor; with near misses.
        CoverageError: nested units, shared weights, orphans, a unit the model never calls.
        StateError: the model is attached already.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> manager = attach(model, "local_ce")
    >>> manager.step(torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])).shape
    torch.Size([5, 3])
    >>> type(manager.detach()) is nn.Sequential
    True
    """
    if isinstance(model, Graph):
        given = {
            "labels": labels, "layers": layers, "exclude": exclude or None, "signal": signal, "context_at": context_at,
            "task_loss": task_loss, "example": example, "accumulate": None if accumulate == 1 else accumulate,
            "strict": None if strict else strict, "block_size": None if block_size == 1 else block_size,
            "scaler": scaler,
        }  # fmt: skip
        refuse("attach to a graph", given, "they are for layers of a model")
        made_rule = resolve(rule or "local", **options)  # type: ignore[arg-type]
        check_numbers(accumulate=1, grad_clip=grad_clip, num_classes=num_classes)
        check_builders(optimizer=optimizer, scheduler=scheduler)
        return attach_graph(
            model, made_rule, credit=credit, update=update, num_classes=num_classes, optimizer=optimizer,
            scheduler=scheduler, grad_clip=grad_clip, metrics=make_metrics(monitors),
        )  # fmt: skip
    rule = "sigprop" if rule is None else rule
    check_model(model)
    refuse("attach to layers", {"credit": credit}, "they are for graphs")
    check_update(update)
    check_scaler(scaler)
    own = {k for k, p in inspect.signature(attach).parameters.items() if p.kind is p.KEYWORD_ONLY}
    check_options(rule, options, own)
    check_numbers(accumulate=accumulate, grad_clip=grad_clip, num_classes=num_classes, block_size=block_size)
    check_builders(optimizer=optimizer, scheduler=scheduler, task_loss=task_loss)
    if signal is not None and not isinstance(signal, nn.Module):
        example_signal = "signal=nn.Linear(num_classes, numel of the input)"
        raise ArgumentError("attach", "signal= is no module", got=repr(signal), fix=example_signal)
    if labels is not None and not isinstance(labels, Labels):
        fix = "num_classes= for their number alone, or labels=imprint.Labels(10, label_smoothing=0.1)"
        raise ArgumentError("attach", "labels= is no imprint.Labels", got=repr(labels).split("\n")[0], fix=fix)
    if labels is not None and num_classes is not None and labels.num_classes not in (None, num_classes):
        raise ArgumentError(
            "attach", "num_classes contradicts labels", expected=labels.num_classes, got=num_classes,
            fix="leave num_classes= out",
        )  # fmt: skip
    meaning = labels or Labels()
    if num_classes is not None:
        meaning = replace(meaning, num_classes=num_classes)
    metrics = make_metrics(monitors)
    left_out = excluded(model, exclude)
    assigned = in_blocks(assign(model, rule, layers, left_out, **options), block_size)
    for each in assigned:
        if "layers" not in each.rule.worlds:
            fix = "build an imprint.Graph, or choose another rule"
            raise ArgumentError("attach", f"rule {each.rule.name!r} is for graphs", got=type(model).__name__, fix=fix)
        check_layer(model, each.paths)
    context = context_pass(assigned, signal, meaning, context_at)
    modules, phase = dict(model.named_modules(remove_duplicate=False)), Phase()
    followers: dict[int, Follower] = {}
    for each in assigned:
        chain = [(path, modules[path]) for path in each.paths]
        objective = each.rule.objective() or Objective()
        unit = LayerUnit(each.paths[0], chain, objective, each.rule.entry(), each.rule.operations())
        unit.left_out, unit.still = left_out, not each.rule.trains_weights
        prop = Propagator(unit, each.paths[0], credit=each.rule.credit())
        passing = [followers.setdefault(id(m), Follower()) for _, m in chain[1:]]
        phase.agents.append(LayerAgent(phase, unit, prop, each.rule, passing))
    check_disjoint(model, phase.agents)
    made = Options(
        meaning, optimizer, scheduler, grad_clip, left_out, task_loss, strict, accumulate, signal, context_at,
        "immediate" if update is Auto else update, scaler,
    )  # fmt: skip
    phase.keeps = made.update == "summed"
    manager = Manager(model, phase, made, context, metrics)
    try:
        for agent in phase.agents:
            _intercept(agent, followers)
        if context is not None:
            context.attach(model, phase)
        if example is not None:
            manager.bind(example)
    except BaseException:
        detach(model)
        raise
    return manager


def _intercept(agent: LayerAgent, followers: dict[int, Follower]) -> None:
    first, *rest = agent.unit.modules
    intercept(first, agent)
    for module in rest:
        if not isinstance(module, Attached):
            intercept(module, followers[id(module)])
