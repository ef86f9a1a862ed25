"""Forward-forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..functional.normalize import rms_normalize
from ..objectives import Goodness, Objective
from ..signals.overlay import LabelOverlay
from ..signals.stream import ContextStream
from .rule import Rule, register_rule


@register_rule("forward_forward")
@dataclass(frozen=True)
class ForwardForward(Rule):
    r"""Forward-forward: goodness :math:`g = \sum_j h_j^2` is to be high for true labels and low for wrong ones.

    :math:`L = \mathrm{softplus}(\theta - g^+) + \mathrm{softplus}(g^- - \theta)`. The label is overlaid on the input's
    first values; each unit sees its input divided by its root mean square, so that only its direction passes on. The
    data pass carries a neutral label; what lies outside the units learns from it. ``predict(x, by="local")`` tries
    every label and sums the goodness of all units.

    The normalisation belongs to the rule: after ``detach`` a model that was trained with it needs it in its own code.

    Args:
        goodness: ``"mean"`` or ``"sum"`` of squares.
        threshold: θ; None is 2 for the mean and the number of features for the sum.
        normalize: divide each unit's input by its root mean square.

    Optimizer: Adam, lr 5e-4.

    Reference: Hinton, The Forward-Forward Algorithm (2022), sections 2 and 3.3.
    Differs from the paper: normalisation to mean square 1, not length 1; positives and negatives share a batch.
    """

    goodness: str = "mean"
    threshold: float | None = None
    normalize: bool = True

    def __post_init__(self) -> None:
        self.objective()

    def objective(self) -> Objective:
        """Goodness of the context stream's two halves."""
        return Goodness(self.goodness, self.threshold)

    def entry(self) -> Callable[[Tensor], Tensor] | None:
        """Normalisation to mean square one."""
        return rms_normalize if self.normalize else None

    def stream(self) -> ContextStream:
        """Positives and negatives."""
        return LabelOverlay()
