"""Information propagation."""

from __future__ import annotations

from dataclasses import dataclass

from ..objectives import InfoPro as Propagation
from ..objectives import Objective
from .rule import Rule, register_rule


@register_rule("infopro")
@dataclass(frozen=True)
class InfoPro(Rule):
    r"""Information propagation: :math:`L = \lambda_1\,\mathrm{BCE}(d(h), x) + \lambda_2\,\mathrm{CE}(a(h), y)`.

    Each unit has a decoder d of the model's input and a small classifier a. Early units are to keep the input, so that
    nothing is lost that later ones could use; late ones are to say the label. Both weights go in a straight line from
    the unit that is called first to the last that learns so; a single unit has the first one's. Logits of all
    classifiers add up in ``manager.predict(x, by="local")``.

    Args:
        reconstruct: :math:`\lambda_1` at the first unit.
        reconstruct_last: :math:`\lambda_1` at the last unit.
        predict: :math:`\lambda_2` at the first unit.
        predict_last: :math:`\lambda_2` at the last unit.

    Optimizer: Adam, lr 5e-4.

    Reference: Wang et al., Revisiting Locally Supervised Learning: an Alternative to End-to-end Training (2021),
    sections 3.2 and 4; the weights are those of ResNet-110 in 16 modules on CIFAR-10.
    Differs from the paper: the image is scaled to 0..1 by the smallest and largest value in its batch, as nothing is
    known of its standardisation; the classifier's loss is cross entropy, not a contrast; its convolution always
    halves the size and doubles the channels; batch normalisation counts labelled rows alone; outputs or inputs that
    are no maps have a linear decoder and no convolution in the classifier; Adam, not SGD.
    """

    reconstruct: float = 5.0
    reconstruct_last: float = 0.5
    predict: float = 0.0
    predict_last: float = 1.0

    def __post_init__(self) -> None:
        self.objective()

    def objective(self) -> Objective:
        """Decoder and classifier of one unit."""
        return Propagation(self.reconstruct, self.reconstruct_last, self.predict, self.predict_last)
