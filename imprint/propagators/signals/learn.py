"""Propagators of signals that learn: ``(x, context, context) -> (h1, t1)``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...errors import ArgumentError
from .. import learn


def quadruple(made: Any, where: str) -> tuple[Any, Any, Any, Any]:
    """What a signal's module gives, if it is ``(h1, t1, h0, t0)``.

    >>> quadruple((1, 2, 3, 4), "here")
    (1, 2, 3, 4)
    """
    if not isinstance(made, (tuple, list)) or len(made) != 4:
        raise ArgumentError(
            where, "its module is no generator", expected="(h1, t1, h0, t0)",
            got=f"{len(made)} values" if isinstance(made, (tuple, list)) else type(made).__name__,
            fix="end the signal with a signals.Generator, such as ProjectionContext",
        )  # fmt: skip
    h1, t1, h0, t0 = made
    return h1, t1, h0, t0


class Learn(learn.Learn):
    """Makes the two streams and learns from them; used and overridden as :class:`imprint.propagators.Learn`.

    Its module takes the pair ``(x, context)`` and returns ``(h1, t1, h0, t0)``, a generator with formatters before it;
    t0, which the loss gets, is the *formatted* context.

    >>> import torch
    >>> from imprint.signals import ProjectionContext
    >>> class Small(Learn):
    ...     def loss_(self, h1, t1, h0, t0, y_onehot):
    ...         return t1.square().mean()
    >>> project = torch.nn.Linear(3, 2)
    >>> signal = Small(ProjectionContext(project, (3,), (2,)), torch.optim.SGD(project.parameters(), lr=0.1))
    >>> h, t = signal((torch.zeros(5, 2), torch.eye(3), torch.eye(3)))
    >>> t.shape, t.requires_grad
    (torch.Size([3, 2]), False)
    """

    def streams(self, h0: Tensor, t0: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """What the generator makes."""
        return quadruple(self.module((h0, t0)), f"signal {self.name!r}")

    def emit(self, h1: Tensor, t1: Tensor | None, context: Any) -> tuple[Any, ...]:
        """The two streams, without the context."""
        return h1, t1


class Loss(Learn, learn.Loss):
    """A signal that learns from any loss of six arguments; see :class:`imprint.propagators.Loss`.

    >>> import torch
    >>> from imprint.loss import v1_input_label_direct
    >>> from imprint.signals import LabelNumberToOnehot, ProjectionContext
    >>> project = torch.nn.Linear(3, 2)
    >>> module = torch.nn.Sequential(LabelNumberToOnehot(3), ProjectionContext(project, (3,), (2,)))
    >>> signal = Loss(module, torch.optim.Adam(project.parameters()), v1_input_label_direct)
    >>> y = torch.tensor([0, 1, 2])
    >>> h, t = signal((torch.zeros(3, 2), y, y))
    """
