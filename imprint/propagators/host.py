"""Where a propagator takes its step: what becomes of a loss that is not finite, and who moves the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..credit import Params
from ..errors import NonFiniteError

if TYPE_CHECKING:
    from .propagator import Propagator


class Host:
    """The optimizers themselves, and errors at once. Compiled ticks put in their place what can be captured."""

    def check(self, prop: Propagator, loss: Tensor) -> None:
        """Refuse a loss that is NaN or infinite, before anything is written."""
        if not math.isfinite(loss.item()):
            raise NonFiniteError(
                f"unit {prop.name!r}", "its loss is not finite; its weights are as they were",
                expected="a finite loss", got=loss.item(),
                fix="lower the learning rate, pass grad_clip=, or check the input for NaN",
            )  # fmt: skip

    def check_norm(self, prop: Propagator, norm: Tensor) -> None:
        """Refuse a gradient that is NaN or infinite: clipped, it would make every weight NaN."""
        if not math.isfinite(norm.item()):
            raise NonFiniteError(
                f"unit {prop.name!r}", "its loss is finite and its gradient is not; its weights are as they were",
                expected="a finite gradient", got=norm.item(),
                fix="keep roots, logarithms and norms in its loss away from zero",
            )  # fmt: skip

    def ready(self, prop: Propagator, grads: Params) -> Params:
        """Gradients as they are to be clipped and stepped with."""
        return grads

    def step(self, prop: Propagator, grads: Params) -> None:
        """Step every optimizer, and leave ``.grad`` None on all `grads`' parameters."""
        self.step_all(prop.optimizers, {prop.params[k]: g for k, g in grads.items()})

    @staticmethod
    @contextmanager
    def placed(grads: Mapping[Tensor, Tensor]) -> Iterator[None]:
        """Gradients by parameter, where optimizers look for them; afterwards there are none."""
        for p, g in grads.items():
            # a fused optimizer walks both tensors by the same memory order
            p.grad = g if g.stride() == p.stride() else torch.empty_like(p).copy_(g)
        try:
            yield
        finally:
            for p in grads:
                p.grad = None

    @classmethod
    def step_all(cls, optimizers: Iterable[Optimizer], grads: Mapping[Tensor, Tensor]) -> None:
        """Step these, with gradients by parameter."""
        with cls.placed(grads):
            for optimizer in optimizers:
                optimizer.step()


EAGER = Host()
