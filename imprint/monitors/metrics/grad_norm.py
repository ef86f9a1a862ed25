"""How large a unit's gradient is."""

from __future__ import annotations

from torch.nn.utils import get_total_norm

from ...credit import Params
from ...propagators import Propagator
from ..metric import Metric, register_monitor


@register_monitor("grad_norm")
class GradNorm(Metric):
    r"""Mean of :math:`\|g\|_2` over updates: the 2-norm of all that one unit steps with, before clipping.

    The gradient of a local head is part of it; with ``accumulate=`` it is the norm of the mean gradient.
    """

    def updating(self, prop: Propagator, grads: Params) -> None:
        """Add one update's norm."""
        self.add(prop.name, get_total_norm(list(grads.values())))
