"""Greedy layer-wise training: one unit after the other."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ArgumentError
from .dgl import DGL
from .rule import register_rule


@register_rule("greedy")
@dataclass(frozen=True)
class Greedy(DGL):
    r"""Greedy learning: :math:`L = \mathrm{CE}(a(h), y)` as in :class:`DGL`, but one unit learns at a time.

    The unit that is called first learns for `steps` steps of the manager, then the next one, on outputs that stay as
    they are; the last one goes on learning. What learns from the task loss does so all the time.

    Args:
        head: ``"mlp"`` (any output), ``"mlp-sr"`` or ``"cnn"`` (maps and series).
        steps: of each unit's turn, in batches, with ``accumulate=`` as well; several epochs.

    Optimizer: Adam, lr 5e-4.

    Reference: Belilovsky, Eickenberg & Oyallon, Greedy Layerwise Learning Can Scale to ImageNet (2019), section 3.
    Differs from the paper: a turn is a number of steps; Adam, not SGD; running statistics of finished units go on.
    """

    steps: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ArgumentError(
                "rule 'greedy'", "steps= must be a whole number from 1", got=repr(self.steps), fix="steps=1000"
            )

    def turn(self) -> int | None:
        """Steps of each unit's turn."""
        return self.steps
