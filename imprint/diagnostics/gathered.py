"""Sums over gradients that stay on their device until they are read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Gathered:
    """What is known of the gradients of one module, edge or port since the last summary.

    The gradient of one update may come in parts (:meth:`add`); :meth:`close` says that it is complete.

    Attributes:
        updates: how many are complete.
        elements: their numbers altogether; those that never came are zeros.
        offered: numbers that a forward pass showed, for which a gradient may come.

    >>> gathered = Gathered()
    >>> gathered.add(torch.tensor([3.0, 0.0])); gathered.add(torch.tensor([-4.0])); gathered.close(4)
    >>> [v.item() for v in (gathered.norms, gathered.peak, gathered.nonzero)]
    [5.0, 4.0, 2]
    """

    def __init__(self) -> None:
        self.offered = 0
        self.clear()

    def clear(self) -> None:
        """Nothing is known any more, but what a forward pass has shown."""
        self.updates = self.elements = 0
        self.norms: Tensor | None = None
        self.peak: Tensor | None = None
        self.nonzero: Tensor | None = None
        self._squares: Tensor | None = None

    def add(self, gradient: Tensor) -> None:
        """Part of the gradient of the present update."""
        g = gradient.detach()
        g = g.to_dense() if g.layout != torch.strided else g
        g = g.abs()
        if not g.numel():
            return
        exact = torch.float32 if g.device.type == "mps" else torch.float64
        squares, peak, nonzero = torch.linalg.vector_norm(g, dtype=exact).square(), g.max().to(exact), g.count_nonzero()
        self._squares = squares if self._squares is None else self._squares + squares
        self.peak = peak if self.peak is None else torch.maximum(self.peak, peak)
        self.nonzero = nonzero if self.nonzero is None else self.nonzero + nonzero

    def close(self, elements: int) -> None:
        """The gradient of one update, of so many numbers, is complete."""
        self.updates += 1
        self.elements += elements
        self.flush()

    def flush(self) -> None:
        """What has come belongs to updates that are over."""
        if self._squares is not None:
            norm = self._squares.sqrt()
            self.norms, self._squares = norm if self.norms is None else self.norms + norm, None

    def drop(self) -> None:
        """Forget an update that was not made."""
        self._squares, self.offered = None, 0


def read(values: Sequence[Tensor | None]) -> list[float]:
    """All numbers on the host, waiting once for each device and dtype; nothing is zero."""
    made = [0.0] * len(values)
    kinds: dict[object, list[int]] = {}
    for i, value in enumerate(values):
        if value is not None:
            kinds.setdefault((value.device, value.dtype), []).append(i)
    for places in kinds.values():
        stacked = torch.stack([v for i in places if (v := values[i]) is not None]).tolist()
        for i, number in zip(places, stacked, strict=True):
            made[i] = float(number)
    return made
