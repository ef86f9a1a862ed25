"""Blocks of ticks as CUDA graphs."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ...errors import ArgumentError, StateError
from ...graph import Graph
from ..backend import Options, register_backend
from ..blocks import Run
from ..capture import Captured
from ..codegen import generators
from ..compiled import Compiled
from ..emulation import EmulatedGraph
from ..store import undone
from ..timetable import Timetable

TOGETHER = 8
"""Blocks that one graph replays: the price of starting a graph is paid once for all of them."""


@register_backend("cuda_graph")
class CudaGraph(Compiled):
    """Captures blocks of ticks, compiles them, and replays them as CUDA graphs: one call of the host for several ticks.

    Every graph shares one pool of memory and is captured on one stream; inputs are brought and results taken on the
    stream that is current. Where there is no CUDA device, ``allow_emulation=True`` replays blocks call by call into the
    same memory, with all that a graph would not do again left out: slow, and the same numbers.
    """

    codegen = "inductor"

    def __init__(self, graph: Graph, schedule: Timetable, options: Options, rows: int = 1) -> None:
        assert graph.known is not None
        device = torch.device(graph.known["device"])
        self.emulated = device.type != "cuda"
        if self.emulated and not options.allow_emulation:
            raise StateError(
                "compile(backend='cuda_graph')", "the graph is on no CUDA device", expected="cuda", got=device,
                fix="graph.to('cuda'); or backend='inductor'; allow_emulation=True checks the ticks without a device",
            )  # fmt: skip
        if self.emulated and options.codegen == "inductor":
            raise ArgumentError(
                "compile(backend='cuda_graph')", "emulation replays single calls, and compiled code has none",
                got="codegen='inductor'", fix="codegen='eager', or leave it out",
            )  # fmt: skip
        self.pool: Any = None if self.emulated else torch.cuda.graph_pool_handle()
        self.stream: Any = None if self.emulated else torch.cuda.Stream(device)
        self.graphs: dict[tuple[int, ...], Any] = {}
        super().__init__(graph, schedule, options, rows)

    def generate(self, captured: Captured) -> Run:
        """What a graph records; compiling is not possible while one does, so it is run once before."""
        captured = self.lowered(captured)
        made = generators["eager" if self.emulated else self.options.codegen or self.codegen](captured)
        if not self.emulated:
            with self._beside(), undone(captured.tensors):
                for _ in range(2):
                    made()
        return made

    @property
    def lowers(self) -> bool:
        """Emulated, call by call."""
        return not self.emulated and super().lowers

    def play(self, runs: Sequence[Run]) -> None:
        """Replay some blocks after each other."""
        for i in range(0, len(runs), TOGETHER):
            some = tuple(runs[i : i + TOGETHER])
            key = tuple(map(id, some))
            if key not in self.graphs:
                self.graphs[key] = self._recorded(some)
            self.graphs[key].replay()

    def _recorded(self, runs: tuple[Run, ...]) -> Any:
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
        """On the plan's own stream, which waits for the current one and is waited for."""
        here = torch.cuda.current_stream()
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream):
            yield
        here.wait_stream(self.stream)

    def close(self) -> None:
        """Graphs go before the memory that they write to."""
        self.graphs = {}
        super().close()


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
