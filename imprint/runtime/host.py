"""The step of a propagator inside a captured block: nothing waits for the host."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..credit import Params
from ..etrace.deferred import Found
from ..propagators import Propagator
from ..propagators.host import Host
from .optimizers import Steps
from .store import Store


class Device(Host):
    """Losses that are not finite stop all updates from then on, and say so when they are asked; optimizers are maths.

    Args:
        steps: the optimizers.
        store: holds ``going`` (no loss was not finite yet) and, by group, the tick at which one was.
        names: of the groups.
    """

    def __init__(self, steps: Steps, store: Store, names: list[str], like: Tensor) -> None:
        self.steps, self.store, self.names = steps, store, names
        store.hold("going", torch.ones((), dtype=torch.bool, device=like.device))
        store.hold("failed at", torch.full((2, len(names)), -1, device=like.device))
        self.doubtful: set[str] = set()
        self.begin()

    def begin(self) -> None:
        """Before a block."""
        self.going: Tensor = self.store["going"]
        self.failed: dict[tuple[int, str], Tensor] = {}
        self.premises: Found = []
        self.left: list[tuple[Any, dict[str, Tensor], Propagator]] = []
        self.kept: list[tuple[Tensor, Tensor]] = []

    def reset(self) -> None:
        """Before a rollout."""
        self.store["going"].fill_(True)
        self.store["failed at"].fill_(-1)

    def check(self, prop: Propagator, loss: Tensor) -> None:
        """From a loss that is not finite on, weights rest."""
        self._note(0, prop, torch.isfinite(loss))

    def check_norm(self, prop: Propagator, norm: Tensor) -> None:
        """The same of a gradient."""
        self._note(1, prop, torch.isfinite(norm))

    def _note(self, kind: int, prop: Propagator, good: Tensor) -> None:
        before = self.failed.get((kind, prop.name), True)
        self.failed[kind, prop.name] = good & before
        self.going = self.going & good

    def step(self, prop: Propagator, grads: Params) -> None:
        """By maths; optimizers that have none are left for after the block, their gradients kept."""
        for optimizer, names in self.steps.step_those(prop.optimizers, prop.params, grads, self.going):
            kept = {k: self.store.hold(f"{prop.name}: step of {k}", grads[k]) for k in names}
            self.left.append((optimizer, kept, prop))
            self.kept += [(kept[k], grads[k]) for k in names]

    def writes(self, tick: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What is known at the end of a block whose first tick has that number."""
        going = self.going
        for holds, _ in self.premises:
            going = going & holds
        self.doubtful |= {whose for _, whose in self.premises}
        pairs = [(self.store["going"], going), *self.kept]
        if self.failed:
            seen = self.store["failed at"]
            rows = []
            for kind in range(2):
                row = [self.failed.get((kind, name)) for name in self.names]
                rows += [torch.ones_like(self.going) if good is None else good for good in row]
            good = torch.stack(rows).view(2, -1)
            pairs.append((seen, torch.where(good | (seen >= 0), seen, tick)))
        return pairs
