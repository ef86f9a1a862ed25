"""Changes of a weight from what goes into it and what comes out of it, without differentiation."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.nn import grad

WEIGHT_OF = {1: grad.conv1d_weight, 2: grad.conv2d_weight, 3: grad.conv3d_weight}


def by_group(out: Tensor, dims: int, groups: int = 1) -> Tensor:
    """Outputs of a product with a weight, ``[N, groups, units, positions]``: units of one group and position compete.

    Args:
        out: ``[..., units]`` of a linear map; ``[N, groups * units, *space]`` of a convolution.
        dims: of space; 0 for a linear map.
        groups: of the convolution.

    >>> import torch
    >>> by_group(torch.zeros(5, 7, 3), 0).shape, by_group(torch.zeros(5, 6, 4, 4), 2, 2).shape
    (torch.Size([35, 1, 3, 1]), torch.Size([5, 2, 3, 16]))
    """
    if not dims:
        return out.reshape(-1, 1, out.shape[-1], 1)
    out = out if out.dim() == dims + 2 else out[None]
    return out.reshape(len(out), groups, out.shape[1] // groups, -1)


def outer_sum(
    x: Tensor, post: Tensor, weight: Tensor, dims: int = 0, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Tensor:  # fmt: skip
    r""":math:`\sum_n s_n x_n^\top` over rows and, of convolutions, positions with their patches; shaped like `weight`.

    Args:
        x: what went in, ``[..., in]`` or ``[N, in, *space]``.
        post: s, laid out as :func:`by_group` does.
        weight: ``[out, in]`` or ``[out, in / groups, *kernel]``; only its sizes are read.
        dims, stride, padding, dilation, groups: of the convolution; 0 dims for a linear map.

    >>> import torch
    >>> x, post = torch.tensor([[1.0, 2.0]]), torch.tensor([3.0]).view(1, 1, 1, 1)
    >>> outer_sum(x, post, torch.zeros(1, 2))
    tensor([[3., 6.]])
    """
    if not dims:
        return post.reshape(-1, post.shape[2]).T @ x.reshape(-1, x.shape[-1])
    x = x if x.dim() == dims + 2 else x[None]
    stride, dilation = (v if isinstance(v, tuple | list) else (v,) * dims for v in (stride, dilation))
    kernel = weight.shape[2:]
    if padding == "same":  # as torch has it: an odd one goes to the end
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        x = F.pad(x, [side for t in reversed(totals) for side in (t // 2, t - t // 2)])
    if isinstance(padding, str):
        padding = 0
    padding = padding if isinstance(padding, tuple | list) else (padding,) * dims
    space = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(x.shape[2:], padding, dilation, kernel, stride, strict=True)
    ]
    grown = post.reshape(len(x), -1, *space)
    made: Tensor = WEIGHT_OF[dims](x, weight.shape, grown, stride, padding, dilation, groups)
    return made
