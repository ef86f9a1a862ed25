"""Blocks of ticks as CUDA graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...graph import Graph
from ..backend import Options, register_backend
from ..capture import Captured
from ..codegen import Run
from ..compiled import Compiled
from ..graphs import Graphs
from ..timetable import Timetable

TOGETHER = 8
"""Blocks that one graph replays: the price of starting a graph is paid once for all of them."""


@register_backend("cuda_graph")
class CudaGraph(Compiled):
    """Captures blocks of ticks, compiles them, and replays them as CUDA graphs: one call of the host for several ticks.

    Inputs are brought and results taken on the stream that is current. Where there is no CUDA device,
    ``allow_emulation=True`` replays blocks call by call; see :class:`imprint.runtime.graphs.Graphs`.
    """

    codegen = "inductor"

    def __init__(self, graph: Graph, schedule: Timetable, options: Options) -> None:
        assert graph.known is not None
        device = torch.device(graph.known["device"])
        self.maker = Graphs("compile(backend='cuda_graph')", device, options.codegen, options.allow_emulation)
        self.graphs: dict[tuple[int, ...], Any] = {}
        super().__init__(graph, schedule, options)

    def generate(self, captured: Captured) -> Run:
        """What a graph records."""
        return self.maker.ready(self.lowered(captured))

    def lowered(self, captured: Captured) -> Captured:
        """Emulated, call by call."""
        return captured if self.maker.emulated else super().lowered(captured)

    def play(self, runs: Sequence[Run]) -> None:
        """Replay some blocks after each other."""
        for i in range(0, len(runs), TOGETHER):
            some = tuple(runs[i : i + TOGETHER])
            key = tuple(map(id, some))
            if key not in self.graphs:
                self.graphs[key] = self.maker.record(some)
            self.graphs[key].replay()

    def close(self) -> None:
        """Graphs go before the memory that they write to."""
        self.graphs = {}
        super().close()
