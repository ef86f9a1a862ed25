"""Modes of torch under which a tick is captured: one sees every aten call, one what reads values without any."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from .legality import HOST_READ_FIX, HOST_READS


class Recorder(TorchDispatchMode):
    """Hands every aten call to a function, which has to make it.

    Args:
        record: gets the call, its arguments, and those by name.

    >>> import torch
    >>> def record(func, args, kwargs):
    ...     print(func)
    ...     return func(*args, **kwargs)
    >>> with Recorder(record):
    ...     _ = torch.ones(2) + 1
    aten.ones.default
    aten.add.Tensor
    """

    supports_higher_order_operators = True

    def __init__(self, record: Callable[[Any, Any, Any], Any]) -> None:
        super().__init__()
        self.record = record

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.record(func, args, kwargs or {})


class HostReads(TorchFunctionMode):
    """Refuses what reads values without an aten call on a CPU, and does what a GPU does where it differs.

    Args:
        refuse: gets the name of what reads, what is wrong with it, and how to mend it; may raise.

    >>> import torch
    >>> with HostReads(lambda name, clause, fix: print(name, clause)):
    ...     _ = torch.ones(2).tolist()
    Tensor.tolist brings values to the host
    """

    def __init__(self, refuse: Callable[[str, str, str], None]) -> None:
        super().__init__()
        self.refuse = refuse

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = HOST_READS.get(func)
        if name is not None:
            self.refuse(name, "brings values to the host", HOST_READ_FIX)
        if func is torch.nn.functional.one_hot:
            return _one_hot(*args, **kwargs)
        return func(*args, **kwargs)


def _one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    """On a CPU torch looks at the labels even where their number of classes is given; on a GPU it does not."""
    if num_classes < 0:
        return torch._C._nn.one_hot(tensor, num_classes)
    hot = torch.zeros(*tensor.shape, num_classes, dtype=torch.int64)
    return hot.scatter_(-1, tensor.unsqueeze(-1), 1)
