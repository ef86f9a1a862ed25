"""Direct feedback alignment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..objectives import ErrorFeedback, Objective
from .rule import Rule, register_rule


@register_rule("dfa")
@dataclass(frozen=True)
class DFA(Rule):
    r"""Direct feedback alignment: :math:`\delta_l = (B_l^\top e) \odot f'`, with the error e of the output.

    Each unit gets the error straight from the output, through its own fixed random feedback: its loss is
    :math:`\langle h, \mathrm{sg}(e B)\rangle`. It can learn only once the output is known, so its graph waits for that:
    of memory it takes what backpropagation takes. The output unit learns from the task loss. Information, not gradient,
    crosses the boundaries. f' is that of the activation inside the unit: where ``layers=`` names a layer without it,
    there is none (``layers=None`` joins them).

    Optimizer: Adam, lr 5e-4.

    Reference: Nokland, Direct Feedback Alignment Provides Learning in Deep Neural Networks (2016), section 3.
    Differs from the paper: Adam; B is uniform by fan; a unit of several layers learns them by backpropagation within.
    """

    allow_cross: ClassVar[bool] = True

    def objective(self) -> Objective:
        """Random feedback of the error."""
        return ErrorFeedback()


@register_rule("sdfa")
@dataclass(frozen=True)
class SDFA(Rule):
    r"""Direct feedback alignment with the error's sign: :math:`\delta_l = (B_l^\top \mathrm{sign}(e)) \odot f'`.

    As :class:`DFA`, of which it sends one bit for each number of the error. That bit never gets smaller, so rectifiers
    without normalisation in front die of a constant drift; put BatchNorm before them.

    Optimizer: Adam, lr 5e-4.

    Reference: Frenkel, Lefebvre & Bol, Learning without feedback (2021), section 2.2.
    Differs from the paper: Adam; the mean over labelled rows, not the sum; B is uniform by fan.
    """

    allow_cross: ClassVar[bool] = True

    def objective(self) -> Objective:
        """Random feedback of the error's sign."""
        return ErrorFeedback(sign=True)
