"""What a unit's weights see: the products that ran in it, for rules about inputs, weights and outputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..functional.operations import Linear, Operations


@dataclass(frozen=True)
class Synapse:
    """One product with a weight that ran in a unit on its data.

    Attributes:
        x: its input, detached.
        weight: the parameter, ``[out, in]`` or ``[out, in / groups, *kernel]``.
        out: its output (bias included), with its graph.
        bias: or None.
        stride, padding, dilation, groups: of a convolution.
        dims: of space; 0 for ``F.linear``.
    """

    x: Tensor
    weight: Tensor
    out: Tensor
    bias: Tensor | None = None
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1
    dims: int = 0

    @property
    def conv(self) -> bool:
        """Is it a convolution?"""
        return self.dims > 0


class Recorder(Operations):
    """Notes every product with one of the unit's own weights.

    >>> import torch
    >>> with recorded() as seen:
    ...     _ = torch.nn.Linear(2, 3)(torch.ones(4, 2))
    >>> seen[0].out.shape
    torch.Size([4, 3])
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Synapse] = []

    def linear(self, operation: Linear) -> Tensor:
        """Run it, and note it."""
        out = operation.run()
        o = operation
        self.seen.append(
            Synapse(o.input.detach(), o.weight, out, o.bias, o.stride, o.padding, o.dilation, o.groups, o.dims)
        )
        return out


@contextmanager
def recorded() -> Iterator[list[Synapse]]:
    """All products with a weight that run inside the block."""
    recorder = Recorder()
    with recorder:
        yield recorder.seen
