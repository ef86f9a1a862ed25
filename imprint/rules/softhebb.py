"""SoftHebb: soft winner-take-all, without labels and without feedback."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..objectives import Objective, SoftCompetition
from .norm_scaled import NormScaled
from .rule import Rule, register_rule


@register_rule("softhebb")
@dataclass(frozen=True)
class SoftHebb(Rule):
    r"""SoftHebb: :math:`\Delta w_i = \sum y_i\,(x - u_i\,w_i)`, with :math:`u = Wx`,
    :math:`p = \mathrm{softmax}(\beta u)` and :math:`y_i = p_i` for the strongest unit, :math:`-p_i` for the others.

    Of a convolution channels compete at each position, within their group. The change is divided by its largest entry,
    and each unit steps by :math:`\eta\,|\,\|w_i\| - 1|^{q}`, so that it settles at length one; see
    :class:`imprint.rules.NormScaled`. What lies outside the units learns from the task loss.

    Only weights of linear maps and convolutions learn, each from its own input and its own output, bias included and
    before any activation; other parameters of the unit stay as they are. Rows without a label teach like others.
    On inputs with a mean all units come to that mean: put BatchNorm, without weights, in front of each layer.

    Published networks have no bias, BatchNorm without weights in front of each convolution, weights drawn from
    :math:`N(0, 1) \cdot 25 / \sqrt{\mathrm{fan\_in}}`, reflected borders and :class:`imprint.models.Triangle` behind.
    One epoch with 10 samples a batch; :math:`\beta, \eta` = 1, 0.08; 0.65, 0.005; 0.25, 0.01 for three layers.

    Args:
        beta: how sharply units compete.
        lr: :math:`\eta`.
        power: q.

    Optimizer: NormScaled, lr 0.08.

    Reference: Journe, Garcia Rodriguez, Guo & Moraitis, Hebbian Deep Learning Without Feedback (2023), section 3.
    Differs from the paper: what lies outside the units learns at the same time, with Adam, lr 5e-4; grouped
    convolutions are scaled by one largest entry.
    """

    documented: ClassVar[tuple[type[Optimizer], float]] = (NormScaled, 0.08)
    beta: float = 1.0
    lr: float = 0.08
    power: float = 0.5

    def __post_init__(self) -> None:
        self.objective()
        self.optimizer([torch.ones(1)])

    def objective(self) -> Objective:
        """Competition of a layer's units."""
        return SoftCompetition(self.beta)

    def optimizer(self, params: list[Tensor]) -> Optimizer:
        """Steps by each unit's distance from length one."""
        return NormScaled(params, self.lr, self.power)

    def task_optimizer(self, params: list[Tensor]) -> Optimizer:
        """Adam: the task loss is no Hebbian change."""
        return super().optimizer(params)
