"""How far a step moves the weights, for their size."""

from __future__ import annotations

import torch
from torch.nn.utils import get_total_norm

from ...credit import Params
from ...propagators import Propagator
from ...propagators.layer import OBJECTIVE
from ..metric import Metric, register_monitor


@register_monitor("update_ratio")
class UpdateRatio(Metric):
    r"""Mean of :math:`\|\Delta w\|_2 / \|w\|_2` over updates, w being all weights of the unit that got a gradient.

    Weights of objectives (a local head) do not count, for they may start at zero; nor does an update of weights that
    are zero.
    It holds a copy of one unit's weights at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.before: Params = {}

    def updating(self, prop: Propagator, grads: Params) -> None:
        """Keep the weights."""
        self.before = {k: prop.params[k].detach().clone() for k in grads if not _of_objective(k)}

    def updated(self, prop: Propagator, grads: Params) -> None:
        """Compare them."""
        before, self.before = self.before, {}
        if not before:
            return
        step = get_total_norm([prop.params[k].detach() - w for k, w in before.items()])
        size = get_total_norm(list(before.values()))
        self.add(prop.name, torch.where(size > 0, step / size, 0.0), size > 0)


def _of_objective(name: str) -> bool:
    """Of a layer's unit, of a term that a rule filled in, or of one that a graph module declares."""
    return name.startswith((OBJECTIVE, "terms.")) or ".objectives." in name
