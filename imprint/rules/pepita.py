"""Error-driven input modulation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..errors import ArgumentError
from ..functional.backward import StraightThrough
from ..objectives import Objective, Perturbation
from ..signals.error import ErrorInput
from ..signals.stream import ContextStream
from .rule import Rule, register_rule


@register_rule("pepita")
@dataclass(frozen=True)
class Pepita(Rule):
    r"""Present the error to perturb the input: :math:`\Delta W_l = -\eta (h_l - \tilde h_l)\,\tilde h_{l-1}^\top`.

    A first pass gives the outputs h and the error :math:`e = \mathrm{softmax}(z) - Y`; a second one, on
    :math:`x + F e` with the same dropout masks, gives :math:`\tilde h`. Units learn in the second pass, the output unit
    from its own error there. Activations inside units let gradients through unchanged, as the rule has no derivative of
    them. The model's output is that of the first pass; other rules in the model learn in the second one as well, from
    the changed input.

    Args:
        scale: of F, which is uniform in :math:`\pm\mathrm{scale}\sqrt{6/n}` for n inputs.

    Optimizer: Adam, lr 5e-4.

    Reference: Dellaferrera & Kreiman, Error-driven Input Modulation (2022), algorithm 1.
    Differs from the paper: Adam; a unit of several layers learns them by backpropagation within; dropout keeps its
    derivative; no activation checkpointing inside a unit.
    """

    allow_cross: ClassVar[bool] = True
    scale: float = 0.05

    def __post_init__(self) -> None:
        if isinstance(self.scale, bool) or not isinstance(self.scale, int | float) or not self.scale > 0:
            raise ArgumentError("rule 'pepita'", "scale= must be positive", got=repr(self.scale), fix="scale=0.05")

    def objective(self) -> Objective:
        """What the error changed."""
        return Perturbation()

    def operations(self) -> StraightThrough:
        """Activations without a derivative."""
        return StraightThrough()

    def stream(self) -> ContextStream:
        """The error, added to the input."""
        return ErrorInput(self.scale)
