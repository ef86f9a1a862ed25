"""Operations with another backward: feedback weights, and activations that let gradients through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .operations import Func, Linear, Operations


class _Product(torch.autograd.Function):
    """``x Wᵀ`` forward; backward the gradient of x goes through the feedback, that of W is its own."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, feedback: Tensor) -> Tensor:
        return F.linear(x, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x, _, feedback = inputs
        ctx.save_for_backward(x, feedback)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, None]:
        x, feedback = ctx.saved_tensors
        (g,) = grads
        to_x = (g @ feedback.to(g.dtype)).to(x.dtype) if ctx.needs_input_grad[0] else None
        to_weight = g.reshape(-1, g.shape[-1]).T @ x.reshape(-1, x.shape[-1]).to(g.dtype)
        return to_x, to_weight.to(feedback.dtype), None


class _Convolution(torch.autograd.Function):
    """The same for convolutions."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, feedback: Tensor, func: Func, options: tuple[Any, ...]) -> Tensor:
        out: Tensor = func(x, weight, None, *options)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, feedback, ctx.func, ctx.options = inputs
        ctx.save_for_backward(x, weight, feedback)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, None, None, None]:
        x, weight, feedback = ctx.saved_tensors
        g, to_x = grads[0], None
        seen, through, own = (v.to(g.dtype) for v in (x, feedback, weight))
        if ctx.needs_input_grad[0]:
            to_x = _gradients(g, seen, through, ctx.options, (True, False, False))[0].to(x.dtype)
        to_weight = _gradients(g, seen, own, ctx.options, (False, True, False))[1].to(weight.dtype)
        return to_x, to_weight, None, None, None


class _Through(torch.autograd.Function):
    """`value` forward; backward the gradient is that of x."""

    @staticmethod
    def forward(x: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _ThroughInPlace(torch.autograd.Function):
    """The same, written into x."""

    @staticmethod
    def forward(x: Tensor, value: Tensor) -> Tensor:
        return x.copy_(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.mark_dirty(inputs[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def _gradients(
    g: Tensor, x: Tensor, weight: Tensor, options: tuple[Any, ...], wanted: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    stride, padding, dilation, groups = options
    dims = weight.dim() - 2
    made: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        g, x, weight, None, each(stride, dims), each(padding, dims), each(dilation, dims), False, [0] * dims, groups,
        wanted,
    )  # fmt: skip
    return made


def each(value: Any, dims: int) -> list[int]:
    """One number a dimension.

    >>> each(2, 3), each((1, 2), 2)
    ([2, 2, 2], [1, 2])
    """
    return [value] * dims if isinstance(value, int) else list(value)


def with_feedback(operation: Linear, feedback: Tensor) -> Tensor:
    r"""``F.linear`` or a convolution whose backward is :math:`\delta_x = B^\top \delta`, with feedback B in W's place.

    Shape:
        feedback: as the weight.

    Reference: Lillicrap et al., Random synaptic feedback weights support error backpropagation (2016).

    >>> x = torch.ones(1, 2, requires_grad=True)
    >>> with_feedback(Linear(F.linear, x, torch.ones(1, 2)), torch.tensor([[3.0, 4.0]])).sum().backward()
    >>> x.grad
    tensor([[3., 4.]])
    """
    o = operation
    out: Tensor
    if not o.dims:
        out = _Product.apply(o.input, o.weight, feedback)
        return out if o.bias is None else out + o.bias
    x, padding = o.input, o.padding
    if isinstance(padding, str):
        x, padding = _padded(o), 0
    options = (each(o.stride, o.dims), each(padding, o.dims), each(o.dilation, o.dims), o.groups)
    batched = x.dim() == o.dims + 2
    out = _Convolution.apply(x if batched else x[None], o.weight, feedback, o.func, options)
    out = out if batched else out[0]
    return out if o.bias is None else out + o.bias.view(-1, *[1] * o.dims)


def _padded(o: Linear) -> Tensor:
    """The input with what ``padding="same"`` adds."""
    if o.padding == "valid":
        return o.input
    total = [d * (k - 1) for d, k in zip(each(o.dilation, o.dims), o.weight.shape[2:], strict=True)]
    return F.pad(o.input, [n for t in reversed(total) for n in (t // 2, t - t // 2)])


ACTIVATIONS = (
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus", "softsign", "tanh",
    "sigmoid", "hardtanh", "hardswish", "hardsigmoid", "logsigmoid", "rrelu", "tanhshrink", "hardshrink", "softshrink",
    "threshold", "clamp", "clamp_min", "clamp_max", "clip",
)  # fmt: skip


def _activations() -> set[Callable[..., Any]]:
    names = [name + end for name in ACTIVATIONS for end in ("", "_")]
    found = [getattr(place, name, None) for place in (F, torch, Tensor) for name in names]
    return {f for f in found if f is not None}


class StraightThrough(Operations):
    """Elementwise activations give what they give, and let gradients through as if they were the identity.

    Those are torch's without weights: ``relu`` and its kin, ``tanh``, ``sigmoid``, ``clamp``, ``threshold`` and others.
    Softmax, PReLU, products of values and dropout keep their derivative.

    >>> x = torch.tensor([-1.0, 2.0], requires_grad=True)
    >>> with StraightThrough():
    ...     h = torch.relu(x)
    >>> h.sum().backward()
    >>> h.tolist(), x.grad.tolist()
    ([0.0, 2.0], [1.0, 1.0])
    """

    known = _activations()

    def other(self, func: Func, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Replace the derivative of an activation by one."""
        if func not in self.known or not args:
            return func(*args, **kwargs)
        x, *rest = args
        if not (torch.is_grad_enabled() and x.requires_grad):
            return func(*args, **kwargs)
        before = x.detach().clone()
        with torch.no_grad():
            value = func(before, *rest, **kwargs)
        # written in place, as a statement or for its value: both see it
        return (_ThroughInPlace if value is before else _Through).apply(x, value)
