"""Direct random target projection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..objectives import Objective, TargetFeedback
from .rule import Rule, register_rule


@register_rule("drtp")
@dataclass(frozen=True)
class DRTP(Rule):
    r"""Direct random target projection: :math:`L = \langle h, \mathrm{sg}(Y B)\rangle`, B fixed and random.

    Its gradient with respect to h is Y B, so the update of a unit is :math:`(B^\top Y \odot f'(z))\,x^\top`. The
    nonlinearity must be part of the unit (``layers=None`` joins it); a bounded one (tanh) keeps the outputs bounded.

    In a graph each module gets the target at each of its emissions, unless it declares a data objective.

    Optimizer: Adam, lr 5e-4.

    Reference: Frenkel et al., Learning without feedback: Direct Random Target Projection (2021).
    Differs from the paper: Adam, not NAG; batch mean, not sum; the output unit learns from the task loss, as there.
    """

    worlds: ClassVar[tuple[str, ...]] = ("layers", "graph")

    def objective(self) -> Objective:
        """Random feedback of the targets."""
        return TargetFeedback()

    def filling(self) -> str:
        """The same objective on each module's output."""
        return "ce"
