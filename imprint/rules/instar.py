"""Grossberg's instar: a weight that follows its input."""

from __future__ import annotations

from dataclasses import dataclass

from ..objectives import Instar as InstarLoss
from ..objectives import Objective
from .rule import Rule, register_rule


@register_rule("instar")
@dataclass(frozen=True)
class Instar(Rule):
    r"""Instar rule: :math:`\Delta w = \mathrm{mean}\,y\,(x - w)`, with :math:`y = \max(\langle w, x\rangle, 0)`.

    Each unit's weight goes towards the inputs it responds to.

    Only weights of linear maps and convolutions learn, each from its own input and its own output, bias included and
    before any activation; other parameters of the unit stay as they are. Rows without a label teach like others.
    On inputs with a mean all units come to that mean: put BatchNorm, without weights, in front of each layer.

    Optimizer: Adam, lr 5e-4.

    Reference: Grossberg, Adaptive pattern classification and universal recoding (1976), part I; as a loss Miconi,
    Hebbian learning with gradients (2021), section 3.
    Differs from the paper: a rectified response; means over rows and positions; Adam.
    """

    def objective(self) -> Objective:
        """Response times the way to the input."""
        return InstarLoss()
