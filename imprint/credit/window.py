"""Credit over a window of ticks, and over the whole rollout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import ArgumentError
from .instant import add
from .protocol import Diff, Params, Tree, Unit

Tape = tuple[tuple[Tree, Tree, Tree], ...]


@dataclass(frozen=True)
class Window:
    r"""Truncated backpropagation through time: :math:`\partial\sum_{t\in W} J_t/\partial\theta`, windows W of k ticks.

    Windows follow each other without overlap; what comes before one is a constant. The carry is the tape of the
    present window, ``(state before, x, y)`` a tick, and the gradients of earlier ones since the last update. Here the
    window is replayed with the present weights, which no update has moved; eager graphs keep the live tape instead,
    with the same numbers.

    Args:
        k: ticks of a window.

    Raises:
        ArgumentError: k is not a positive number of ticks.

    Reference: Williams & Peng, An Efficient Gradient-Based Algorithm for On-Line Training (1990): BPTT(h; h'), h = h'.
    Differs from the paper: nothing.
    """

    k: int
    updates: ClassVar[tuple[str, ...]] = ("k", "rollout")

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise ArgumentError(
                "Window", "k is a number of ticks", expected="1, 2, …", got=repr(self.k), fix="Window(8)"
            )

    @property
    def block(self) -> int | None:
        """Ticks after which the tape is folded into gradients; None: only at the end."""
        return self.k

    def init(self, unit: Unit, p: Params, state: Tree, x: Tree) -> Tree:
        """An empty tape and no gradient."""
        return {"tape": (), "grads": {}}

    def tick(
        self, unit: Unit, p: Params, state: Tree, carry: Tree, x: Tree, y: Tree, diff: Diff
    ) -> tuple[Tree, Tree, Tree, Tensor | None]:
        """Run the unit once without credit and remember the tick; a full window is folded."""
        with torch.no_grad():
            new = unit.cell(p, state, x)
            out = unit.readout(p, new, x)
            loss = None if y is None else unit.loss(p, out, new, x, y)
        carry = {"tape": (*carry["tape"], (state, x, y)), "grads": carry["grads"]}
        if self.block is not None and len(carry["tape"]) >= self.block:
            carry = self._fold(unit, p, carry, diff)
        return out, new, carry, loss

    def collect(self, unit: Unit, p: Params, state: Tree, carry: Tree, diff: Diff) -> tuple[Params, Tree]:
        """Gradients of all windows since the last update, the present one cut short."""
        folded = self._fold(unit, p, carry, diff)
        return folded["grads"], {"tape": (), "grads": {}}

    @staticmethod
    def _fold(unit: Unit, p: Params, carry: Any, diff: Diff) -> Any:
        tape: Tape = carry["tape"]
        if not any(y is not None for _, _, y in tape):
            return {"tape": (), "grads": carry["grads"]}

        def replay(p: Params) -> tuple[Tensor, Tree]:
            state, losses = tape[0][0], []
            for _, x, y in tape:
                state = unit.cell(p, state, x)
                if y is not None:
                    losses.append(unit.loss(p, unit.readout(p, state, x), state, x, y))
            return torch.stack(losses).sum(), ()

        return {"tape": (), "grads": add(carry["grads"], diff(replay, p)[0])}


@dataclass(frozen=True)
class Unrolled(Window):
    r"""Backpropagation through the whole rollout: :math:`\partial\sum_t J_t/\partial\theta`; memory grows with it.

    Updates come at the end of a rollout.

    Reference: Werbos, Backpropagation Through Time (1990).
    Differs from the paper: within one unit; nothing crosses to the next.
    """

    k: int = 1
    updates: ClassVar[tuple[str, ...]] = ("rollout",)

    def __repr__(self) -> str:
        return "Unrolled()"

    @property
    def block(self) -> int | None:
        """Never before the end."""
        return None
