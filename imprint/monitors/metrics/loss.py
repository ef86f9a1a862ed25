"""The local loss."""

from __future__ import annotations

from torch import Tensor

from ...credit import Tree
from ...propagators import Propagator
from ..metric import Metric, register_monitor


@register_monitor("loss")
class UnitLoss(Metric):
    """Mean local loss of each unit over its learning calls."""

    def learned(self, prop: Propagator, x: Tree, out: Tree, y: Tree, loss: Tensor) -> None:
        """Add one call's loss."""
        self.add(prop.name, loss)
