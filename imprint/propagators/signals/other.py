"""Propagators of signals that do not learn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..learn import triple
from ..propagator import Propagator
from .learn import quadruple


class Fixed(Propagator):
    """Makes the two streams without a loss: a fixed projection, an overlay, a drawing.

    Args:
        module: takes ``(x, context)`` and returns ``(h1, t1, h0, t0)``.

    >>> from imprint.signals import FixedDrawContext
    >>> y = torch.tensor([3, 1])
    >>> h, t = Fixed(FixedDrawContext(1))((torch.zeros(2, 1, 8, 8), y, y))
    >>> t.shape
    torch.Size([2, 1, 8, 8])
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__(name=type(module).__name__)
        self.module = module

    @torch.no_grad()
    def forward(self, input: tuple[Tensor, Tensor | None, Any]) -> tuple[Tensor, Tensor | None]:
        """``(h1, t1)``, without a graph."""
        where = f"signal {self.name!r}"
        h0, t0, _ = triple(input, where)
        h1, t1, _, _ = quadruple(self.module((h0, t0)), where)
        return h1.detach(), None if t1 is None else t1.detach()
