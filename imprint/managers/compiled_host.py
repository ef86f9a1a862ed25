"""The step of an attached model's units inside one captured function: nothing waits for the host."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..credit import Params
from ..propagators import Propagator
from ..propagators.host import EAGER, Host
from ..runtime.optimizers import Steps
from ..runtime.store import Store

LOSS, NORM = 0, 1


class StepHost(Host):
    """Units step by maths until a loss or norm is not finite; from then on everything rests, and the host is told.

    Args:
        steps: all optimizers.
        store: keeps what is said to the host, and gradients of optimizers that step by themselves.

    Attributes:
        going: nothing was not finite yet.
        checks: what was looked at, in order: kind and whose.
        left: optimizers that step by themselves, whose, and what their gradients are kept as.
    """

    def __init__(self, steps: Steps, store: Store, device: torch.device) -> None:
        self.steps, self.store, self.device = steps, store, device
        self.begin()

    def begin(self) -> None:
        """Before a step."""
        self.going: Tensor | None = None
        self.checks: list[tuple[int, Propagator]] = []
        self.seen: list[Tensor] = []
        self.left: list[tuple[Optimizer, Propagator, list[str]]] = []
        self.kept: list[tuple[Tensor, Tensor]] = []

    def check(self, prop: Propagator, loss: Tensor) -> None:
        """From a loss that is not finite on, everything rests."""
        self._look(LOSS, prop, loss)

    def check_norm(self, prop: Propagator, norm: Tensor) -> None:
        """The same of a gradient."""
        self._look(NORM, prop, norm)

    def _look(self, kind: int, prop: Propagator, value: Tensor) -> None:
        value = value.detach().reshape(())
        good = torch.isfinite(value)
        self.going = good if self.going is None else self.going & good
        self.checks.append((kind, prop))
        self.seen.append(value.to(torch.float64))

    def step(self, prop: Propagator, grads: Params) -> None:
        """By maths; gradients of optimizers that have none are kept until after the step."""
        for optimizer, names in self.steps.step_those(prop.optimizers, prop.params, grads, self.going):
            for k in names:
                slot = self.store.hold(f"{prop.name}: gradient of {k}", grads[k])
                self.kept.append((slot, grads[k]))
            self.left.append((optimizer, prop, names))

    def chosen(self, new: Tensor, old: Tensor) -> Tensor:
        """`new`, or `old` if something was not finite."""
        return new if self.going is None else torch.where(self.going, new, old)

    def writes(self) -> list[tuple[Tensor, Tensor]]:
        """What the host reads after the step."""
        pairs = list(self.kept)
        if self.going is not None:
            pairs.append((self.store.hold("going", self.going), self.going))
            seen = torch.stack(self.seen)
            pairs.append((self.store.hold("seen", seen), seen))
        return pairs


def step_left(left: list[tuple[Optimizer, Propagator, list[str]]], store: Store) -> None:
    """Optimizers that are no maths step by themselves."""
    for optimizer, prop, names in left:
        grads = {prop.params[k]: store[f"{prop.name}: gradient of {k}"] for k in names}
        EAGER.step_all([optimizer], grads)
