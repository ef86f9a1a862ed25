"""Features of mean 0 and standard deviation 1."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import flaw, valid_ticks


@dataclass(frozen=True, eq=False)
class Scale:
    r"""The map :math:`(x - \mu) / \sigma`, a mean and a standard deviation for each feature.

    Args:
        mean: :math:`\mu`, one number a feature: ``[D]``; for pictures one a channel, ``[C, 1, 1]``.
        std: :math:`\sigma` of the same shape; 1 where a feature never changes.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, where: str, parts: Iterable[tuple[Tensor, Tensor | None]]) -> Scale:
        """Of all valid ticks of the parts ``(x, lengths)``; parts are read one after the other.

        Mean and sum of squared deviations are kept in float64 and merged part by part, so that large means cost no
        digits.

        Raises:
            DataError: no feature changes.

        >>> x = torch.tensor([[[1.0, 5.0], [3.0, 5.0]], [[5.0, 5.0], [9.0, 9.0]]])
        >>> scale = Scale.of("toy", [(x, torch.tensor([2, 1]))])
        >>> scale.mean, scale.std
        (tensor([3., 5.]), tensor([1.6330, 1.0000]))

        Reference:
            Chan, Golub, LeVeque, Algorithms for Computing the Sample Variance, 1983, eq. 2.1.
        """
        count, mean, spread, like = 0, torch.zeros(()), torch.zeros(()), torch.zeros(1)
        for x, length in parts:
            ticks = x.flatten(0, 1) if length is None else x[valid_ticks(x.shape[1], length.to(x.device))]
            values = ticks.movedim(1, 0).flatten(1).double()  # [features, numbers]
            n, here = values.shape[1], values.mean(1)
            step, total = here - mean, count + n
            spread = spread + (values - here[:, None]).square().sum(1) + step.square() * (count * n / total)
            count, mean, like = total, mean + step * (n / total), x[0, 0]
        std = (spread / max(count, 1)).sqrt()
        varies = std > 8 * torch.finfo(like.dtype).eps * mean.abs()  # else what is left is rounding
        if not bool(varies.any()):
            raise flaw(where, "no feature changes", "at least two different values", f"{mean.tolist()} everywhere")
        shape = (-1, *[1] * (like.dim() - 1))
        return cls(mean.view(shape).to(like), torch.where(varies, std, 1.0).view(shape).to(like))

    def __call__(self, x: Tensor) -> Tensor:
        """``[N, T, ...]``, scaled; the dtype stays."""
        return (x - self.mean.to(x)).div_(self.std.to(x))
