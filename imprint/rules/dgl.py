"""Decoupled greedy learning: a deep local classifier on every unit."""

from __future__ import annotations

from dataclasses import dataclass

from ..objectives import DeepHead, Objective
from .rule import Rule, register_rule


@register_rule("dgl")
@dataclass(frozen=True)
class DGL(Rule):
    r"""Decoupled greedy learning: :math:`L = \mathrm{CE}(a(h), y)` with a local classifier a of several layers.

    The classifier trains with its unit and is dropped afterwards; see :class:`imprint.objectives.DeepHead` for what it
    consists of. Values (regression) use the mean square error. Logits of all layers add up in
    ``manager.predict(x, by="local")``. A batch with one labelled row teaches the last bias alone, as that row is all
    there is to normalise by.

    Args:
        head: ``"mlp"`` (any output), ``"mlp-sr"`` or ``"cnn"`` (maps and series).

    Optimizer: Adam, lr 5e-4.

    Reference: Belilovsky, Eickenberg & Oyallon, Decoupled Greedy Learning of CNNs (2020), sections 3.1 and 4.
    Differs from the paper: Adam, not SGD with lr 0.1, momentum 0.9 and weight decay 5e-4, times 0.2 every 15 epochs;
    the last unit's head has as many layers as the others'; batch normalisation in heads counts labelled rows alone;
    linear layers in front of it have no bias; "mlp" on vectors; no replay buffer.
    """

    head: str = "mlp"

    def __post_init__(self) -> None:
        self.objective()

    def objective(self) -> Objective:
        """One deep head a unit."""
        return DeepHead(self.head)
