"""Blocks of rollouts that do not learn, with gradients where they are on."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_with_path

from ..errors import CaptureError
from ..graph import Graph
from ..graph.rollout import Rollout
from .blockrun import state_name
from .blocks import Blocks, Player, Run
from .codegen import random_calls
from .keys import mode_of
from .passage import Backward, Forward
from .slots import shown
from .way import Passed, Way


class Passages(Blocks):
    """Blocks of a graph without a manager, or of one whose manager learns when the rollout is over.

    Args:
        graph: bound.
        parts: its runners by components.
        player: makes what runs from what is captured, and runs it.
        slots: ticks whose inputs are brought at once.
        block: ticks of a block.
    """

    def __init__(self, graph: Graph, parts: list[list[Any]], player: Player, slots: int, block: int) -> None:
        super().__init__(graph, player, slots)
        self.parts, self.block = parts, block
        self.functions: dict[Hashable, Run] = {}
        self.leans: dict[str, set[str]] = {}
        self.states: list[str] = []

    def block_end(self, start: int) -> int:
        """After so many ticks."""
        return start + self.block

    @property
    def random(self) -> bool:
        """Do blocks draw random numbers?"""
        return any(random_calls(captured) for _, captured in self.captured)

    def roll(self, run: Rollout) -> None:
        """All ticks, as one chunk that is not ended: what is kept is in the ports' signals."""
        asks = [name for name, x in run.sources.items() if x.requires_grad]
        if asks and torch.is_grad_enabled():
            raise CaptureError(
                f"source {asks[0]!r}", "its input wants a gradient, and captured blocks have one for weights alone",
                fix="x.detach(), or backend='eager'",
            )  # fmt: skip
        params = [p for p in self.params.values() if p.requires_grad]
        graded = torch.is_grad_enabled() and bool(params)
        made: dict[str, Tensor]
        self._functions(run, graded)
        way = Way(self, run, graded)
        if graded:
            stacks = Passed.apply(way, *self.params.values())
            made = dict(zip(way.names, stacks, strict=True))
        else:
            made = way.forth()
        self.give(run)
        run.start, run.stop = run.offset, run.offset + run.ticks
        for name, _, due in shown(run):
            if name in run.kept:
                at = [due(t) for t in range(run.start, run.stop)]
                counts = [sum(at[: i + 1]) for i in range(len(at))]
                run.signals[name].fill(made[name], counts)
        for module in run.watched:
            run.state_log[module] = self._logged(run, module, made)

    @staticmethod
    def _logged(run: Rollout, module: str, made: dict[str, Tensor]) -> list[Any]:
        """A module's states at its emissions, as the engine keeps them."""
        count = len(run.emission_ticks(module))
        return [
            tree_map_with_path(lambda path, _, e=e: made[state_name(f"{module}: ", path)][e], run.states[module])
            for e in range(count)
        ]

    @property
    def params(self) -> dict[str, Tensor]:
        """All weights."""
        return dict(self.graph.named_parameters())

    # -- blocks

    def _functions(self, run: Rollout, graded: bool) -> None:
        """All that the rollout needs are there before the first one runs."""
        self.load(run)
        for chunk, stops in self.chunks(run):
            for start, stop in zip([chunk, *stops], stops, strict=False):
                for kind in (self.forward, self.backward)[: 1 + graded]:
                    kind(run, start, stop, chunk)

    def forward(self, run: Rollout, start: int, stop: int, chunk: int | None = None) -> Run:
        """The block's function; `chunk` is the first tick of the slots where it may have to be captured."""
        return self._made(Forward, (), run, start, stop, chunk)

    def backward(self, run: Rollout, start: int, stop: int, chunk: int | None = None) -> Run:
        """The block's way back."""
        return self._made(Backward, (self.params,), run, start, stop, chunk)

    def _made(self, kind: Any, more: Any, run: Rollout, start: int, stop: int, chunk: int | None) -> Run:
        ticks = tuple(self.facts.at(t) for t in range(start, stop))
        key = (kind, mode_of(run, None, run.lengths is not None), tuple(run.watched), ticks)
        if key not in self.functions:
            assert chunk is not None
            self.begin(run, chunk, min(chunk + self.slots.ticks, run.offset + run.ticks))
            self.counter.fill_(start - chunk)
            masked = run.lengths is not None
            if kind is Backward:
                self.begin_back()
                self.want(run, chunk, stop, {})
            body: Forward = kind(*more, self.parts, run, start, stop, masked, self.store, self.counter)
            self.functions[key] = self.make(body, f"{kind.__name__.lower()}, ticks {start} to {stop - 1}")
            if isinstance(body, Backward):
                for name, others in body.leans.items():
                    self.leans[name] = self.leans.get(name, set()) | others
        return self.functions[key]

    # -- what a way asks for

    def begin(self, run: Rollout, start: int, stop: int) -> None:
        """Bring inputs."""
        self.slots.fill(run, None, start, stop, run.lengths is not None)

    def want(self, run: Rollout, start: int, stop: int, wanted: dict[str, Tensor | None]) -> None:
        """Bring what is wanted of emissions."""
        self.slots.want(run, start, stop, wanted)

    def empty(self, run: Rollout, start: int, stop: int, parts: dict[str, list[Tensor]]) -> None:
        """Take what was emitted."""
        self.slots.empty(run, start, stop, parts)

    def load(self, run: Rollout) -> None:
        """The names of the states are known then."""
        before = set(self.store.held)
        super().load(run)
        self.states = self.states or [k for k in self.store.held if k not in before and not k.endswith("over time")]

    def snapshot(self) -> dict[str, Tensor]:
        """States and what ports hold, now."""
        return {k: self.store[k].clone() for k in self.states}

    def put(self, state: dict[str, Tensor]) -> None:
        """The counterpart of :meth:`snapshot`."""
        for k, v in state.items():
            self.store[k].copy_(v)

    def begin_back(self) -> None:
        """Nothing is wanted of the last states, and no gradient is there yet."""
        for k in self.states:
            self.store.hold(f"wanted of {k}", self.store[k]).zero_()
        for k in self.params:
            if f"gradient of {k}" in self.store:
                self.store[f"gradient of {k}"].zero_()

    def gradients(self, wanted: Iterable[str]) -> list[Tensor | None]:
        """Of all weights, None of those that nothing wanted depends on."""
        reached: set[str] = set()
        waiting = list(wanted)
        while waiting:
            for name in self.leans.get(waiting.pop(), set()) - reached:
                reached.add(name)
                waiting.append(name)
        return [self.store[f"gradient of {k}"].clone() if k in reached else None for k in self.params]
