"""What a CUDA graph cannot hold: calls that the host waits for, and data that the host brings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves

_STAY = "keep it on the device: torch.where instead of if, a 0-dim tensor for a step, rate or index, capturable=True"
_MASK = "let no shape depend on data: multiply by the mask, or use torch.where or masked_fill"
_FIXES = {
    "_local_scalar_dense": f"{_STAY}; in place of .item(), float(), bool() or an index with a tensor in a slice",
    "equal": "(a == b).all() is the same answer as a tensor",
    "allclose": "torch.isclose(a, b).all() is the same answer as a tensor",
    "bincount": "scatter_add_ ones into zeros of a fixed size",
    "repeat_interleave": "give output_size=",
    "_linalg_check_errors": "call the form with _ex, which leaves its info on the device",
}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
_HOST_DATA = {"lift_fresh", "lift_fresh_copy", "lift"}
_TAGS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)

HOST_READS: dict[Any, str] = {
    Tensor.tolist: "Tensor.tolist",
    Tensor.numpy: "Tensor.numpy",
    Tensor.__array__: "Tensor.__array__",
    Tensor.cpu: "Tensor.cpu",
    Tensor.__repr__: "Tensor.__repr__",
}
"""Methods of a tensor that bring its values to the host, which no aten call shows on a CPU, by function."""
HOST_READ_FIX = "read it after replay(), from a tensor that the tick wrote"


def short_name(func: OpOverload) -> str:
    """The name of a call without its namespace and overload.

    >>> import torch
    >>> short_name(torch.ops.aten.add_.Tensor)
    'add_'
    """
    return func._schema.name.partition("::")[2]


def sync(func: OpOverload, args: Any, kwargs: Any) -> str | None:
    """How to mend a call that the host has to wait for; None if it need not.

    Args:
        func: the aten call.
        args: its positional arguments: tensors, or anything with a ``dtype`` and a ``device`` in their places.
        kwargs: its arguments by name.

    >>> import torch
    >>> sync(torch.ops.aten.equal.default, (torch.zeros(1), torch.zeros(1)), {})
    '(a == b).all() is the same answer as a tensor'
    >>> x = torch.zeros(3)
    >>> sync(torch.ops.aten.index.Tensor, (x, [torch.tensor([0])]), {}) is None   # a mask would wait
    True
    """
    name = short_name(func)
    if name in _INDEXING:
        kinds = {getattr(index, "dtype", None) for index in tree_leaves(args[1])}
        return _MASK if kinds & {torch.bool, torch.uint8} else None
    if name == "repeat_interleave" and kwargs.get("output_size") is not None:
        return None
    if name in ("_to_copy", "copy_") and _leaves_the_device(name, args, kwargs):
        return f"allocate it on the device before; {HOST_READ_FIX}"
    if name in _FIXES or any(tag in func.tags for tag in _TAGS):
        return _FIXES.get(name, _MASK)
    return None


def _leaves_the_device(name: str, args: Any, kwargs: Any) -> bool:
    """Whether a copy runs between the host and a device."""
    source, target = (args[1], args[0].device) if name == "copy_" else (args[0], kwargs.get("device"))
    return target is not None and torch.device(target).type != source.device.type


def host_data(func: OpOverload) -> str | None:
    """How to mend a call that brings numbers from Python's lists or from numpy; None for all others.

    A plain number (``x + 3``, ``torch.full(..., 3.0)``, ``torch.scalar_tensor``) is legal: it is part of the kernel's
    call, and stays what it was at capture.

    >>> import torch
    >>> host_data(torch.ops.aten.lift_fresh.default)
    'make the tensor before capture, or fill one in place: torch.full, fill_, arange'
    """
    if short_name(func) in _HOST_DATA:
        return "make the tensor before capture, or fill one in place: torch.full, fill_, arange"
    return None
