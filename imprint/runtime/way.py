"""A rollout that does not learn, as one step of autograd."""

from __future__ import annotations

import copy
import weakref
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_map

from ..errors import StateError
from ..graph.rollout import Rollout
from ..utils import random_state, set_random_state

if TYPE_CHECKING:
    from ..graph import Graph
    from .passages import Passages


class Passed(torch.autograd.Function):
    """From the weights to all that is kept of a rollout."""

    @staticmethod
    def forward(ctx: Any, way: Way, *params: Tensor) -> tuple[Tensor, ...]:
        """Block by block; the states between them are kept."""
        ctx.way = way  # it holds nothing that comes out of here: nobody could collect such a circle
        ctx.set_materialize_grads(False)  # what nobody wants is told from what is wanted zero times
        return tuple(way.forth().values())

    @staticmethod
    @once_differentiable
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
        self._passages, self.run, self.graded = weakref.ref(passages), _before(run), graded
        self.between: list[tuple[int, int, int, int]] = []
        self.states: list[dict[str, Tensor]] = []
        self.drawn: list[Any] = []
        self.names: list[str] = []

    @property
    def passages(self) -> Passages:
        """The blocks.

        Raises:
            StateError: the plan has let go of them.
        """
        found = self._passages()
        if found is None:
            raise StateError(
                "backward", "the plan of this rollout was closed, or captured anew, since", fix="plan.rollout(batch)"
            )
        return found

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
        made = {name: v[0] if len(v) == 1 else torch.cat(v) for name, v in parts.items()}
        self.names = list(made)
        return made

    def back(self, wanted: tuple[Tensor | None, ...]) -> list[Tensor | None]:
        """Run all blocks again from the last to the first; gradients of the weights."""
        passages, run = self.passages, self.run
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


def _before(run: Rollout) -> Rollout:
    """The rollout as it is before its first tick, without a way to what comes out of it."""
    made = copy.copy(run)
    made.graph = cast("Graph", weakref.proxy(run.graph))
    made.signals = {key: signal.copy() for key, signal in run.signals.items()}
    made.states = tree_map(lambda v: v.detach() if isinstance(v, Tensor) else v, run.states)
    made.kept, made.state_log = {key: [] for key in run.kept}, {}
    return made
