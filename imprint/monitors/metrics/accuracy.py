"""What a unit alone would classify right."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from ...credit import Tree
from ...objectives import hits
from ...propagators import Propagator
from ..metric import Metric, register_monitor


@runtime_checkable
class Scoring(Protocol):
    """A unit that says something about the label."""

    def scores(self, out: Tree, x: Tree, y: Tree) -> Tensor | None:
        """``[B, num_classes]``, or None."""


@register_monitor("accuracy")
class UnitAccuracy(Metric):
    """Share of labelled training samples whose class has the unit's highest score; units without scores are left out.

    The scores are those of before the unit's step: logits of its head, or similarity with each class's context. For
    ``"task"`` they are the model's output.
    """

    def learned(self, prop: Propagator, x: Tree, out: Tree, y: Tree, loss: Tensor) -> None:
        """Count the hits of one call."""
        if self.labels is None or not isinstance(prop.unit, Scoring):
            return
        scores = prop.unit.scores(out, x, y)
        counted = None if scores is None or y.y is None else hits(scores, y.y, self.labels)
        if counted is not None:
            self.add(prop.name, *counted)
