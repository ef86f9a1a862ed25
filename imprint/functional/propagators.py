"""How a function of one stream is applied to the triple ``(h, t, context)`` that runs through a chain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Triple = tuple[Tensor, Tensor | None, Any]


def forward(input: Triple, func: Callable[[Tensor], Tensor]) -> Triple:
    """Apply `func` to both streams; gradients pass.

    >>> forward((torch.ones(1), torch.zeros(1), "context"), lambda x: x + 1)
    (tensor([2.]), tensor([1.]), 'context')
    """
    h, t, context = input
    return func(h), None if t is None else func(t), context


def fixed(input: Triple, func: Callable[[Tensor], Tensor]) -> Triple:
    """Apply `func` to both streams without a graph: nothing learns and no gradient passes.

    >>> fixed((torch.ones(1, requires_grad=True), None, None), lambda x: x + 1)
    (tensor([2.]), None, None)
    """
    with torch.no_grad():
        return forward(input, func)


def identity(input: Triple, func: Callable[[Tensor], Tensor]) -> Triple:
    """Apply `func` to the data and leave the context as it is; gradients pass.

    >>> identity((torch.ones(1), torch.zeros(1), "context"), lambda x: x + 1)
    (tensor([2.]), tensor([0.]), 'context')
    """
    h, t, context = input
    return func(h), t, context
