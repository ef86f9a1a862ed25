"""Self-contrastive forward-forward."""

from __future__ import annotations

from dataclasses import dataclass

from ..objectives import Objective, PairGoodness
from ..signals.pairs import PairStream
from ..signals.stream import ContextStream
from .forward_forward import ForwardForward
from .rule import register_rule


@register_rule("scff")
@dataclass(frozen=True)
class SCFF(ForwardForward):
    r"""Self-contrastive forward-forward: high goodness for a sample with itself, low for it with another one.

    :math:`L = \mathrm{softplus}(\theta - g(x_k, x_k)) + \mathrm{softplus}(g(x_k, x_n) - \theta)`, with
    :math:`g = \mathrm{mean}_j h_j^2`. No labels: what lies outside the units, or else the unit nearest to the output,
    reads the classes off.

    Args:
        goodness: ``"mean"`` or ``"sum"`` of squares.
        threshold: θ; None is 2 for the mean and the number of features for the sum.
        normalize: divide each unit's input by its root mean square.

    Optimizer: Adam, lr 5e-4.

    Reference: Chen et al., Self-Contrastive Forward-Forward Algorithm (2025).
    Differs from the paper: a pair is added, not put side by side; all units learn at once, not a few epochs each;
    normalisation to mean square 1.
    """

    def objective(self) -> Objective:
        """Goodness of the context stream's two halves."""
        return PairGoodness(self.goodness, self.threshold)

    def stream(self) -> ContextStream:
        """Pairs of samples."""
        return PairStream()
