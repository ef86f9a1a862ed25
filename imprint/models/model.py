"""Models join a signal and a chain of propagators, so that one call learns and predicts."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..errors import ArgumentError


class Model(nn.Module):
    """A signal and the propagators behind it: subclass it and write ``forward(input)`` for ``input = (x, context)``.

    It is called as ``model(x, context)``, as ``model((x, context))``, which gives ``forward`` the same, or as
    ``model(x)``, which means no context: inference.

    Args:
        model: the chain; takes and returns the triple ``(h, t, context)``.
        signal: takes ``(x, context, context)`` and returns ``(h, t)``.

    Raises:
        ArgumentError: a part is no module, or a layer of the chain is not wrapped; not a pair of input and context.

    >>> class Sum(Model):
    ...     def forward(self, input):
    ...         x, context = input
    ...         return x if context is None else x + context
    >>> sums = Sum(nn.Identity(), nn.Identity())
    >>> sums(1, 2), sums((1, 2)), sums(1, None)
    (3, 3, 1)
    """

    def __init__(self, model: nn.Module, signal: nn.Module) -> None:
        super().__init__()
        for role, part in (("model", model), ("signal", signal)):
            if not isinstance(part, nn.Module):
                raise ArgumentError(
                    type(self).__name__, f"its {role} is no torch module", got=type(part).__name__,
                    fix="the chain comes first, then the signal",
                )  # fmt: skip
        _check_wrapped(model, "")
        self.signal = signal
        self.model = model

    def __call__(self, *input: Any) -> Any:
        """Run on a pair of input and context, given as two arguments or as one tuple."""
        if len(input) == 1:
            pair = tuple(input[0]) if isinstance(input[0], (tuple, list)) else (input[0], None)
        else:
            pair = input
        if len(pair) != 2:
            raise ArgumentError(
                type(self).__name__, "it takes one input and one context", expected="model(x, y) or model((x, y))",
                got=f"{len(pair)} values", fix="model(x, None) for inference; model((x1, x2), y) for several inputs",
            )  # fmt: skip
        return super().__call__(pair)

    def through(self, x: Any, signal: Any, context: Any) -> Any:
        """One pass, the output on the data: `signal` is the signal's context, `context` rides along for the losses."""
        h, t = self.signal((x, signal, context))
        h, t, context = self.model((h, t, context))
        return h


def _check_wrapped(module: nn.Module, path: str) -> None:
    """Refuse torch's own layers among the links of a Sequential: they take a tensor, and get ``(h, t, context)``."""
    if not isinstance(module, nn.Sequential):
        return
    for name, child in module.named_children():
        at = f"{path}.{name}" if path else name
        _check_wrapped(child, at)
        bare = type(child).__module__.startswith("torch.nn.modules.")
        if bare and not isinstance(child, (nn.Sequential, nn.Identity)):
            raise ArgumentError(
                f"layer {at!r} of the chain", "it is not wrapped in a propagator",
                expected="a link that takes and returns (h, t, context)", got=type(child).__name__,
                fix=f"propagators.Fixed({type(child).__name__}(...)); Loss(...) where it learns",
            )  # fmt: skip


class Forward(Model):
    """Learns and predicts in one forward pass: with a context every layer learns as it runs, without one it only runs.

    Args:
        model: the chain.
        signal: the propagator of the signal.

    Shape: x as the signal takes it; context ``[B]`` labels, or None; result the chain's output on the data.

    Reference: Kohan, Rietman & Siegelmann, Signal Propagation (2022).
    Differs from the paper: nothing.

    >>> import torch
    >>> from imprint import propagators, signals
    >>> signal = propagators.signals.Fixed(signals.ProjectionContext(nn.Linear(3, 2), (3,), (2,)))
    >>> model = Forward(propagators.Identity(nn.Linear(2, 4)), signal)
    >>> model(torch.zeros(5, 2), torch.eye(3)).shape, model(torch.zeros(5, 2)).shape
    (torch.Size([5, 4]), torch.Size([5, 4]))
    """

    def forward(self, input: tuple[Any, Any]) -> Tensor:
        """The chain's output on the data."""
        x, context = input
        out: Tensor = self.through(x, context, context)
        return out
