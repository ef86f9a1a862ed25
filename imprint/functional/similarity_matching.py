"""Similarity matching: do samples of one class look alike to a layer?"""

from __future__ import annotations

import torch
from torch import Tensor


def centered_cosine(z: Tensor, eps: float = 1e-8) -> Tensor:
    r""":math:`S_{ij} = \langle \hat z_i, \hat z_j\rangle`, :math:`\hat z = (z - \bar z)/\|z - \bar z\|`, in [-1, 1].

    The mean runs over features. Maps ``[B, C, H, W]`` with C > 3 and H > 1 are first reduced to their standard
    deviation over space, one number a channel.

    Shape: z ``[B, ...]``; result ``[B, B]``.
    Reference: Nokland & Eidnes, Training Neural Networks with Local Error Signals (2019), section 3.1.

    >>> import torch
    >>> centered_cosine(torch.tensor([[1.0, 2.0], [2.0, 4.0], [1.0, 0.0]])).round()
    tensor([[ 1.,  1., -1.],
            [ 1.,  1., -1.],
            [-1., -1.,  1.]])
    """
    if z.dim() == 4 and z.shape[1] > 3 and z.shape[2] > 1:
        z = z.flatten(2).std(2)
    z = z.flatten(1)
    z = z - z.mean(1, keepdim=True)
    z = z / (z.norm(dim=1, keepdim=True) + eps)
    return (z @ z.T).clamp(-1, 1)


def matching_error(z: Tensor, target: Tensor, share: Tensor | None = None) -> Tensor:
    r""":math:`\sum_{ij} s_i s_j (S(z)_{ij} - S(Y)_{ij})^2 / (\sum_i s_i)^2`: the mean over pairs of rows.

    Shape: z ``[B, ...]``; target ``[B, C]`` one-hot or soft; share ``[B]``, the weight s of each row, 0 without a
    label; None is 1 for all.

    >>> import torch
    >>> matching_error(torch.eye(2), torch.eye(2)).item()
    0.0
    """
    error = (centered_cosine(z) - centered_cosine(target.to(z.dtype))).square()
    if share is None:
        return error.mean()
    share = share.to(error.dtype)
    return (share @ error @ share) / share.sum().square().clamp_min(torch.finfo(error.dtype).tiny)


def sample_features(z: Tensor, channels_last: bool) -> Tensor:
    """Tokens ``[B, S, E]`` as maps ``[B, E, S, 1]``, so that one rule reads both.

    >>> import torch
    >>> sample_features(torch.ones(2, 5, 3), channels_last=True).shape
    torch.Size([2, 3, 5, 1])
    """
    if channels_last and z.dim() > 2:
        return z.flatten(1, -2).transpose(1, 2)[..., None]
    return z[..., None] if z.dim() == 3 else z
