"""Where the numbers of a run go."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

Table = Mapping[str, Mapping[str, float]]
"""``{unit: {metric: value}}``, as ``manager.metrics()`` gives it."""


class Sink(ABC):
    """Takes one table after the other.

    >>> class Last(Sink):
    ...     '''Keeps the newest.'''
    ...     def write(self, step, table):
    ...         self.step, self.table = step, table
    >>> last = Last()
    >>> last.write(10, {"fc": {"loss": 0.5}})
    >>> last.step
    10
    """

    def start(self, step: int) -> None:  # noqa: B027  (may be left as it is)
        """A run begins, or goes on, after `step` steps: what was recorded of later steps is void."""

    @abstractmethod
    def write(self, step: int, table: Table) -> None:
        """Take the numbers found after `step` learning steps."""

    def close(self) -> None:  # noqa: B027
        """Bring everything to its place. Writing on afterwards is allowed."""
