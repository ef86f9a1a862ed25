"""Error forward-propagation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..signals.error import ErrorContext
from ..signals.stream import ContextStream
from .rule import register_rule
from .sigprop import SigProp


@register_rule("efp")
@dataclass(frozen=True)
class EFP(SigProp):
    r"""Error forward-propagation: the output's error re-enters at the front, and each unit contrasts data with it.

    A first pass without learning gives the error e; the context input of a sample is :math:`t_0 = W e`. In the second
    pass every unit learns to bring its output on the data near that on the error of a sample of its class,
    :math:`\mathrm{CE}(z, y)` with :math:`z_{ij} = s(h_i, t_j)`.

    Args:
        loss: ``"v1"``, ``"v9"``, ``"v14"`` or ``"v15"``: how samples of a class weigh;
            see :class:`imprint.objectives.Contrast`.
        similarity: ``"cosine"``, ``"dot"`` or ``"l2"``.
        temperature: divides the similarity.
        k: of v15, and of no other; None is 5.
        learned: learn W; else it keeps its random start.

    Optimizer: Adam, lr 5e-4.

    Reference: Kohan, Rietman & Siegelmann, Error Forward-Propagation (2018); Signal Propagation (2022), section 3.3.
    Differs from the paper: two passes instead of a loop that settles; positives are the labels; similarity with a
    temperature.
    """

    worlds: ClassVar[tuple[str, ...]] = ("layers",)
    allow_cross: ClassVar[bool] = True

    def stream(self) -> ContextStream:
        """The error, one row a sample."""
        return ErrorContext(self.learned)
