"""Channel-wise competition: the channels of a class stand against those of the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..objectives import ChannelGroups, Objective
from .rule import Rule, register_rule


@register_rule("cwcomp")
@dataclass(frozen=True)
class CwComp(Rule):
    r"""Channel-wise competition: :math:`L = \mathrm{CE}(g, y)`, :math:`g_k` the mean square of class k's channels.

    Each unit's channels (features of a vector) are split into one group a class, and the right one is to be the most
    active: forward-forward without negatives, without a head and without a second pass. Activities of all layers add
    up in ``manager.predict(x, by="local")``. Every unit needs at least as many channels as there are classes.

    In a graph modules that declare a data objective keep it; the channels of the others compete at each emission.

    Optimizer: Adam, lr 5e-4.

    Reference: Papachristodoulou et al., Channel-wise Competitive Learning for the Forward-Forward Algorithm (2024),
    section 3.
    Differs from the paper: any unit, not its blocks of grouped convolutions; a number of channels that is no multiple
    of the number of classes is shared out as evenly as can be; what is outside of units learns from the task loss; no
    schedule of layers.
    """

    worlds: ClassVar[tuple[str, ...]] = ("layers", "graph")

    def objective(self) -> Objective:
        """One group of channels a class."""
        return ChannelGroups()

    def filling(self) -> str:
        """The same objective on each module's output."""
        return "ce"
