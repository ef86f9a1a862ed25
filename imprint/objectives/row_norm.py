"""Batch normalisation for local heads: over the rows that count, and without modes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM, EPS = 0.1, 1e-5


class RowNorm(nn.Module):
    r"""Batch normalisation over chosen rows, :math:`\gamma (x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta`.

    Given rows, the mean and the (biased) variance are theirs alone, so that a row that does not count changes nothing
    for the others; the running statistics take a tenth of both, as :class:`torch.nn.BatchNorm2d` has it. Without rows
    the running statistics are used and nothing is written: there is no mode to be switched.

    Of fewer than two values a channel nothing is noted, and what is normalised is the bias alone.

    Args:
        channels: of the input.

    Shape: x ``[B, C]`` or ``[B, C, ...]``; rows ``[B]`` bool.

    >>> norm = RowNorm(1)
    >>> norm(torch.tensor([[1.0], [3.0], [99.0]]), torch.tensor([True, True, False]))[:2].flatten().tolist()
    [-0.999994993209..., 0.999994993209...]
    >>> norm.running_mean, norm(torch.tensor([[0.2]])).shape
    (tensor([0.2000]), torch.Size([1, 1]))
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(channels, device=device, dtype=dtype))
        self.register_buffer("running_mean", torch.zeros(channels, device=device, dtype=dtype))
        self.register_buffer("running_var", torch.ones(channels, device=device, dtype=dtype))

    def forward(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Normalised by these rows, or by what was seen so far."""
        shape = (1, -1) + (1,) * (x.dim() - 2)
        if rows is None:
            mean, var = self.running_mean, self.running_var
        else:
            over = [0, *range(2, x.dim())]
            x = x.to(self.weight.dtype)
            share = rows.to(x.dtype).view(-1, *[1] * (x.dim() - 1))
            count = share.sum() * (x[0, 0].numel())
            mean = (x * share).sum(over) / count.clamp_min(1)
            var = ((x - mean.view(shape)).square() * share).sum(over) / count.clamp_min(1)
            mean = _Noted.apply(mean, var.detach(), count, self)
        scale = self.weight / (var + EPS).sqrt()
        return (x - mean.view(shape)) * scale.view(shape) + self.bias.view(shape)

    def note(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        """Take a tenth of one batch's statistics into the running ones, the variance unbiased."""
        part = MOMENTUM * (count > 1).to(mean.dtype)
        self.running_mean.lerp_(mean, part)
        self.running_var.lerp_(var * count / (count - 1).clamp_min(1), part)


class _Noted(torch.autograd.Function):
    """The mean as it is; on the way the norm notes it.

    Under ``torch.func`` nothing may be written that is no input; within a function of autograd tensors are plain.
    """

    @staticmethod
    def forward(mean: Tensor, var: Tensor, count: Tensor, norm: RowNorm) -> Tensor:
        norm.note(mean, var, count)
        return mean.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient as it is."""
        return grads[0], None, None, None


class RowSequential(nn.Sequential):
    """Layers one after the other, some of which look at the rows that count."""

    def forward(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Rows as for :class:`RowNorm`."""
        for layer in self:
            x = layer(x, rows) if isinstance(layer, RowNorm) else layer(x)
        return x
