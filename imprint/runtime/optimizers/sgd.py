"""Gradient descent, with or without momentum."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .maths import Group, Maths, decayed, register_optimizer


@register_optimizer(torch.optim.SGD)
class SGD(Maths):
    r"""Down the gradient, or down its running sum.

    .. math::

        b \leftarrow \mu b + g, \qquad p \leftarrow p - \eta b \quad (\text{Nesterov: } p - \eta (g + \mu b))

    The same bits as torch. torch's first step takes the gradient as momentum, here it is added to zeros: dampening,
    which torch leaves out of that step only, is refused.

    Reference:
        Sutskever et al., 2013, equations 1 to 4.

    Differs from the paper: as torch does. The lr multiplies the sum, not what is added to it.
    """

    options = ("momentum", "dampening", "weight_decay", "nesterov", "maximize")
    counts = False

    def why_not(self, group: Group) -> str | None:
        """With dampening the first step is another one."""
        return "it dampens its momentum" if group["momentum"] != 0 and group["dampening"] != 0 else None

    def names(self, group: Group) -> tuple[str, ...]:
        """The momentum, if there is one."""
        return ("momentum_buffer",) if group["momentum"] != 0 else ()

    def new(
        self, param: Tensor, grad: Tensor, state: Mapping[str, Tensor], group: Group, scalars: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One step."""
        grad, momentum, new = decayed(param, grad, group), group["momentum"], {}
        if momentum != 0:
            new["momentum_buffer"] = sum_ = (state["momentum_buffer"] * momentum).add(grad)
            grad = grad.add(sum_, alpha=momentum) if group["nesterov"] else sum_
        return param.addcmul(grad, scalars["size"]), new
