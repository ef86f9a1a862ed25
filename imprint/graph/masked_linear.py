"""A linear projection whose weights may be masked and bounded."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .masks import Mask, check_constraint, make_mask


class MaskedLinear(nn.Linear):
    r""":math:`y = (M \odot W)\,x + b` with a mask M of zeros and ones and :math:`|W_{ij}| \le` ``max_abs``.

    The mask is a buffer and part of the state; whoever steps the weights calls :meth:`project_` afterwards.

    Shape: ``[..., in_features] -> [..., out_features]``; mask ``[out_features, in_features]``.

    >>> linear = MaskedLinear(2, 2, bias=False)
    >>> linear.constrain(mask=torch.eye(2), max_abs=0.0)
    >>> linear(torch.ones(1, 2)).abs().sum().item()
    0.0
    """

    mask: Tensor | None

    def __init__(self, in_features: int, out_features: int, bias: bool = True, device=None, dtype=None) -> None:  # type: ignore[no-untyped-def]
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.register_buffer("mask", None)
        self.max_abs: float | None = None

    def constrain(
        self, mask: Mask | Tensor | None = None, max_abs: float | None = None, persist: bool = True, where: str = ""
    ) -> None:
        """Add a constraint and project at once; masks multiply, the smaller bound holds.

        Args:
            mask: zeros and ones, or a function that makes them.
            max_abs: largest weight.
            persist: keep it; else the weights are projected this once.
        """
        made = self.make_mask(mask, max_abs, where or "constrain")
        if persist:
            self.mask = made if made is not None else self.mask
            self.max_abs = (
                min(v for v in (max_abs, self.max_abs) if v is not None) if max_abs is not None else self.max_abs
            )
        project(self.weight, made, max_abs)

    def make_mask(self, mask: Mask | Tensor | None, max_abs: float | None, where: str) -> Tensor | None:
        """The mask that another constraint would make, or None; nothing is changed.

        Raises:
            ArgumentError, ShapeError: it does not fit.
        """
        check_constraint(where, mask, max_abs)
        if mask is None:
            return None
        rows, columns = self.weight.shape
        made = make_mask(mask, rows, columns, where).to(self.weight)
        return made if self.mask is None else made * self.mask

    def project_(self) -> None:
        """Put the weights back inside their constraints."""
        project(self.weight, self.mask, self.max_abs)

    def forward(self, x: Tensor) -> Tensor:
        """Project `x`."""
        weight = self.weight if self.mask is None else self.weight * self.mask
        return F.linear(x, weight, self.bias)


@torch.no_grad()
def project(weight: Tensor, mask: Tensor | None, max_abs: float | None) -> None:
    """In place: zero where the mask is, clamped to ``±max_abs``."""
    if mask is not None:
        weight.mul_(mask)
    if max_abs is not None:
        weight.clamp_(-max_abs, max_abs)
