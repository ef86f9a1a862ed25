"""A rollout that does not learn, as one step of autograd."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..graph.rollout import Rollout
from ..utils import random_state, set_random_state

if TYPE_CHECKING:
    from .passages import Passages


class Passed(torch.autograd.Function):
    """From the weights to all that is kept of a rollout."""

    @staticmethod
    def forward(ctx: Any, way: Way, *params: Tensor) -> tuple[Tensor, ...]:
        """Block by block; the states between them are kept."""
        ctx.way = way
        ctx.set_materialize_grads(False)  # what nobody wants is told from what is wanted zero times
        return tuple(way.forth().values())

    @staticmethod
    def backward(ctx: Any, *wanted: Tensor | None) -> tuple[Tensor | None, ...]:
        """Block by block, from the last."""
        return (None, *ctx.way.back(wanted))


class Way:
    """One rollout's way through its blocks, and back.

    Args:
        passages: have the blocks.
        run: the rollout.
        graded: there may be a way back.
    """

    def __init__(self, passages: Passages, run: Rollout, graded: bool) -> None:
        self.passages, self.run, self.graded = passages, run, graded
        self.between: list[tuple[int, int, int, int]] = []
        self.states: list[dict[str, Tensor]] = []
        self.drawn: list[Any] = []
        self.names: list[str] = []
        self.was = run

    def forth(self) -> dict[str, Tensor]:
        """Run all blocks; what is kept over time, ``[E, B, …]``, by name."""
        passages, run = self.passages, self.run
        passages.load(run)
        parts: dict[str, list[Tensor]] = {}
        for chunk, stops in passages.chunks(run):
            passages.begin(run, chunk, stops[-1])
            for start, stop in zip([chunk, *stops], stops, strict=False):
                function = passages.forward(run, start, stop)
                if self.graded:
                    self.states.append(passages.snapshot())
                    self.drawn.append(random_state() if passages.random else None)
                    self.between.append((chunk, stops[-1], start, stop))
                passages.counter.fill_(start - chunk)
                passages.player.play([function])
            passages.empty(run, chunk, stops[-1], parts)
        passages.give(run)
        made = {name: v[0] if len(v) == 1 else torch.cat(v) for name, v in parts.items()}
        self.names = list(made)
        self.was = copy.copy(run)  # rows that filled the batch up are cut off afterwards, and have their way back too
        return made

    def back(self, wanted: tuple[Tensor | None, ...]) -> list[Tensor | None]:
        """Run all blocks again from the last to the first; gradients of the weights."""
        passages, run = self.passages, self.was
        now, held = -1, random_state() if passages.random else None
        passages.begin_back()
        by_name = dict(zip(self.names, wanted, strict=True))
        for place, state, drawn in zip(
            reversed(self.between), reversed(self.states), reversed(self.drawn), strict=True
        ):
            chunk, end, start, stop = place
            if chunk != now:
                passages.begin(run, chunk, end)
                passages.want(run, chunk, end, by_name)
                now = chunk
            passages.put(state)
            if drawn is not None:
                set_random_state(drawn)
            function = passages.backward(run, start, stop)
            passages.counter.fill_(start - chunk)
            passages.player.play([function])
        if held is not None:
            set_random_state(held)
        return passages.gradients(name for name, v in by_name.items() if v is not None)
