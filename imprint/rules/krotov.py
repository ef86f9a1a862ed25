"""Competing hidden units: the strongest learns, another one is pushed away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..objectives import Objective
from ..objectives import Ranked as Ranked
from .norm_scaled import NormScaled
from .rule import Rule, register_rule


@register_rule("krotov")
@dataclass(frozen=True)
class Krotov(Rule):
    r"""Krotov and Hopfield's rule: :math:`\Delta w = \mathrm{mean}\,g\,(x - u\,w)`, :math:`u = \langle w, x\rangle`.

    g is 1 for the unit that responds most to an input, :math:`-\Delta` for the k-th and 0 for the others; of a
    convolution channels compete at each position, within their group. Weights of units that win come to length one.

    Only weights of linear maps and convolutions learn, each from its own input and its own output, bias included and
    before any activation; other parameters of the unit stay as they are. Rows without a label teach like others.
    On inputs with a mean all units come to that mean: put BatchNorm, without weights, in front of each layer.

    Args:
        k: rank of the unit that is pushed away.
        delta: how much.
        lr: of a step, of which the layer's largest change is one; see :class:`imprint.rules.NormScaled`.

    Optimizer: NormScaled, lr 0.002.

    Reference: Krotov & Hopfield, Unsupervised learning by competing hidden units (2019), equations 3 and 9.
    Differs from the paper: the norm is p = 2 and weights come to length R = 1; a constant lr, not one that falls from
    0.02 to zero; what lies outside the units learns at the same time, with Adam, lr 5e-4.
    """

    documented: ClassVar[tuple[type[Optimizer], float]] = (NormScaled, 0.002)
    k: int = 2
    delta: float = 0.4
    lr: float = 0.002

    def __post_init__(self) -> None:
        self.objective()
        self.optimizer([torch.ones(1)])

    def objective(self) -> Objective:
        """Changes by rank."""
        return Ranked(self.k, self.delta)

    def optimizer(self, params: list[Tensor]) -> Optimizer:
        """Steps whose largest change is lr."""
        return NormScaled(params, self.lr, power=0.0)

    def task_optimizer(self, params: list[Tensor]) -> Optimizer:
        """Adam: the task loss is no Hebbian change."""
        return super().optimizer(params)
