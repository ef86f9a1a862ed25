"""An optimizer with a learning rate for each unit of a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..errors import ArgumentError
from ..utils import is_number


class NormScaled(Optimizer):
    r"""Each unit i, a row of a weight, steps by its distance from length one.

    :math:`w_i \leftarrow w_i - \eta\,|\,\|w_i\| - 1|^{q}\; g_i / \max_{jk} |g_{jk}|`

    A change is measured by its largest entry, so the size of a gradient, and with it clipping, has no effect.

    Args:
        params: weights ``[out, ...]``.
        lr: :math:`\eta`.
        power: q.

    Raises:
        ArgumentError: lr or power is no number from 0.

    Reference: Journe et al., Hebbian Deep Learning Without Feedback (2023), section 3.
    Differs from the paper: nothing; there the lengths are read after the step before, which are the same.

    >>> w = torch.nn.Parameter(torch.tensor([[3.0, 4.0], [0.6, 0.8]]))
    >>> w.grad = torch.tensor([[10.0, 5.0], [1.0, 1.0]])
    >>> NormScaled([w], lr=1.0).step()
    >>> w.detach()
    tensor([[1.0000, 3.0000],
            [0.6000, 0.8000]])
    """

    def __init__(self, params: Iterable[Any], lr: float | Tensor = 0.08, power: float = 0.5) -> None:
        for name, value in (("lr", lr), ("power", power)):
            if not isinstance(value, Tensor) and not (is_number(value) and value >= 0):
                raise ArgumentError("NormScaled", f"{name} is no number from 0", got=repr(value), fix=f"{name}=0.5")
        super().__init__(params, {"lr": lr, "power": power})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of all weights that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                tiny = torch.finfo(p.dtype).tiny
                apart = (p.reshape(len(p), -1).norm(dim=1) - 1).abs()
                size = group["lr"] * (apart + 1e-10) ** group["power"]
                p.sub_(size.view(-1, *[1] * (p.dim() - 1)) * (p.grad / p.grad.abs().amax().clamp_min(tiny)))
        return loss
