"""Adam and AdamW."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .maths import Group, Maths, decayed, register_optimizer


@register_optimizer(torch.optim.Adam, torch.optim.AdamW)
class Adam(Maths):
    r"""Moments, corrected for having started at zero.

    .. math::

        m &\leftarrow m + (1 - \beta_1)(g - m), \qquad v \leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        p &\leftarrow p - \frac{\eta}{1 - \beta_1^t} \frac{m}{\sqrt{v} / \sqrt{1 - \beta_2^t} + \epsilon}

    The same operations in the same order as torch, so the same bits. One exception: torch takes powers of the betas
    with the C library, here they are tensor operations in float64, which can differ in the last bit of float64.

    Reference:
        Kingma and Ba, 2015, algorithm 1; Loshchilov and Hutter, 2019, algorithm 2; Reddi et al., 2018, algorithm 2.

    Differs from the paper: as torch does. Epsilon is added after the correction; AdamW's decay is times the lr; AMSGrad
    takes the maximum of moments that are not corrected yet.
    """

    options = ("betas", "eps", "weight_decay", "decoupled_weight_decay", "amsgrad", "maximize")
    scalars = ("size", "root", "keep")

    def names(self, group: Group) -> tuple[str, ...]:
        """Both moments, and the largest second one with AMSGrad."""
        return ("exp_avg", "exp_avg_sq", *["max_exp_avg_sq"] * bool(group["amsgrad"]))

    def betas(self, group: Group) -> tuple[float, float]:
        """Those of the group."""
        return float(group["betas"][0]), float(group["betas"][1])

    def decay(self, group: Group) -> float:
        """AdamW's."""
        return float(group["weight_decay"]) if group["decoupled_weight_decay"] else 0.0

    def new(
        self, param: Tensor, grad: Tensor, state: Mapping[str, Tensor], group: Group, scalars: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One step."""
        beta1, beta2 = group["betas"]
        if not group["decoupled_weight_decay"]:
            grad = decayed(param, grad, group)
        else:
            grad = -grad if group["maximize"] else grad
            param = param * scalars["keep"] if group["weight_decay"] != 0 else param
        first = state["exp_avg"].lerp(grad, 1 - beta1)
        second = largest = (state["exp_avg_sq"] * beta2).addcmul(grad, grad, value=1 - beta2)
        new = {"exp_avg": first, "exp_avg_sq": second}
        if group["amsgrad"]:
            new["max_exp_avg_sq"] = largest = torch.maximum(state["max_exp_avg_sq"], second)
        bottom = (largest.sqrt() / scalars["root"]).add(group["eps"])
        return param.addcdiv(first * scalars["size"], bottom), new
