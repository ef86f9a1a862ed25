"""Blocks of a graph's rollouts with as many rows, captured as they come, and the fixed tensors that they share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_with_path

from ..errors import ArgumentError
from ..graph import Graph
from ..graph.rollout import Rollout, both
from .blockrun import batch_name, state_leaves, state_name
from .capture import Captured, capture
from .keys import Facts
from .slots import Slots
from .store import Store, undone

Run = Callable[[], None]
BATCH = batch_name("")
PREFIXES = ("", "signal of ")
"""Of names of what belongs to the data, and to the signal beside it."""


class Player(Protocol):
    """A backend."""

    def generate(self, captured: Captured) -> Run:
        """What runs."""

    def play(self, runs: Sequence[Run]) -> None:
        """Run some after each other."""


class Blocks:
    """What learning and plain rollouts have in common.

    Args:
        graph: bound.
        player: makes what runs from what is captured, and runs it.
        slots: ticks whose inputs and targets are brought at once.

    Attributes:
        block: most ticks of one block.
        captured: every block that was captured, with a line that says which.
    """

    block: int

    def __init__(self, graph: Graph, player: Player, slots: int) -> None:
        assert graph.known is not None
        self.graph, self.player = graph, player
        self.store = Store()
        self.slots = Slots(self.store, slots)
        self.facts = Facts(graph.schedule)
        self.counter = self.store.hold("tick", torch.zeros(1, dtype=torch.int64, device=graph.known["device"]))
        self.first = self.store.hold("first tick", self.counter)
        self.captured: list[tuple[str, Captured]] = []

    def takes(self, run: Rollout) -> bool:
        """Has the batch the shapes of what objectives have read of it?"""
        read = {k.removeprefix(BATCH): v for k, v in self.store.held.items() if k.startswith(BATCH)}
        seen = {k: run.batch.get(k) for k in read}
        return all(
            isinstance(v, Tensor) and (v.shape, v.dtype) == (read[k].shape, read[k].dtype) for k, v in seen.items()
        )

    def stale(self) -> list[str]:
        """What has changed of what blocks take for granted, beside the graph itself."""
        return []

    def block_end(self, start: int) -> int:
        """Where the block that begins at `start` ends, if the rollout does not end before."""
        raise ArgumentError(type(self).__name__, "it has no blocks", fix="write block_end(self, start)")

    def chunks(self, run: Rollout) -> Iterator[tuple[int, list[int]]]:
        """First ticks of what the slots hold at once, and the ends of the blocks within."""
        chunk, end = run.offset, run.offset + run.ticks
        while chunk < end:
            stops: list[int] = []
            start = chunk
            while start < end:
                stop = min(self.block_end(start), end)
                if stop - chunk > self.slots.ticks:
                    break
                stops.append(stop)
                start = stop
            yield chunk, stops
            chunk = stops[-1]

    def make(self, function: Callable[..., Any], label: str) -> Run:
        """Capture a function, and make it ready to run: whatever fails, fails here, with nothing changed."""
        captured = capture(function, self.fixed)
        run = self.player.generate(captured)
        with undone(captured.tensors):
            self.player.play([run])
        self.captured.append((label, captured))
        return run

    def fixed(self) -> Iterable[tuple[str, Tensor]]:
        """Everything that blocks may read and write, by name."""
        yield from self.store.held.items()
        yield from self.graph.named_parameters()
        yield from self.graph.named_buffers()

    # -- before and after a rollout

    def load(self, run: Rollout) -> None:
        """Bring what the rollout starts from to the fixed tensors."""
        for prefix, each in zip(PREFIXES, both(run), strict=False):
            for name, module in each.graph.modules_by_name.items():
                if module.proto is not None and each.states.get(name) is None:
                    each.states[name] = module.proto.init_state(each.rows, each.device, each.dtype)
            for key, signal in each.signals.items():
                self.store.hold(f"{prefix}{key}", signal.before).copy_(signal.before)
                for j, v in enumerate(signal.history):
                    self.store.hold(f"{prefix}{key}, {j + 1} ago", v).copy_(v)
            for path, v in state_leaves(each.states):
                self.store.hold(state_name(prefix, path), v).copy_(v)
        self.slots.rings(run)

    def bring(self, run: Rollout) -> None:
        """Bring what objectives read of the batch: known once all blocks are captured."""
        for k, v in self.store.held.items():
            if k.startswith(BATCH):
                v.copy_(run.batch[k.removeprefix(BATCH)])

    def give(self, run: Rollout) -> None:
        """Bring what ports hold, and states, to where the engine keeps them."""
        for prefix, each in zip(PREFIXES, both(run), strict=False):
            for key, signal in each.signals.items():
                signal.before = self.store[f"{prefix}{key}"].clone()
                signal.history = [self.store[f"{prefix}{key}, {j + 1} ago"].clone() for j in range(signal.reach)]
            each.states = tree_map_with_path(
                lambda path, _, prefix=prefix: self.store[state_name(prefix, path)].clone(), each.states
            )
