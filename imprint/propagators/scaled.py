"""Losses of 16 bits: scaled up before they are differentiated, gradients scaled down before a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor
from torch.amp import GradScaler

from ..credit import Params, Tree, detach, eager
from .host import Host

if TYPE_CHECKING:
    from .propagator import Propagator


class ScaledHost(Host):
    """Steps through a :class:`torch.amp.GradScaler`: a unit whose gradient overflowed rests in this step.

    Args:
        scaler: of all propagators that share this host.

    >>> import torch
    >>> from torch import nn
    >>> host = ScaledHost(GradScaler("cpu", init_scale=8.0))
    >>> w = nn.Parameter(torch.tensor(3.0))
    >>> host.diff(lambda p: (p["w"] ** 2, ()), {"w": w})[0]
    {'w': tensor(48.)}
    """

    def __init__(self, scaler: GradScaler) -> None:
        self.scaler, self.looked = scaler, False

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss times the scale."""
        made: Tensor = self.scaler.scale(loss)
        return made

    def diff(self, f: Callable[[Params], tuple[Tensor, Tree]], params: Params) -> tuple[Params, Tensor, Tree]:
        """A `Diff` whose gradients are scaled; the loss is not."""

        def up(p: Params) -> tuple[Tensor, Tree]:
            loss, aux = f(p)
            return self.scaled(loss), (loss, aux)

        grads, _, (loss, aux) = eager(up, params)
        return grads, detach(loss), aux

    def ready(self, prop: Propagator, grads: Params) -> Params:
        """Gradients scaled down; those that are not finite are noted."""
        with self.placed({prop.params[k]: g for k, g in grads.items()}):
            for optimizer in prop.optimizers:
                self.scaler.unscale_(optimizer)
            found = {k: g for k in grads if (g := prop.params[k].grad) is not None}
        self.looked = True
        return found

    def check_norm(self, prop: Propagator, norm: Tensor) -> None:
        """An overflow is the scaler's affair."""

    def step(self, prop: Propagator, grads: Params) -> None:
        """Step the optimizers whose gradients are finite."""
        with self.placed({prop.params[k]: g for k, g in grads.items()}):
            for optimizer in prop.optimizers:
                self.scaler.step(optimizer)

    def finish(self) -> None:
        """After all units: let the scale grow, or shrink if a gradient overflowed."""
        if self.looked:
            self.looked = False
            self.scaler.update()
