"""Propagators of hand-wired chains that do not learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ..functional import propagators as F
from .learn import triple
from .propagator import Propagator

Triple = tuple[Tensor, Tensor | None, Any]


class Fixed(Propagator):
    """Runs a module on both streams without a loss and without a graph: pooling, flattening, a frozen layer.

    Args:
        module: what runs.

    >>> import torch
    >>> Fixed(nn.Flatten())((torch.zeros(3, 2, 2), torch.zeros(1, 2, 2), None))[1].shape
    torch.Size([1, 4])
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__(name=type(module).__name__)
        self.module = module

    def forward(self, input: Triple) -> Triple:
        """``(module(h), module(t), context)``, cut from the graph."""
        h, t, context = triple(input, f"propagator {self.name!r}")
        h = h.detach() if isinstance(h, Tensor) else h
        return F.fixed((h, t, context), self.module)


class Forward(Propagator):
    """Runs a module on both streams and lets gradients pass: the part of a unit that lies outside of it.

    Args:
        module: what runs.

    >>> import torch
    >>> h = torch.ones(3, requires_grad=True)
    >>> Forward(nn.ReLU())((h, None, None))[0].requires_grad
    True
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__(name=type(module).__name__)
        self.module = module

    def forward(self, input: Triple) -> Triple:
        """``(module(h), module(t), context)``."""
        return F.forward(triple(input, f"propagator {self.name!r}"), self.module)


class Identity(Propagator):
    """Runs a module on the data and leaves the context as it is; the outer loop trains it: a classifier.

    Args:
        module: what runs.
        optimizer: taken so that all propagators can be made alike; not used, the outer loop has its own.
        loss: likewise.

    >>> import torch
    >>> h, t, context = Identity(nn.Linear(2, 3))((torch.ones(4, 2), torch.eye(2), "context"))
    >>> h.shape, h.requires_grad, t
    (torch.Size([4, 3]), True, tensor([[1., 0.],
            [0., 1.]]))
    """

    def __init__(
        self, module: nn.Module, optimizer: Optimizer | None = None, loss: Callable[..., Any] | None = None
    ) -> None:
        super().__init__(name=type(module).__name__)
        self.module = module

    def forward(self, input: Triple) -> Triple:
        """``(module(h), t, context)``."""
        return F.identity(triple(input, f"propagator {self.name!r}"), self.module)
