"""Models whose output's error comes back to the front as the context of a second pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from .model import Model

Error = Callable[[Tensor, Any], Tensor]


class LoopBack(Model):
    """Predicts, then learns from its own error, propagated *forward*.

    Pass 1 runs without context and without gradient; pass 2 takes ``error(output, context)`` as the signal's context,
    and the layers learn in it. Without a context there is only pass 1.

    Args:
        model: the chain.
        signal: the propagator of the signal; it gets what `error` returns.
        error: ``error(output, context)``, such as softmax minus one-hot; found without gradient.

    Shape: the result is the chain's output on the data in the last pass.

    Reference: Kohan, Rietman & Siegelmann, Signal Propagation (2022).
    Differs from the paper: nothing.

    >>> from imprint import propagators, signals
    >>> signal = propagators.signals.Fixed(signals.ProjectionContext(nn.Linear(4, 2), (4,), (2,)))
    >>> chain = propagators.Identity(nn.Linear(2, 4))
    >>> model = LoopBack(chain, signal, lambda out, y: out.softmax(1) - y)
    >>> model(torch.zeros(5, 2), torch.eye(5, 4)).shape
    torch.Size([5, 4])
    """

    def __init__(self, model: nn.Module, signal: nn.Module, error: Error) -> None:
        super().__init__(model, signal)
        if not callable(error):
            raise ArgumentError(
                type(self).__name__, "its error is not callable", expected="error(output, context)",
                got=type(error).__name__, fix="error=lambda out, y: out.softmax(1) - one_hot(y)",
            )  # fmt: skip
        self.error = error

    def forward(self, input: tuple[Any, Any]) -> Tensor:
        """The chain's output on the data in the last pass."""
        x, context = input
        with torch.no_grad():
            out: Tensor = self.through(x, None, None)
        return out if context is None else self.again(x, out, context)

    def again(self, x: Any, out: Tensor, context: Any) -> Tensor:
        """The second pass: the error as the signal's context, the context itself for the losses."""
        with torch.no_grad():
            error = self.error(out, context)
        result: Tensor = self.through(x, error, context)
        return result


class ForwardLoopBack(LoopBack):
    """Learns in both passes: first from the context, then from the error of what it said.

    Args:
        model: the chain.
        signal: the propagator of the signal; it gets the context, then what `error` returns, so both need one shape.
        error: ``error(output, context)``.

    Shape: the result is the chain's output on the data in the last pass.

    Reference: Kohan, Rietman & Siegelmann, Signal Propagation (2022).
    Differs from the paper: nothing.

    >>> from imprint import propagators, signals
    >>> signal = propagators.signals.Fixed(signals.ProjectionContext(nn.Linear(4, 2), (4,), (2,)))
    >>> chain = propagators.Identity(nn.Linear(2, 4))
    >>> model = ForwardLoopBack(chain, signal, lambda out, y: out.softmax(1) - y)
    >>> model(torch.zeros(5, 2), torch.eye(5, 4)).shape
    torch.Size([5, 4])
    """

    def forward(self, input: tuple[Any, Any]) -> Tensor:
        """The chain's output on the data in the last pass."""
        x, context = input
        out: Tensor = self.through(x, context, context)
        return out if context is None else self.again(x, out, context)
