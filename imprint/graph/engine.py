"""What may take a prepared rollout through its ticks in place of the graph itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .rollout import Rollout


class Engine(Protocol):
    """Does what the graph does, with the same numbers."""

    def learn(self, run: Rollout) -> None:
        """All ticks, learning; what ports hold, states, emissions and what was gathered are the run's afterwards."""

    def plain(self, run: Rollout) -> None:
        """All ticks without learning, under autograd where gradients are on, as one chunk that is not ended."""
