"""What a unit's weights see: the products that ran in it, for rules about inputs, weights and outputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..functional.operations import Func, Linear, Operations


@dataclass(frozen=True)
class Synapse:
    """One product with a weight that ran in a unit on its data.

    Attributes:
        operation: ``F.linear`` or a convolution, with its arguments.
        out: what it gave (bias included), with its graph.
    """

    operation: Linear
    out: Tensor

    @property
    def x(self) -> Tensor:
        """Its input, detached."""
        return self.operation.input.detach()

    @property
    def weight(self) -> Tensor:
        """The parameter, ``[out, in]`` or ``[out, in / groups, *kernel]``."""
        return self.operation.weight

    @property
    def conv(self) -> bool:
        """Is it a convolution?"""
        return self.operation.dims > 0


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
        self.refuse_made(operation, "its change would reach none of them")
        self.seen.append(Synapse(operation, out))
        return out

    def other(self, func: Func, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Torch's own, unless a weight would be seen by nobody."""
        self.refuse_closed(func, args, kwargs, "its input cannot be seen")
        return func(*args, **kwargs)


@contextmanager
def recorded(names: dict[int, str] | None = None) -> Iterator[list[Synapse]]:
    """All products with a weight that run inside the block; `names` are the unit's own weights, by id."""
    recorder = Recorder()
    recorder.names = names or {}
    with recorder:
        yield recorder.seen
