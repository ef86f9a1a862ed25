"""What a loop trains, and what it wants to know of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from ..monitors.metric import Metric
from .history import Table


class Subject(ABC):
    """Takes batches, learns from them, and says how well it did.

    Attributes:
        where: the function that the user called, for errors.
        manager: what learns; it has ``state_dict``, ``load_state_dict`` and ``step_schedulers``.
        tally: sums over the batches of the present epoch.
    """

    where: str
    manager: Any
    tally: Metric | None = None

    @property
    def steps(self) -> int:
        """Batches learned from, over all epochs."""
        return self.manager.steps

    @property
    def gathered(self) -> int:
        """Batches since the last update that have not moved a weight yet."""
        return 0

    @property
    def probes(self) -> dict[str, Metric]:
        """What gathers numbers between two tables."""
        return self.manager.probes

    @abstractmethod
    def start(self) -> None:
        """Training begins, or goes on: bring modes in order."""

    @abstractmethod
    def learn(self, batch: Any) -> None:
        """Learn from one batch, and count how well the output before the update fits."""

    def update(self) -> None:  # noqa: B027  (most gather nothing)
        """Move the weights with what is gathered."""

    @abstractmethod
    def make_tally(self) -> Metric:
        """Sums of a new epoch."""

    def values(self) -> dict[str, float]:
        """What was counted since the epoch began."""
        return {} if self.tally is None else self.tally.read().get("", {})

    def read(self) -> Table:
        """The metrics since they were last read."""
        return self.manager.metrics()

    @abstractmethod
    def validate(self, progress: bool) -> dict[str, float]:
        """The values of the validation data; nothing is changed by it."""

    def step_schedulers(self, *metric: float) -> None:
        """Step every schedule; `metric` is passed on."""
        self.manager.step_schedulers(*metric)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only; the random numbers are in the manager's."""
        return {
            "manager": self.manager.state_dict(),
            "metrics": {name: metric.state_dict() for name, metric in self.probes.items()},
            "tally": None if self.tally is None else self.tally.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The counterpart of :meth:`state_dict`; metrics that it does not know start anew.

        Raises:
            CheckpointError: the manager's does not fit; nothing was changed.
        """
        self.manager.load_state_dict(state["manager"])
        for name, metric in self.probes.items():
            if name in state["metrics"]:
                metric.load_state_dict(state["metrics"][name])
        self.tally = None
        if state["tally"] is not None:
            self.tally = self.make_tally()
            self.tally.load_state_dict(state["tally"])
