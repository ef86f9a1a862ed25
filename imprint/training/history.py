"""What a training has found, epoch by epoch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from ..diagnostics.records import Record

Table = dict[str, dict[str, float]]


@dataclass
class Epoch:
    """One epoch.

    Attributes:
        number: 1 is the first.
        steps: learning steps when it ended.
        train: ``{"accuracy": ..., "loss": ...}`` of the model's outputs while it learned, before each batch's update.
        val: the same of the validation data after the epoch; empty without such data.
        units: ``{unit: {metric: value}}``, the means of the epoch.
        seconds: time it took, validation included; two histories are equal whatever it was.
    """

    number: int
    steps: int
    train: dict[str, float] = field(default_factory=dict)
    val: dict[str, float] = field(default_factory=dict)
    units: Table = field(default_factory=dict)
    seconds: float = field(default=0.0, compare=False)

    @property
    def score(self) -> tuple[bool, float]:
        """Larger is better: accuracy, or minus the loss; of validation data, where there are any."""
        values = self.val or self.train
        score = values["accuracy"] if "accuracy" in values else -values.get("loss", math.inf)
        return "accuracy" in values, -math.inf if math.isnan(score) else score


@dataclass
class History:
    """All epochs of a training.

    >>> history = History([Epoch(1, 10, val={"accuracy": 0.5}), Epoch(2, 20, val={"accuracy": 0.9})])
    >>> history.append(Epoch(3, 30, val={"accuracy": 0.9}))
    >>> history.best.number, len(history), history.seconds
    (2, 3, 0.0)
    """

    epochs: list[Epoch] = field(default_factory=list)

    @property
    def best(self) -> Epoch | None:
        """The first epoch with the highest accuracy, or the lowest loss of values; None before the first has ended.

        Once an epoch has been validated, only those that were are compared.
        """
        best: Epoch | None = None
        for epoch in [e for e in self.epochs if e.val] or self.epochs:
            if best is None or epoch.score > best.score:
                best = epoch
        return best

    @property
    def seconds(self) -> float:
        """Time of all epochs."""
        return sum(epoch.seconds for epoch in self.epochs)

    def append(self, epoch: Epoch) -> None:
        """Add one."""
        self.epochs.append(epoch)

    def __len__(self) -> int:
        return len(self.epochs)

    def records(self) -> list[Record]:
        """Rows for :func:`imprint.diagnostics.plot_run`: each epoch's for every unit, and ``train`` and ``val``."""
        rows = []
        for epoch in self.epochs:
            for unit, columns in (epoch.units | {"train": epoch.train, "val": epoch.val}).items():
                rows += [Record(epoch.steps, unit, metric, value) for metric, value in columns.items()]
        return rows

    def state_dict(self) -> list[dict[str, Any]]:
        """Plain values."""
        return [asdict(epoch) for epoch in self.epochs]

    @staticmethod
    def from_state(state: list[dict[str, Any]]) -> History:
        """The counterpart of :meth:`state_dict`."""
        return History([Epoch(**epoch) for epoch in state])
