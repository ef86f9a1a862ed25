"""RMSprop."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .maths import Group, Maths, decayed, register_optimizer


@register_optimizer(torch.optim.RMSprop)
class RMSprop(Maths):
    r"""The gradient over its running root mean square, or over its running deviation.

    .. math::

        v \leftarrow \alpha v + (1 - \alpha) g^2, \qquad p \leftarrow p - \eta \frac{g}{\sqrt{v - \bar g^2} + \epsilon}

    with the running mean :math:`\bar g` of a centered one, else 0. The same bits as torch.

    Reference:
        Tieleman and Hinton, 2012, lecture 6e; centered: Graves, 2013, section 2.

    Differs from the paper: as torch does. Epsilon is added to the root.
    """

    options = ("momentum", "alpha", "eps", "centered", "weight_decay", "maximize")

    def names(self, group: Group) -> tuple[str, ...]:
        """The mean square, the momentum and the mean."""
        return ("square_avg", *["momentum_buffer"] * (group["momentum"] > 0), *["grad_avg"] * bool(group["centered"]))

    def new(
        self, param: Tensor, grad: Tensor, state: Mapping[str, Tensor], group: Group, scalars: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One step."""
        grad, alpha = decayed(param, grad, group), group["alpha"]
        square = (state["square_avg"] * alpha).addcmul(grad, grad, value=1 - alpha)
        new, spread = {"square_avg": square}, square
        if group["centered"]:
            new["grad_avg"] = mean = state["grad_avg"].lerp(grad, 1 - alpha)
            spread = square.addcmul(mean, mean, value=-1)
        bottom = spread.sqrt().add(group["eps"])
        if group["momentum"] > 0:
            new["momentum_buffer"] = sum_ = (state["momentum_buffer"] * group["momentum"]).addcdiv(grad, bottom)
            return param.addcmul(sum_, scalars["size"]), new
        return param.addcdiv(grad * scalars["size"], bottom), new
