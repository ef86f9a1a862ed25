"""Feedback alignment and sign symmetry: errors come back through other weights."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..functional.backward import with_feedback
from ..functional.operations import Func, Linear, Operations
from .rule import Rule, register_rule

KINDS = ("random", "usf", "brsf", "frsf")


class Feedback(Operations):
    """Products with the unit's weights have feedback in their backward.

    The feedback of a weight depends on its name, its size and the seed alone, so there is nothing to save.
    """

    def __init__(self, kind: str, seed: int) -> None:
        super().__init__()
        self.kind, self.seed = kind, seed
        self.drawn: dict[str, Tensor] = {}

    def linear(self, operation: Linear) -> Tensor:
        """With feedback, if the weight is one of the unit's."""
        if not torch.is_grad_enabled():
            return operation.run()
        name = self.names.get(id(operation.weight))
        if name is None:
            self.refuse_made(operation, "the error would come back through the weight itself")
            return operation.run()
        with torch.no_grad():
            feedback = self.feedback(name, operation.weight)
        return with_feedback(operation, feedback)

    def other(self, func: Func, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Torch's own, unless the error would come back through a weight itself."""
        self.refuse_closed(func, args, kwargs, "the error comes back through the weight itself")
        return func(*args, **kwargs)

    def feedback(self, name: str, weight: Tensor) -> Tensor:
        """B for one weight."""
        scale = 1 / math.sqrt(weight[0].numel())
        if self.kind == "usf":
            return weight.sign() * scale
        if self.kind == "brsf":
            return weight.sign() * torch.randn_like(weight).abs() * scale
        kept = self.drawn.get(name)
        if kept is None or kept.shape != weight.shape or kept.dtype != weight.dtype or kept.device != weight.device:
            own = torch.Generator().manual_seed(self.seed + zlib.crc32(name.encode()))
            made = torch.randn(weight.shape, generator=own, dtype=torch.float64) * scale
            kept = self.drawn[name] = made.to(weight.device, weight.dtype)
        return kept if self.kind == "random" else kept.abs() * weight.sign()


@register_rule("fa")
@dataclass(frozen=True)
class FA(Rule):
    r"""Feedback alignment: :math:`\delta_l = (B_{l+1}^\top \delta_{l+1}) \odot f'`, with B in place of the weights.

    Backpropagation in which every linear layer and convolution sends the error back through B. As there, units have no
    boundary, and wait for those behind them.

    Args:
        kind: ``"random"``: B is fixed and normal with variance 1 / fan-in; ``"usf"``: sign(W); ``"brsf"``: absolute
            random values with the sign of W, drawn anew each time; ``"frsf"``: the same values each time.
        seed: of the random values; they depend on it and on the weight's name alone.

    Optimizer: Adam, lr 5e-4.

    Reference: Lillicrap et al., Random synaptic feedback weights support error backpropagation (2016); for the signs
    Liao, Leibo & Poggio, How Important Is Weight Symmetry in Backpropagation? (2016).
    Differs from the paper: signs are scaled by 1 / sqrt(fan-in), so that errors keep their size.

    Weights inside of ``nn.MultiheadAttention``, recurrent layers and transposed convolutions are out of reach, and
    refused, as are weights made of others (weight norms); products without weights keep their derivative. No activation
    checkpointing inside a unit.
    """

    local: ClassVar[bool] = False
    allow_cross: ClassVar[bool] = True
    kind: str = "random"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ArgumentError(
                "rule 'fa'", "unknown kind=", expected=" | ".join(KINDS), got=repr(self.kind), fix="kind='usf'"
            )
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ArgumentError("rule 'fa'", "seed= is no whole number", got=repr(self.seed), fix="seed=0")

    def operations(self) -> Operations:
        """Feedback in the backward."""
        return Feedback(self.kind, self.seed)
