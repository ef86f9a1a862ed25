"""What a loss is, and how a function of six arguments gets options."""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..errors import ArgumentError, ShapeError, did_you_mean

ARGUMENTS = ("sp_learn", "h1", "t1", "h0", "t0", "y_onehot")
LossFunction = Callable[..., Tensor]
ROWS = ("sample", "class")
ALIASES = {"topk": "k"}  # names of the reference implementation


class Loss(nn.Module, ABC):
    """A local loss with state or parameters of its own: subclass it and write ``forward``.

    ``forward(sp_learn, h1, t1, h0, t0, y_onehot)`` gets the propagator, the outputs on data and context (with their
    graph), the inputs on data and context (constants) and whatever was passed as context; it returns a scalar. A plain
    function of the same six arguments is a loss as well. Parameters learn if the propagator's optimizer has them.

    >>> class Squared(Loss):
    ...     def forward(self, sp_learn, h1, t1, h0, t0, y_onehot):
    ...         return (h1 - t1).square().mean()
    >>> import torch
    >>> Squared()(None, torch.ones(2), torch.zeros(2), None, None, None)
    tensor(1.)
    """

    @abstractmethod
    def forward(self, sp_learn: Any, h1: Tensor, t1: Tensor, h0: Tensor, t0: Tensor, y_onehot: Any) -> Tensor:
        """The loss, a scalar."""


class Configured(Loss):
    """A loss function with some of its options set; :func:`configurable` makes them.

    Args:
        function: a function made by :func:`configurable`.
        options: its keyword options.
    """

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]) -> None:
        super().__init__()
        self.function, self.options = function, dict(options)

    def forward(self, sp_learn: Any, h1: Tensor, t1: Tensor, h0: Tensor, t0: Tensor, y_onehot: Any) -> Tensor:
        """The function's loss with these options."""
        return self.function(sp_learn, h1, t1, h0, t0, y_onehot, **self.options)

    def extra_repr(self) -> str:
        """Name and options."""
        options = ", ".join(f"{k}={v!r}" for k, v in self.options.items())
        return f"{getattr(self.function, '__name__', self.function)}({options})"


def configurable(function: LossFunction) -> Callable[..., Any]:
    """Let a loss function be its own factory: with the six arguments it is the loss, with fewer it sets options.

    Args:
        function: takes the six arguments, then keyword-only options with defaults.

    Raises:
        ArgumentError: an unknown option, or the wrong number of arguments; raised when the option is set.

    >>> @configurable
    ... def distance(sp_learn, h1, t1, h0, t0, y_onehot, *, scale=1.0):
    ...     return (h1 - t1).abs().sum() * scale
    >>> import torch
    >>> six = (None, torch.ones(2), torch.zeros(2), None, None, None)
    >>> distance(*six), distance(scale=0.5)(*six)
    (tensor(2.), tensor(1.))
    >>> distance(scale=0.5)
    Configured(distance(scale=0.5))
    """
    options = [k for k, v in inspect.signature(function).parameters.items() if v.kind is inspect.Parameter.KEYWORD_ONLY]

    @functools.wraps(function)
    def loss(*arguments: Any, **chosen: Any) -> Any:
        for alias, name in ALIASES.items():
            if alias in chosen and name in options:
                if name in chosen:
                    raise ArgumentError(
                        f"loss {function.__name__}", f"{alias}= beside {name}=, which is the same",
                        got=f"{name}={chosen[name]!r}, {alias}={chosen[alias]!r}", fix=f"leave out {alias}=",
                    )  # fmt: skip
                chosen[name] = chosen.pop(alias)
        for name in chosen:
            if name not in options:
                raise ArgumentError(
                    f"loss {function.__name__}", f"unknown option {name!r}", fix=did_you_mean(name, options)
                )
        if len(arguments) == len(ARGUMENTS):
            return function(*arguments, **chosen)
        if len(arguments) > len(options) or set(options[: len(arguments)]) & set(chosen):
            raise ArgumentError(
                f"loss {function.__name__}", "wrong arguments",
                expected=f"({', '.join(ARGUMENTS)}), or options: {', '.join(options)}",
                got=f"{len(arguments)} arguments and {sorted(chosen)}",
                fix="the six arguments, or options by name",
            )  # fmt: skip
        return Configured(loss, dict(zip(options, arguments, strict=False)) | chosen)

    return loss


def option(loss: object, name: str, default: Any) -> Any:
    """What an option of a loss is: as it was set, or as its function declares it.

    >>> option(lambda *six: 0.0, "rows", "sample")
    'sample'
    """
    if isinstance(loss, Configured):
        return loss.options[name] if name in loss.options else option(loss.function, name, default)
    if isinstance(loss, nn.Module) or not callable(loss):
        return default
    declared = inspect.signature(loss).parameters.get(name)
    return default if declared is None or declared.default is inspect.Parameter.empty else declared.default


def check_rows(where: str, rows: str, h1: Tensor, t1: Tensor) -> None:
    """Refuse an unknown kind of context row, an empty batch, and a number of rows that does not fit.

    >>> import torch
    >>> check_rows("a loss", "sample", torch.zeros(4, 3), torch.zeros(4, 3))
    """
    if rows not in ROWS:
        raise ArgumentError(
            where, "unknown rows", expected=" | ".join(map(repr, ROWS)), got=repr(rows), fix="rows='class'"
        )
    if len(h1) == 0 or len(t1) == 0:
        raise ShapeError(
            where, "the batch is empty", expected="at least one sample and one context row",
            got=f"{len(h1)} samples and {len(t1)} context rows", fix="leave empty batches out",
        )  # fmt: skip
    if rows == "sample" and len(h1) != len(t1):
        raise ShapeError(
            where, "it needs one context row a sample", expected=f"{len(h1)} rows", got=f"{len(t1)} rows",
            fix="pass rows='class' to the loss (also for batches as large as the number of classes), or use v1",
        )  # fmt: skip
