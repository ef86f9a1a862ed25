"""Modules of a graph predict what comes next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .rule import Rule, register_rule


@register_rule("predict_input")
@dataclass(frozen=True)
class PredictInput(Rule):
    r"""Each module without a data objective predicts its sources' next values: :math:`L = \|P h_t - s_{t+1}\|^2`.

    One linear map P a source, on the values before their projection; mean over rows and elements. Where a source is a
    module, its next value comes a tick later, and so does the update. Needs no labels.

    Optimizer: Adam, lr 5e-4.

    Reference: predictive learning as in Rao & Ballard, Predictive coding in the visual cortex (1999), one step ahead.
    Differs from the paper: one prediction in time, no inference loop.
    """

    worlds: ClassVar[tuple[str, ...]] = ("graph",)

    def filling(self) -> str:
        """Prediction."""
        return "predict"
