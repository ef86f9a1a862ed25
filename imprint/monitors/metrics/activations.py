"""What the outputs of a unit look like."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...credit import Tree
from ...propagators import Propagator
from ..metric import Metric, Table, register_monitor
from .features import features


@register_monitor("activations")
class Activations(Metric):
    r"""Statistics of what a unit emits on the data, in four columns; of every unit, whether it learns or not.

    - ``activation_mean`` and ``activation_std``: of all values of a batch, averaged over batches;
    - ``activation_zeros``: share of values that are exactly zero;
    - ``activation_dead``: share of features (channels of maps and tokens) that were zero for every sample and position
      since the last reset.
    """

    def reset(self) -> None:
        """Start new means; every feature counts as dead until it is seen alive."""
        super().reset()
        self.alive: dict[str, Tensor] = {}

    def emitted(self, prop: Propagator, out: Tree, y: Tree) -> None:
        """Add one call's values."""
        found = features(prop, out)
        if found is None:
            return
        h, channels_last = found
        active = h != 0
        variance, mean = torch.var_mean(h, correction=0)
        for column, value in (("mean", mean), ("std", variance.sqrt()), ("zeros", 1 - active.mean(dtype=h.dtype))):
            self.add(prop.name, value, column=f"activation_{column}")
        channels = active.movedim(-1 if channels_last else 1, -1) if h.dim() > 1 else active[:, None]
        alive = channels.flatten(0, -2).any(0)
        before = self.alive.get(prop.name)
        same = before is not None and before.shape == alive.shape
        self.alive[prop.name] = alive | before.to(alive.device) if same else alive  # type: ignore[union-attr]

    def read(self) -> Table:
        """The means, and the share of dead features."""
        table = super().read()
        for unit, alive in self.alive.items():
            table[unit]["activation_dead"] = 1 - alive.sum().item() / alive.numel()
        return table

    def state_dict(self) -> dict[str, Any]:
        """Sums, and which features were seen alive."""
        return super().state_dict() | {"alive": {unit: v.clone() for unit, v in self.alive.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The counterpart of :meth:`state_dict`."""
        super().load_state_dict(state)
        self.alive = {unit: v.clone() for unit, v in state["alive"].items()}
