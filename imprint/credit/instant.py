"""Credit within one tick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .protocol import Diff, Params, Tree, Unit


@dataclass(frozen=True)
class Instant:
    r"""The gradient of this tick's loss, :math:`\partial J_t/\partial\theta`; the past is a constant.

    The carry is the gradient sum since the last update, so several calls of one unit in one forward pass,
    and several batches accumulated, add up. Memory does not depend on the number of ticks.

    Differs from the paper: nothing; this is what layer-wise local learning means by a gradient.
    """

    updates: ClassVar[tuple[str, ...]] = ("tick", "k", "rollout")
    block: ClassVar[int | None] = 1

    def init(self, unit: Unit, p: Params, state: Tree, x: Tree) -> Params:
        """An empty sum."""
        return {}

    def tick(
        self, unit: Unit, p: Params, state: Tree, carry: Params, x: Tree, y: Tree, diff: Diff
    ) -> tuple[Tree, Tree, Params, Tensor | None]:
        """Run the unit once and add this tick's gradient to the carry; without targets, only run it."""
        if y is None:
            with torch.no_grad():
                new = unit.cell(p, state, x)
                return unit.readout(p, new, x), new, carry, None

        def f(p: Params) -> tuple[Tensor, Tree]:
            new = unit.cell(p, state, x)
            out = unit.readout(p, new, x)
            return unit.loss(p, out, new, x, y), (out, new)

        grads, loss, (out, new) = diff(f, p)
        return out, new, add(carry, grads), loss

    def collect(self, unit: Unit, p: Params, state: Tree, carry: Params, diff: Diff) -> tuple[Params, Params]:
        """The sum, and an empty one."""
        return carry, {}


def add(carry: Params, grads: Params) -> Params:
    """Sum of two gradients, name by name; a name that one lacks is zero there.

    >>> add({"a": torch.tensor(1.0)}, {"a": torch.tensor(2.0), "b": torch.tensor(3.0)})
    {'a': tensor(3.), 'b': tensor(3.)}
    """
    both = carry.keys() & grads.keys()
    return carry | grads | {k: carry[k] + grads[k] for k in carry if k in both}
