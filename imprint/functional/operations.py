"""How the operations inside a unit run: watched, or differentiated in another way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ..errors import CoverageError

Func = Callable[..., Any]
CONV: dict[Func, int] = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}
CLOSED = {
    "multi_head_attention_forward", "gru", "lstm", "rnn_tanh", "rnn_relu", "gru_cell", "lstm_cell", "rnn_tanh_cell",
    "rnn_relu_cell", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "bilinear", "matmul", "__matmul__",
    "__rmatmul__", "mm", "bmm", "addmm", "baddbmm", "einsum",
}  # fmt: skip
"""Operations that multiply with weights where nobody can look."""
NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


class Operations(TorchFunctionMode):
    """Stands between a unit's modules and torch; what it does not know runs as ever.

    Override :meth:`linear` for products with a weight (``F.linear`` and convolutions), or :meth:`other`.

    Attributes:
        names: of the unit's parameters, by id; set by the unit each time.

    >>> class Doubled(Operations):
    ...     def linear(self, operation):
    ...         return 2 * operation.run()
    >>> with Doubled():
    ...     F.linear(torch.ones(1), torch.ones(1, 1))
    tensor([2.])
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[int, str] = {}

    def __torch_function__(
        self, func: Func, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.linear or func in CONV:
            given = dict(zip(NAMES, args, strict=False)) | kwargs
            return self.linear(Linear(func, **given))
        return self.other(func, args, kwargs)

    def linear(self, operation: Linear) -> Tensor:
        """A product with a weight."""
        return operation.run()

    def other(self, func: Func, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Anything else."""
        return func(*args, **kwargs)

    def refuse_closed(self, func: Func, args: tuple[Any, ...], kwargs: dict[str, Any], what: str) -> None:
        """Refuse products with one of the unit's weights that :meth:`linear` does not see.

        Raises:
            CoverageError: names the weight and the operation.
        """
        if getattr(func, "__name__", "") not in CLOSED:
            return
        for v in tree_leaves((args, kwargs)):
            name = self.names.get(id(v)) or self.names.get(id(v._base) if isinstance(v, Tensor) else 0)
            if isinstance(v, Tensor) and v.dim() > 1 and name is not None:
                raise CoverageError(
                    f"weight {name!r}", f"{func.__name__} multiplies with it inside, where {what}",
                    expected="nn.Linear or a convolution", got=func.__name__,
                    fix="write it with nn.Linear layers, give the unit another rule, or exclude= the weight",
                )  # fmt: skip

    def refuse_made(self, operation: Linear, what: str) -> None:
        """Refuse a weight that is made of parameters, as weight norms do.

        Raises:
            CoverageError: it has a graph, and is no parameter.
        """
        weight = operation.weight
        if weight.requires_grad and not weight.is_leaf:
            raise CoverageError(
                f"a weight {tuple(weight.shape)}", f"it is made of other parameters, and {what}",
                expected="parameters themselves in nn.Linear and convolutions", got=str(weight.grad_fn),
                fix="take weight_norm, spectral_norm or the like off, or give the unit another rule",
            )  # fmt: skip


@dataclass(frozen=True)
class Linear:
    """``F.linear`` or a convolution, with its arguments under torch's own names.

    Shape:
        weight: ``[out, in]``, or ``[out, in / groups, *kernel]``.
    """

    func: Func
    input: Tensor
    weight: Tensor
    bias: Tensor | None = None
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1

    @property
    def dims(self) -> int:
        """Of space: 0 for ``F.linear``."""
        return CONV.get(self.func, 0)

    @property
    def options(self) -> tuple[Any, ...]:
        """Stride, padding, dilation and groups; none for ``F.linear``."""
        return (self.stride, self.padding, self.dilation, self.groups) if self.dims else ()

    def run(self, input: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
        """The operation itself, with another input or weight if they are given."""
        x, w = self.input if input is None else input, self.weight if weight is None else weight
        out: Tensor = self.func(x, w, self.bias, *self.options)
        return out
