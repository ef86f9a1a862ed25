"""How one kind of optimizer moves a parameter, and what is registered for which kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from ...errors import ArgumentError

Group = Mapping[str, Any]


class Maths:
    r"""The step of one kind of optimizer, without the optimizer: new values from old ones.

    What changes from step to step or between rollouts comes as tensors (`scalars`), what rests comes from the group of
    parameters and is baked into a capture:

    - ``size`` :math:`= -\eta / (1 - \beta_1^t)`,
    - ``root`` :math:`= \sqrt{1 - \beta_2^t}`,
    - ``keep`` :math:`= 1 - \eta \lambda`, of decay that is decoupled from the gradient,

    with the lr :math:`\eta`, and :math:`t` the number of the step, from 1. A kind without corrections has
    :math:`\beta_1 = \beta_2 = 0`.

    Attributes:
        options: names of the group's settings that its maths depends on.
        scalars: which of ``size``, ``root`` and ``keep`` it reads.
        counts: its state has a ``step``.
    """

    options: ClassVar[tuple[str, ...]] = ()
    scalars: ClassVar[tuple[str, ...]] = ("size",)
    counts: ClassVar[bool] = True

    def why_not(self, group: Group) -> str | None:
        """Why parameters with these settings cannot be moved by this maths; None if they can."""
        return None

    def names(self, group: Group) -> tuple[str, ...]:
        """Names of the state tensors of the parameter's shape, in the order in which the optimizer makes them."""
        return ()

    def betas(self, group: Group) -> tuple[float, float]:
        """What the corrections ``size`` and ``root`` are powers of."""
        return 0.0, 0.0

    def decay(self, group: Group) -> float:
        """The decay that is decoupled from the gradient."""
        return 0.0

    def new(
        self, param: Tensor, grad: Tensor, state: Mapping[str, Tensor], group: Group, scalars: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The moved parameter and the moved state; nothing is written.

        Shape:
            - param, grad, each of state: the same; scalars: ().
        """
        raise ArgumentError(f"maths {type(self).__name__}", "it has no step", fix="write new(self, param, grad, ...)")


M = TypeVar("M", bound=type[Maths])
registry: dict[type[torch.optim.Optimizer], Maths] = {}


def register_optimizer(*kinds: type[torch.optim.Optimizer]) -> Callable[[M], M]:
    """Make a step known for optimizers of exactly these types.

    Raises:
        ArgumentError: there is one already.
    """

    def register(cls: M) -> M:
        for kind in kinds:
            if kind in registry and type(registry[kind]).__qualname__ != cls.__qualname__:
                where = f"register_optimizer({kind.__name__})"
                raise ArgumentError(where, "its step is known already", got=type(registry[kind]), fix="another type")
            registry[kind] = cls()
        return cls

    return register


def decayed(param: Tensor, grad: Tensor, group: Group) -> Tensor:
    """The gradient downhill, with the decay that torch adds to it."""
    grad = -grad if group["maximize"] else grad
    return grad.add(param, alpha=group["weight_decay"]) if group["weight_decay"] != 0 else grad
