"""Cascaded forward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from ..errors import ArgumentError
from ..objectives import Head, LeastSquares, Objective, View
from ..objectives.heads import head_loss
from .rule import Rule, register_rule

LOSSES = ("mse", "ce")


class ProbabilityHead(Head):
    """A linear head without bias that starts with ones, and whose scores are probabilities."""

    def bind(self, *sizes: object) -> None:
        """All weights one."""
        super().bind(*sizes)  # type: ignore[arg-type]
        nn.init.ones_(self.linear.weight)

    def logits(self, view: View) -> Tensor:
        """``[B, C]``."""
        return super().scores(view)

    def forward(self, view: View) -> Tensor:
        """Cross entropy, or the mean square error for values."""
        return head_loss(self.labels, self.logits(view), view)

    def scores(self, view: View) -> Tensor:
        """Softmax of the logits."""
        out = self.logits(view)
        return out if self.labels.num_classes is None else out.softmax(1)


@register_rule("cafo")
@dataclass(frozen=True)
class CaFo(Rule):
    r"""Cascaded forward: units keep their random weights, each has a linear head, :math:`W = (X^\top X)^{-1} X^\top Y`.

    Heads see their unit's output, average-pooled. ``manager.predict(x, by="local")`` sums the heads' probabilities.

    Args:
        loss: ``"mse"``: the closed form, exact after every batch; ``"ce"``: cross entropy by descent, from W = 1.
        ridge: λ of the closed form, added to X'X.
        limit: most features after pooling.

    Optimizer: Adam, lr 5e-4.

    Reference: Zhao et al., The Cascaded Forward Algorithm for Neural Network Training (2023), section 3.
    Differs from the paper: any model's units are the blocks, with the model's own start; a ridge; features are pooled;
    cross entropy by Adam on batches; no sparsemax; the unit nearest to the output learns from the task loss.
    """

    trains_weights: ClassVar[bool] = False
    loss: str = "mse"
    ridge: float = 1e-3
    limit: int = 2048

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ArgumentError(
                "rule 'cafo'", "unknown loss=", expected=" | ".join(LOSSES), got=repr(self.loss), fix="loss='mse'"
            )
        LeastSquares(self.ridge, self.limit)

    def objective(self) -> Objective:
        """A head on random features."""
        return LeastSquares(self.ridge, self.limit) if self.loss == "mse" else ProbabilityHead(False, limit=self.limit)
