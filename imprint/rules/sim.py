"""Similarity matching alone."""

from __future__ import annotations

from dataclasses import dataclass

from ..objectives import Objective, SimilarityMatching
from .rule import Rule, register_rule


@register_rule("sim")
@dataclass(frozen=True)
class Sim(Rule):
    r"""Similarity matching: :math:`L = \mathrm{mean}_{ij}(S(C h)_{ij} - S(Y)_{ij})^2`, without a local classifier.

    Args:
        project: compare a learned map C of the output; else the output itself.

    Optimizer: Adam, lr 5e-4.

    Reference: Nokland & Eidnes, Training Neural Networks with Local Error Signals (2019), section 3.1.
    Differs from the paper: nothing.
    """

    project: bool = True

    def objective(self) -> Objective:
        """Matching against the labels."""
        return SimilarityMatching(self.project)
