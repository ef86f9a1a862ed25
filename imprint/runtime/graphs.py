"""CUDA graphs, or on a CPU what emulates them."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ..errors import ArgumentError, StateError
from .capture import Captured
from .codegen import Run, generators
from .emulation import EmulatedGraph
from .store import undone


class Graphs:
    """Makes graphs that share one pool of memory and are captured on one stream.

    Args:
        where: who asks, for errors.
        device: of all tensors.
        codegen: what is captured, ``"eager"`` or ``"inductor"``; None: compiled, and call by call where it is emulated.
        allow_emulation: on a CPU, replay call by call into the same memory, with all left out that a graph would not do
            again: slow, and the same numbers.

    Raises:
        StateError: there is no CUDA device, and emulation is not allowed.
        ArgumentError: what is compiled cannot be emulated.
    """

    def __init__(self, where: str, device: torch.device, codegen: str | None, allow_emulation: bool) -> None:
        self.emulated = device.type != "cuda"
        if self.emulated and not allow_emulation:
            raise StateError(
                where, "it needs a CUDA device", expected="cuda", got=device,
                fix="move it there: .to('cuda'); or backend='inductor'; allow_emulation=True does without a device",
            )  # fmt: skip
        if self.emulated and codegen == "inductor":
            raise ArgumentError(
                where, "emulation replays single calls, and compiled code has none", got="codegen='inductor'",
                fix="codegen='eager', or leave it out",
            )  # fmt: skip
        self.codegen = "eager" if self.emulated else codegen or "inductor"
        self.pool: Any = None if self.emulated else torch.cuda.graph_pool_handle()
        self.stream: Any = None if self.emulated else torch.cuda.Stream(device)

    def ready(self, captured: Captured) -> Run:
        """What can be recorded: nothing is compiled while a graph is captured, so it has been run before, undone."""
        made = generators[self.codegen](captured)
        if not self.emulated:
            with self._beside(), undone(captured.tensors):
                for _ in range(2):
                    made()
        return made

    def record(self, runs: Sequence[Run]) -> Any:
        """A graph of some runs after each other; nothing happens before its ``replay()``."""

        def all_of_them() -> None:
            for run in runs:
                run()

        if self.emulated:
            emulated = EmulatedGraph()
            emulated.capture(all_of_them)
            return emulated
        graph = torch.cuda.CUDAGraph()
        with self._beside(), _no_garbage(), torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            all_of_them()
        return graph

    @contextmanager
    def _beside(self) -> Iterator[None]:
        """On a stream of its own, which waits for the current one and is waited for."""
        here = torch.cuda.current_stream()
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream):
            yield
        here.wait_stream(self.stream)


def replayed(graphs: Graphs, captured: Captured) -> Run:
    """A captured function as one graph."""
    run = graphs.ready(captured)
    graph = graphs.record([run])
    graph.run = run  # what it reads and writes lives as long
    return graph.replay


@contextmanager
def _no_garbage() -> Iterator[None]:
    """A tensor that is freed while a graph is captured would spoil it."""
    on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()
