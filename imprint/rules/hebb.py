"""What fires together wires together."""

from __future__ import annotations

from dataclasses import dataclass

from ..objectives import Hebb as HebbLoss
from ..objectives import Objective
from .rule import Rule, register_rule


@register_rule("hebb")
@dataclass(frozen=True)
class Hebb(Rule):
    r"""Hebb's rule: :math:`\Delta w = \mathrm{mean}\,u\,x`, with :math:`u = \langle w, x\rangle`.

    Only weights of linear maps and convolutions learn, each from its own input and its own output, bias included and
    before any activation; other parameters of the unit stay as they are. Rows without a label teach like others.
    On inputs with a mean all units come to that mean: put BatchNorm, without weights, in front of each layer.
    Nothing is forgotten, so weights grow without bound: for a few steps, with weight decay, or see :class:`Oja`.

    Optimizer: Adam, lr 5e-4.

    Reference: Hebb, The Organization of Behavior (1949); as a loss Miconi, Hebbian learning with gradients (2021),
    section 3.
    Differs from the paper: means over rows and positions; Adam, which takes the size out of the change.
    """

    def objective(self) -> Objective:
        """Output times input."""
        return HebbLoss()
