"""Local prediction and similarity matching."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ArgumentError
from ..objectives import Head, Mix, Objective, SimilarityMatching
from .rule import Rule, register_rule


@register_rule("predsim")
@dataclass(frozen=True)
class PredSim(Rule):
    r"""Local prediction and similarity matching.

    :math:`L = (1-\beta)\,\mathrm{CE} + \beta\,\mathrm{mean}_{ij}(S(Ch)_{ij}-S(Y)_{ij})^2`

    Args:
        beta: weight of the similarity; 0.99 in the paper (a hundred times the prediction's).
        limit: most features of the head after pooling.

    Optimizer: Adam, lr 5e-4.

    Reference: Nokland & Eidnes, Training Neural Networks with Local Error Signals (2019), section 3.3.
    Differs from the paper: dropout inside a unit comes before the loss; the output's loss is not scaled by 1 - beta
    (Adam does not notice).
    """

    beta: float = 0.99
    limit: int = 4096

    def __post_init__(self) -> None:
        if isinstance(self.beta, bool) or not isinstance(self.beta, int | float) or not 0 <= self.beta <= 1:
            raise ArgumentError(
                "rule 'predsim'", "beta is a share", expected="0..1", got=repr(self.beta), fix="beta=0.99"
            )
        self.objective()

    def objective(self) -> Objective:
        """The head first: it speaks for the unit."""
        return Mix((1 - self.beta, Head(limit=self.limit)), (self.beta, SimilarityMatching()))
