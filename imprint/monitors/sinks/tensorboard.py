"""TensorBoard."""

from __future__ import annotations

import os
from typing import Any

from ...errors import MissingExtraError
from .sink import Sink, Table


class TensorBoard(Sink):
    """Writes event files: a chart ``<metric>/<unit>`` each, so that the units of one metric stand together.

    Args:
        folder: where the event files go; a run that is continued adds one.

    Raises:
        MissingExtraError: the package ``tensorboard`` is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtraError(
                "sinks.TensorBoard", "the package 'tensorboard' is not installed", got=error,
                fix='pip install "imprint[tensorboard]"',
            ) from None  # fmt: skip
        self.folder, self.make = os.fspath(folder), SummaryWriter
        self.writer: Any = None

    def start(self, step: int) -> None:
        """Begin an event file that hides what was recorded of later steps."""
        self.close()
        self.writer = self.make(self.folder, purge_step=step + 1)

    def write(self, step: int, table: Table) -> None:
        """One scalar a value."""
        if self.writer is None:
            self.writer = self.make(self.folder)
        for unit, row in table.items():
            for metric, value in row.items():
                self.writer.add_scalar(f"{metric}/{unit}", value, step)
        self.writer.flush()

    def close(self) -> None:
        """Close the event file; the next table begins another."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None
