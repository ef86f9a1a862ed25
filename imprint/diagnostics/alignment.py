"""What backpropagation would do, beside what a local rule does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..credit import Params
from ..utils import same_random_state


def plain_copy(model: nn.Module) -> nn.Module:
    """The model without units: its own classes, the *same* parameters, copies of everything else.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    >>> twin = plain_copy(model)
    >>> twin[0].weight is model[0].weight, twin[1].running_mean is model[1].running_mean
    (True, False)
    """
    shared: dict[int, Any] = {id(p): p for p in model.parameters()}
    for module in model.modules():
        for v in vars(module).values():
            if isinstance(v, Tensor) and not v.is_leaf:
                shared[id(v)] = v.detach()  # what a module remembers of its last call; torch copies leaves only
    return copy.deepcopy(model, shared)


def backprop_gradients(model: nn.Module, x: Any, y: Any, loss: Callable[[Any, Any], Tensor]) -> Params:
    r""":math:`\partial\,\mathrm{loss}(f(x), y)/\partial\theta` of a plain or attached model, by parameter name.

    Nothing is changed: weights, ``.grad``, buffers and the next random numbers are as they were. The model runs in the
    mode (train or eval) it is in.

    Args:
        x: a tensor, a tuple of arguments or a dict of keyword arguments.
        loss: ``loss(output, y) -> scalar``.

    Returns:
        Parameters the loss does not reach are left out.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> backprop_gradients(model, torch.tensor([[1.0, 2.0]]), None, lambda out, y: out.sum())
    {'weight': tensor([[1., 2.]])}
    """
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    args, kwargs = ((), x) if isinstance(x, dict) else (x if isinstance(x, tuple) else (x,), {})
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)  # the cache would hand casts with this graph to the step
    try:
        with same_random_state(), torch.enable_grad():
            value = loss(plain_copy(model)(*args, **kwargs), y)
    finally:
        torch.set_autocast_cache_enabled(cached)
    if not value.requires_grad:
        return {}
    grads = torch.autograd.grad(value, list(params.values()), allow_unused=True)
    return {name: g for name, g in zip(params, grads, strict=True) if g is not None}


def cosine(a: Params, b: Params) -> Tensor | None:
    r"""Cosine between two gradients over all their parameters, :math:`\langle a, b\rangle/(\|a\|\,\|b\|)`.

    A parameter that one of them lacks is zero there. NaN if one is zero; None if one is empty. It stays on the device.

    >>> cosine({"w": torch.tensor([3.0, 4.0])}, {"w": torch.tensor([3.0, 0.0]), "v": torch.tensor([4.0])})
    tensor(0.3600)
    """
    if not a or not b:
        return None
    lengths = [torch.stack([_wide(g).square().sum() for g in side.values()]).sum().sqrt() for side in (a, b)]
    both = [(_wide(a[name]) * _wide(b[name])).sum() for name in a if name in b]
    return (torch.stack(both).sum() if both else lengths[0] * 0) / (lengths[0] * lengths[1])


def _wide(g: Tensor) -> Tensor:
    return g if g.itemsize >= 4 else g.float()
