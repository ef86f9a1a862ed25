"""The activation of networks that learn by SoftHebb."""

from __future__ import annotations

from torch import Tensor, nn

from ..errors import ArgumentError
from ..functional.triangle import triangle
from ..utils import is_number


class Triangle(nn.Module):
    r""":math:`\max(u - \mathrm{mean}_c\, u, 0)^p` over channels; see :func:`imprint.functional.triangle.triangle`.

    Args:
        power: p.

    Shape: ``[B, C, ...]``, the same out.

    Raises:
        ArgumentError: the power is no positive number.

    >>> import torch
    >>> Triangle(2.0)(torch.tensor([[1.0, 2.0, 6.0]]))
    tensor([[0., 0., 9.]])
    """

    def __init__(self, power: float = 1.0) -> None:
        super().__init__()
        if not is_number(power) or power <= 0:
            raise ArgumentError("Triangle", "the power is no positive number", got=repr(power), fix="Triangle(0.7)")
        self.power = power

    def forward(self, u: Tensor) -> Tensor:
        """What is above the mean."""
        return triangle(u, self.power)

    def extra_repr(self) -> str:
        """The power."""
        return f"power={self.power}"
