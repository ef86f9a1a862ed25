"""Where a training stands: all that a checkpoint holds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from time import perf_counter
from typing import Any

from ..errors import CheckpointError
from ..utils import set_random_state
from .epochs import Epochs
from .files import load_file
from .history import Epoch, History, Table
from .subject import Subject

FORMAT = 1
KEYS = {"format", "manager", "metrics", "tally", "window", "means", "history", "epoch", "batch", "seconds", "data"}


class Run:
    """One training in progress.

    Attributes:
        epoch: epochs that are done.
        batch: batches of the present one that are done.
        window: steps since the metrics were last read.
        means: of the present epoch's windows, ``{unit: {metric: [mean, steps]}}``.
    """

    def __init__(self, subject: Subject, epochs: Epochs) -> None:
        self.subject, self.epochs, self.history = subject, epochs, History()
        self.epoch = 0
        self.rest: Iterator[Any] | None = None
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self.batch = self.window = 0
        self.means: dict[str, dict[str, list[float]]] = {}
        self.subject.tally = None
        self.earlier, self.since = 0.0, perf_counter()

    @property
    def seconds(self) -> float:
        """Time spent on the present epoch, before a kill and after."""
        return self.earlier + perf_counter() - self.since

    def batches(self) -> Iterator[Any]:
        """What is left of the present epoch."""
        rest, self.rest = self.rest, None
        return self.epochs.start(self.epoch) if rest is None else rest

    def learn(self, batch: Any) -> None:
        """One step."""
        self.subject.learn(batch)
        self.batch += 1
        self.window += 1

    def read_window(self) -> Table:
        """The metrics since they were last read; they are added to the epoch's means."""
        table, steps = self.subject.read(), self.window
        self.window = 0
        for unit, row in table.items():
            for metric, value in row.items():
                mean = self.means.setdefault(unit, {}).setdefault(metric, [0.0, 0])
                mean[1] += steps
                mean[0] += (value - mean[0]) * steps / mean[1]
        return table

    def end_epoch(self, val: dict[str, float]) -> Epoch:
        """Close the accounts of the present epoch; `val` is what validation found."""
        units = {unit: {metric: mean for metric, (mean, _) in row.items()} for unit, row in self.means.items()}
        done = Epoch(self.epoch + 1, self.subject.steps, self.subject.values(), val, units, self.seconds)
        self.history.append(done)
        self.epoch += 1
        self._begin_epoch()
        return done

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only."""
        return {
            "format": FORMAT, **self.subject.state_dict(), "window": self.window, "means": self.means,
            "history": self.history.state_dict(), "epoch": self.epoch, "batch": self.batch, "seconds": self.seconds,
            "data": self.epochs.state_dict(),
        }  # fmt: skip

    def load(self, path: str | os.PathLike[str], progress: bool = False) -> None:
        """Go on from a file; metrics that it does not know start anew.

        Raises:
            CheckpointError: the file is damaged, or of another model, rule or data; nothing was changed.
        """
        state, where = load_file(path), f"checkpoint {os.fspath(path)!r}"
        if not isinstance(state, dict) or set(state) != KEYS or state["format"] != FORMAT:
            raise CheckpointError(
                where, f"it was not written by {self.subject.where}", expected=f"format {FORMAT}",
                got=sorted(map(str, state))[:12] if isinstance(state, dict) else type(state).__name__,
                fix="give the folder of a run; manager.load_state_dict reads best.pt",
            )  # fmt: skip
        try:
            history = History.from_state(state["history"])
            self.epochs.check(state["data"])
        except (KeyError, TypeError) as error:
            raise CheckpointError(where, "it is damaged", got=repr(error), fix="give another folder") from error
        self.subject.load_state_dict(state)
        tally = self.subject.tally
        self.history, self.epoch = history, state["epoch"]
        self._begin_epoch()
        self.subject.tally = tally
        self.batch, self.window, self.means = state["batch"], state["window"], state["means"]
        self.earlier = state["seconds"]
        if self.batch:
            self.rest = self.epochs.resume(self.epoch, self.batch, state["data"], progress)
            set_random_state(state["manager"]["rng"])
        else:
            self.epochs.load_state_dict(state["data"])
