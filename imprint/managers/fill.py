"""What a graph module without a data objective learns from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from ..graph import Graph, Module
from ..graph.width import classes_of
from ..objectives import BatchKey, Labels, Objective, PortOutput, ShiftedInput, Spec, Term, View, row_mean
from ..rules import Rule


class Prediction(Objective):
    r"""One linear map of the output to a source's next value: :math:`\|P h - s\|^2`, mean over rows and elements."""

    rowwise, needs_labels = True, False

    def bind(self, spec: Spec, labels: Labels) -> None:
        """Make P."""
        super().bind(spec, labels)
        width = torch.Size(spec.target).numel()
        self.map = nn.Linear(spec.features, width, device=spec.device, dtype=spec.dtype)

    def forward(self, view: View) -> Tensor:
        """The mean square error of the prediction."""
        y = view.context.y
        assert y is not None
        return row_mean((self.map(view.h.flatten(1)) - y.to(view.h.dtype).flatten(1)).square().mean(1), view.valid)


@dataclass(frozen=True)
class LabelTarget:
    """Where the labels of a graph are: ``batch[key]``."""

    key: str
    labels: Labels


def label_target(graph: Graph, num_classes: int | None, batch: Mapping[str, Any] | None) -> LabelTarget | None:
    """The target of the first declared cross entropy; else the batch's integer ``"y"``; None without labels."""
    for module in graph.modules_by_name.values():
        for term in module.objectives:
            if term.kind == "ce" and isinstance(term.target, BatchKey) and term.labels is not None:
                declared = term.labels
                return LabelTarget(
                    term.target.key, Labels(declared.num_classes, declared.weight, declared.ignore_index)
                )
    y = None if batch is None else batch.get("y")
    if not isinstance(y, Tensor) or y.is_floating_point():
        return LabelTarget("y", Labels(num_classes)) if num_classes is not None else None
    return LabelTarget("y", Labels(num_classes or classes_of(y, "attach")))


def fill(graph: Graph, module: Module, rule: Rule, target: LabelTarget | None) -> dict[str, Term]:
    """Terms for one module by the rule's filling, ready to learn; empty for None.

    Raises:
        ArgumentError: the rule needs labels, and neither the graph nor the batch has any.
    """
    kind = rule.filling()
    if kind == "auto":
        kind = "ce" if target is not None else "predict"
    if kind is None:
        return {}
    if kind == "predict":
        return _predictions(graph, module)
    if target is None or target.labels.num_classes is None:
        raise ArgumentError(
            f"rule {rule.name!r}", f"module {module.name!r} needs labels, and the graph has no label target",
            fix="attach(graph, ..., num_classes=N) with labels batch['y'], declare a ce(), or use 'predict_input'",
        )  # fmt: skip
    objective = rule.objective()
    assert objective is not None
    name = "contrast" if kind == "contrast" else "head"
    term = Term(name, name, objective, target=BatchKey(target.key), labels=target.labels)
    _bind(graph, module, term, ())
    return {f"{module.name}.{name}": term}


def _predictions(graph: Graph, module: Module) -> dict[str, Term]:
    made = {}
    for edge in module.incoming:
        port = edge.source
        size = graph.sizes[port.key]
        key = port.key.split(".", 1)[1]
        next_value = (
            ShiftedInput(port.module, 1) if port.module.name in graph.sources else PortOutput(port.module, key, 1)
        )
        term = Term(f"predict_{edge.name}", "predict", Prediction(), target=next_value)
        _bind(graph, module, term, (size,) if isinstance(size, int) else tuple(size))
        made[f"{module.name}.predict_{edge.name}"] = term
    return made


def _bind(graph: Graph, module: Module, term: Term, target: tuple[int, ...]) -> None:
    assert graph.known is not None
    size = graph.sizes[f"{module.name}.{term.on}"]
    shape = (size,) if isinstance(size, int) else tuple(size)
    spec = Spec(shape, 0, graph.dtype, torch.device(graph.known["device"]), target)
    term.objective.bind(spec, term.labels or Labels())
