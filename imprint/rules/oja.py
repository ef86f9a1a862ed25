"""A weight that keeps its length."""

from __future__ import annotations

from dataclasses import dataclass

from ..objectives import Objective
from ..objectives import Oja as OjaLoss
from .rule import Rule, register_rule


@register_rule("oja")
@dataclass(frozen=True)
class Oja(Rule):
    r"""Oja's rule: :math:`\Delta w = \mathrm{mean}\,u\,(x - u\,w)`, with :math:`u = \langle w, x\rangle`.

    Under plain gradient descent w comes to length one along the first principal component of its input; all units of a
    layer come to the same one.

    Only weights of linear maps and convolutions learn, each from its own input and its own output, bias included and
    before any activation; other parameters of the unit stay as they are. Rows without a label teach like others.
    On inputs with a mean all units come to that mean: put BatchNorm, without weights, in front of each layer.

    Optimizer: Adam, lr 5e-4.

    Reference: Oja, A simplified neuron model as a principal component analyzer (1982), equation 3; as a loss Miconi,
    Hebbian learning with gradients (2021), section 3.
    Differs from the paper: means over rows and positions; Adam.
    """

    def objective(self) -> Objective:
        """Output times input, less what keeps the length."""
        return OjaLoss()
