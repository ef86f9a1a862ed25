"""The graph's own engine, held to the recorded schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...graph import Result
from ..backend import Backend, register_backend


@register_backend("eager")
class Eager(Backend):
    """Runs the graph as it runs itself, bitwise: the reference that other backends are compared with.

    Neither option has an effect on it; :meth:`notes` says why. Ticks, rows and lengths may differ from those that were
    recorded: the schedule repeats, and nothing of it is made for a number of ticks.
    """

    def rollout(self, batch: Mapping[str, Any], reset: bool, keep: str) -> Result:
        """``graph.rollout``."""
        return self.graph.rollout(batch, reset, keep)

    def notes(self) -> dict[str, str]:
        """Both options have no effect."""
        return {
            "fuse_projections": "no effect on eager: a projection is already batched, one product for all ticks that "
            "no update and no cycle keeps apart; products of different edges are not joined",
            "fuse_port_sums": "no effect on eager: what arrives at a port is added for all those ticks at once",
        }
