"""Steps of recurrent cells, recurrences over a whole sequence, and spikes with surrogate gradients."""

from __future__ import annotations

from collections.abc import Callable
from math import pi
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def rnn_cell(
    x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor,
    act: Callable[[Tensor], Tensor] = torch.tanh,
) -> Tensor:  # fmt: skip
    r""":math:`h' = \phi(W_i x + b_i + W_h h + b_h)`: ``nn.RNNCell`` with its input and state weights in the open.

    Shape: x ``[B, I]``; h and result ``[B, H]``; w_ih ``[H, I]``; w_hh ``[H, H]``.
    """
    return act(F.linear(x, w_ih, b_ih) + F.linear(h, w_hh, b_hh))


def gru_cell(x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Tensor:
    r"""``nn.GRUCell`` with its input and state weights in the open, gates in torch's order r, z, n.

    .. math:: r, z = \sigma(W x + b + U h + c), \quad n = \tanh(W_n x + b_n + r (U_n h + c_n)), \quad
        h' = (1 - z) n + z h

    Shape: x ``[B, I]``; h and result ``[B, H]``; w_ih ``[3 H, I]``; w_hh ``[3 H, H]``.

    >>> import torch
    >>> cell, x, h = torch.nn.GRUCell(3, 4), torch.randn(2, 3), torch.randn(2, 4)
    >>> torch.allclose(gru_cell(x, h, *cell.parameters()), cell(x, h), atol=1e-6)
    True
    """
    ri, zi, ni = F.linear(x, w_ih, b_ih).chunk(3, -1)
    rh, zh, nh = F.linear(h, w_hh, b_hh).chunk(3, -1)
    z = torch.sigmoid(zi + zh)
    n = torch.tanh(ni + torch.sigmoid(ri + rh) * nh)
    return (1 - z) * n + z * h


def lstm_cell(
    x: Tensor, state: tuple[Tensor, Tensor], w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor
) -> tuple[Tensor, Tensor]:
    r"""``nn.LSTMCell`` with its input and state weights in the open, gates in torch's order i, f, g, o.

    .. math:: c' = \sigma(f) c + \sigma(i) \tanh(g), \quad h' = \sigma(o) \tanh(c')

    Shape: x ``[B, I]``; state and result ``(h, c)``, ``[B, H]`` each; w_ih ``[4 H, I]``; w_hh ``[4 H, H]``.
    """
    h, c = state
    i, f, g, o = (F.linear(x, w_ih, b_ih) + F.linear(h, w_hh, b_hh)).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def linear_recurrence(a: Tensor, b: Tensor, h: Tensor) -> Tensor:
    r"""All of :math:`h_t = a_t h_{t-1} + b_t` at once, in :math:`\log_2 T` passes over the whole.

    Args:
        a: decays, one a tick ``[T, …]``, or the same at all ticks ``[…]`` with one dimension less than `b`.
        b: what arrives, ``[T, …]``.
        h: the state before, ``[…]``.

    >>> import torch
    >>> linear_recurrence(torch.tensor([0.5]), torch.ones(4, 1), torch.tensor([2.0])).flatten()
    tensor([2., 2., 2., 2.])

    Reference: Hillis & Steele (1986), Data parallel algorithms.
    """
    steady = a.dim() < b.dim()
    b = torch.cat([(b[0] + (a if steady else a[0]) * h)[None], b[1:]])
    reach = 1  # b_t holds what arrived in the last `reach` ticks, a_t how much of what came before them is left
    while reach < len(b):
        b = torch.cat([b[:reach], b[reach:] + (a if steady else a[reach:]) * b[:-reach]])
        a = a * a if steady else torch.cat([a[:reach], a[reach:] * a[:-reach]])
        reach *= 2
    return b


def rotating_recurrence(
    a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], h: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """:func:`linear_recurrence` of complex numbers with the same decay at all ticks, as pairs (real, imaginary).

    Shape: a ``[H]``; b and result ``[T, B, H]``; h ``[B, H]``, each twice.
    """
    (ar, ai), (re, im), (hr, hi) = a, b, h
    re, im = (
        torch.cat([(re[0] + ar * hr - ai * hi)[None], re[1:]]),
        torch.cat([(im[0] + ar * hi + ai * hr)[None], im[1:]]),
    )
    reach = 1
    while reach < len(re):
        r, i = re[:-reach], im[:-reach]
        re = torch.cat([re[:reach], re[reach:] + ar * r - ai * i])
        im = torch.cat([im[:reach], im[reach:] + ar * i + ai * r])
        ar, ai, reach = ar * ar - ai * ai, 2 * ar * ai, 2 * reach
    return re, im


def triangular(v: Tensor, dampening: float = 0.3) -> Tensor:
    r""":math:`\psi(v) = \gamma \max(0, 1 - |v|)`.

    Reference: Bellec et al. (2020), A solution to the learning dilemma for recurrent networks of spiking neurons.
    """
    return dampening * (1 - v.abs()).clamp_min(0)


def fast_sigmoid(v: Tensor, slope: float = 10.0) -> Tensor:
    r""":math:`\psi(v) = 1 / (1 + \beta |v|)^2`.

    Reference: Zenke & Ganguli (2018), SuperSpike.
    """
    return (1 + slope * v.abs()).pow(-2)


def atan(v: Tensor, slope: float = 2.0) -> Tensor:
    r""":math:`\psi(v) = \frac{\alpha / 2}{1 + (\pi \alpha v / 2)^2}`, the derivative of an arc tangent.

    Reference: Fang et al. (2021), Incorporating learnable membrane time constant.
    """
    return slope / 2 / (1 + (pi / 2 * slope * v).square())


SURROGATES: dict[str, Callable[..., Tensor]] = {"triangular": triangular, "fast_sigmoid": fast_sigmoid, "atan": atan}
"""Derivatives that stand in for that of a step, by name."""


def spike(v: Tensor, surrogate: Callable[[Tensor], Tensor] = triangular) -> Tensor:
    r"""One where :math:`v > 0`, else zero; the gradient passes as if the derivative were :math:`\psi(v)`.

    Args:
        v: membrane potential above the threshold, in units of the threshold.
        surrogate: :math:`\psi`; see :data:`SURROGATES`.

    >>> import torch
    >>> v = torch.tensor([-0.5, 0.5], requires_grad=True)
    >>> spike(v)
    tensor([0., 1.], grad_fn=<AddBackward0>)
    >>> torch.autograd.grad(spike(v).sum(), v)[0]
    tensor([0.1500, 0.1500])

    A graph captured by ``torch.export`` keeps this gradient as long as ``aten.detach`` is not decomposed.
    """
    fixed: Any = v.detach()
    return (fixed > 0).to(v.dtype) + surrogate(fixed) * (v - fixed)
