"""What a context stream is to the manager that runs it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ArgumentError

Tree = Any


class ContextStream(nn.Module):
    """Makes the inputs of the pass that goes before the data pass; returned by a rule's ``stream()``.

    Subclass it, write :meth:`describe`, :meth:`build`, :meth:`codes` and :meth:`forward`, and say what it is:

    Attributes:
        learned: its parameters learn, as a unit of its own.
        paired: every sample has a context row, by its label or its place in the batch.
        needs_labels: it makes nothing without targets.
        from_error: a first pass of the model tells it the error of its output.
        modulates: it has no inputs of its own, but changes those of the data pass by the error; the units' outputs in
            the first pass are their context.
    """

    learned = paired = from_error = modulates = False
    needs_labels = True

    def options(self) -> dict[str, Any]:
        """What it was made with; two rules share a stream only if it is the same."""
        return {k: v for k, v in {**vars(self), **self._modules}.items() if not k.startswith("_") and k != "training"}

    def describe(self, inputs: Tree, dims: list[int | None], num_classes: int | None, width: int) -> dict[str, Any]:
        """What :meth:`build` needs, in plain values: `dims` are the batch dimensions of the leaves of `inputs`."""
        return {}

    def build(self, record: dict[str, Any], device: torch.device) -> None:
        """Make parameters and buffers."""

    def data(self, inputs: Tree) -> Tree:
        """What the data pass sees: the inputs as they are."""
        return inputs

    def codes(self, onehot: Tensor | None, rows: int, error: Tensor | None) -> tuple[Tensor, bool]:
        """What the context inputs of a batch of `rows` are made from, and whether that is one row a class."""
        raise self._missing("codes(self, onehot, rows, error)")

    def candidates(self, inputs: Tree) -> Tensor | None:
        """Codes that let every class be scored; None if this stream says nothing about classes."""
        return None

    def modulated(self, inputs: Tree, error: Tensor) -> Tree:
        """The inputs of the data pass, changed by the error of the first pass, ``[B, ...]``."""
        raise self._missing("modulated(self, inputs, error)")

    def _missing(self, what: str) -> ArgumentError:
        return ArgumentError(
            f"context stream {type(self).__name__!r}", "it does not say what it makes", fix=f"write {what}"
        )
