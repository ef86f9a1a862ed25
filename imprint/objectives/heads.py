"""A local classifier (or regressor) on a unit's own output."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from ..functional.pooling import pool_features, pooled_width
from .declared import class_loss, row_mean
from .labels import Labels
from .objective import Objective, Spec, View


def head_loss(labels: Labels, out: Tensor, view: View) -> Tensor:
    """What a head learns from: cross entropy of its logits (classes), or the mean square error (values).

    Shape: out ``[B, C]``, or ``[B, N]`` for N values a sample.
    """
    y = view.context.y
    assert y is not None
    if labels.num_classes is None:
        values = y.to(out.dtype).flatten(1) if y.dim() > 1 else y.to(out.dtype)[:, None]
        return row_mean((out - values).square().mean(1), view.valid)
    return class_loss(labels, out, view)


class Head(Objective):
    r"""Local head: :math:`L = \mathrm{CE}(M\,\mathrm{pool}(h) + b,\; y)`; for regression the mean square error.

    Args:
        bias: give the head a bias.
        zero_init: start the head at zero, so that the first step moves the head alone.
        limit: most features a map is pooled down to.
        pool: own reduction ``h -> [B, D]`` instead; it must be parameter-free.

    Raises:
        ArgumentError: `limit` is no number of features, or `pool` no function.

    Targets of shape ``[B, S]`` on tokens ``[B, S, E]`` are learned token by token, without pooling.
    """

    any_width = True

    def __init__(
        self,
        bias: bool = True,
        zero_init: bool = True,
        limit: int = 4096,
        pool: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ArgumentError("head", "limit must be a whole number from 1", got=repr(limit), fix="limit=4096")
        if pool is not None and not callable(pool):
            raise ArgumentError(
                "head",
                "pool is not callable",
                expected="h -> [B, D]",
                got=repr(pool),
                fix="pool=lambda h: h.mean((2, 3))",
            )
        self.bias, self.zero_init, self.limit, self.pool = bias, zero_init, limit, pool

    @property
    def rowwise(self) -> bool:  # type: ignore[override]
        """An own reduction may look at other rows."""
        return self.pool is None

    def bind(self, spec: Spec, labels: Labels) -> None:
        """Make the linear map from pooled features to classes, or to the width of the values."""
        super().bind(spec, labels)
        self.per_token = spec.channels_last and len(spec.target) > 0 and spec.shape[: len(spec.target)] == spec.target
        self.per_token = self.per_token and labels.num_classes is not None
        width = spec.shape[-1] if self.per_token else pooled_width(spec.shape, self.limit, spec.channels_last)
        if self.pool is not None and not self.per_token:
            width = self.pool(torch.zeros(2, *spec.shape, dtype=spec.dtype, device=spec.device)).shape[1]
        out = labels.num_classes or torch.Size(spec.target).numel()
        self.linear = nn.Linear(width, out, self.bias, device=spec.device, dtype=spec.dtype)
        if self.zero_init:
            nn.init.zeros_(self.linear.weight)
            if self.linear.bias is not None:
                nn.init.zeros_(self.linear.bias)

    def scores(self, view: View) -> Tensor:
        """Logits of the head, ``[B, C]`` (``[B, S, C]`` token by token)."""
        if self.per_token:
            return self.linear(view.h)
        pooled = (
            self.pool(view.h) if self.pool else pool_features(view.h, self.limit, channels_last=self.spec.channels_last)
        )
        return self.linear(pooled)

    def forward(self, view: View) -> Tensor:
        """Cross entropy (classes) or mean square error (values) of the head."""
        return head_loss(self.labels, self.scores(view), view)
