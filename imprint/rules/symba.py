"""Forward-forward with one loss for both streams."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..functional.normalize import rms_normalize
from ..objectives import GoodnessGap, Objective
from ..signals.overlay import LabelOverlay
from ..signals.stream import ContextStream
from .rule import Rule, register_rule


@register_rule("symba")
@dataclass(frozen=True)
class SymBa(Rule):
    r"""SymBa: :math:`L = \mathrm{softplus}(-\alpha (g^+ - g^-))`, goodness :math:`g = \mathrm{mean}_j\, h_j^2`.

    As forward-forward, but a sample's goodness with its true label competes with that with a wrong one, so that there
    is no threshold for both to be away from. Streams, normalisation and ``predict(x, by="local")`` are those of
    :class:`imprint.rules.ForwardForward`.

    Args:
        goodness: ``"mean"`` or ``"sum"`` of squares.
        alpha: how steep.
        normalize: divide each unit's input by its root mean square.

    Optimizer: Adam, lr 5e-4.

    Reference: Lee & Song, SymBa: Symmetric Backpropagation-Free Contrastive Learning (2023), section 3.
    Differs from the paper: the label is overlaid on the input, not on a random pattern of its class beside it;
    normalisation to mean square 1; the data pass carries a neutral label; :math:`\alpha = 4` is unconfirmed.
    """

    goodness: str = "mean"
    alpha: float = 4.0
    normalize: bool = True

    def __post_init__(self) -> None:
        self.objective()

    def objective(self) -> Objective:
        """The gap between the context stream's two halves."""
        return GoodnessGap(self.goodness, self.alpha)

    def entry(self) -> Callable[[Tensor], Tensor] | None:
        """Normalisation to mean square one."""
        return rms_normalize if self.normalize else None

    def stream(self) -> ContextStream:
        """Positives and negatives."""
        return LabelOverlay()
