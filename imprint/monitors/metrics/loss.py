"""The local loss."""

from __future__ import annotations

from torch import Tensor

from ...credit import Params, Tree
from ...propagators import Propagator
from ..metric import Metric, register_monitor


@register_monitor("loss")
class UnitLoss(Metric):
    """Mean local loss of each unit over its learning calls.

    Attributes:
        in_parts: a unit's calls are parts of one loss, as the ticks of an update period are in a graph; then it is the
            mean of their sums over updates.
    """

    in_parts = False

    def learned(self, prop: Propagator, x: Tree, out: Tree, y: Tree, loss: Tensor) -> None:
        """Add one call's loss."""
        self.add(prop.name, loss, 0 if self.in_parts else 1)

    def updated(self, prop: Propagator, grads: Params) -> None:
        """All parts are there."""
        if self.in_parts:
            self.add(prop.name, 0.0, 1)
