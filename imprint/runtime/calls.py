"""Recorded aten calls: which memory they touch, at which addresses, without keeping alive what is not theirs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

from ..errors import ArgumentError, CaptureError
from .legality import short_name

WHERE = "EmulatedGraph"
ALLOCATIONS = {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided"}
_OVERWRITES = {"copy_", "fill_", "zero_", "bernoulli_", "normal_", "uniform_", "random_", "exponential_", "log_normal_"}
_SCATTERS = {
    "index_copy_",
    "index_fill_",
    "masked_fill_",
    "masked_scatter_",
    "scatter_",
    "index_put_",
    "_index_put_impl_",
}
_BATCH_NORMS = {"native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"}  # write averages, and do not say so


def describe(tensor: Tensor | Slot) -> str:
    """The type and sizes of a tensor.

    >>> import torch
    >>> describe(torch.zeros(2, 3))
    'float32 [2, 3]'
    """
    size = tensor.size if isinstance(tensor, Slot) else tensor.shape
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(size)}"


def named(tensors: Mapping[str, Tensor] | Sequence[Tensor], where: str) -> dict[str, Tensor]:
    """Tensors by name; those of a sequence are called by their position.

    >>> import torch
    >>> sorted(named([torch.zeros(1), torch.ones(1)], "fixed"))
    ['[0]', '[1]']

    Raises:
        ArgumentError: one is no tensor.
    """
    if isinstance(tensors, Mapping):
        found = {str(k): v for k, v in tensors.items()}
    else:
        found = {f"[{i}]": t for i, t in enumerate(tensors)}
    for name, tensor in found.items():
        if not isinstance(tensor, Tensor):
            raise ArgumentError(
                where, f"{name} is no tensor", expected="tensors", got=type(tensor).__name__, fix="pass its tensors"
            )
    return found


class Memory:
    """One storage that a recorded run touched.

    Args:
        tensor: a tensor in it.
        own: it belongs to the graph and lives as long; otherwise it is held weakly, as an address is.
        what: what an error calls it.
        constant: it keeps its contents between replays.

    >>> import torch
    >>> x = torch.zeros(3)
    >>> memory = Memory(x, own=False, what="x")
    >>> memory.storage().nbytes()
    12
    >>> del x
    >>> memory.storage() is None
    True
    """

    def __init__(self, tensor: Tensor, *, own: bool, what: str, constant: bool = False) -> None:
        storage = tensor.untyped_storage()
        self.own, self.what, self.constant, self.dtype = own, what, constant, tensor.dtype
        self.nbytes = storage.nbytes()
        self.address, self._strong, self._weak = storage.data_ptr(), storage if own else None, StorageWeakRef(storage)

    @property
    def key(self) -> int:
        """What tells storages apart while this object lives."""
        return int(self._weak.cdata)

    def storage(self) -> torch.UntypedStorage | None:
        """The storage; None once it is freed."""
        if self._strong is not None:
            return self._strong
        return torch.UntypedStorage._new_with_weak_ptr(self._weak.cdata)

    def size(self) -> int:
        """How many bytes it has; what it had, once it is freed."""
        storage = self.storage()
        return self.nbytes if storage is None else storage.nbytes()

    def is_freed(self) -> bool:
        """Whether nobody holds it any more."""
        return self.storage() is None

    def is_moved(self) -> bool:
        """Whether it lies elsewhere than it did, or has lost bytes."""
        storage = None if self.own else self.storage()
        return storage is not None and (storage.data_ptr() != self.address or storage.nbytes() < self.nbytes)

    def poison(self) -> None:
        """Fill it with NaN, or the least integer; bool and constants stay."""
        if self.dtype == torch.bool or self.constant:
            return
        if self.dtype.is_floating_point or self.dtype.is_complex:
            self.elements().fill_(float("nan"))
        else:
            info = torch.iinfo(self.dtype)
            self.elements().fill_(info.min or info.max)

    def elements(self, dtype: torch.dtype | None = None) -> Tensor:
        """All of it as one flat tensor, by default of the type it was first seen with; it must be alive."""
        storage, dtype = self.storage(), dtype or self.dtype
        assert storage is not None
        flat = torch.empty(0, dtype=dtype)
        return flat.set_(storage, 0, (storage.nbytes() // dtype.itemsize,), (1,))


@dataclass(frozen=True)
class Slot:
    """A tensor of a recorded run as the device sees it: where it begins and how it lies there."""

    memory: Memory
    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, tensor: Tensor, memory: Memory) -> Slot:
        """Of a tensor in `memory`."""
        return cls(memory, tensor.dtype, tuple(tensor.shape), tuple(tensor.stride()), int(tensor.storage_offset()))

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return torch.device("cpu")

    def tensor(self) -> Tensor:
        """The tensor, which must be alive."""
        storage, empty = self.memory.storage(), torch.empty(0, dtype=self.dtype)
        assert storage is not None
        return empty.set_(storage, self.offset, self.size, self.stride)


@dataclass(frozen=True)
class Call:
    """One recorded aten call.

    Attributes:
        func: what was called.
        args: its positional arguments, with slots for tensors.
        kwargs: those by name.
        outputs: what it returned, flat; None for what is no tensor.
        fresh: the outputs that lie in memory of their own.
    """

    func: OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Slot | None, ...]
    fresh: tuple[Slot, ...]

    @property
    def name(self) -> str:
        """Namespace and name, for example ``aten::mm``."""
        return self.func._schema.name

    def slots(self) -> list[Slot]:
        """All tensors that it takes and returns."""
        return [x for x in tree_leaves((self.args, self.kwargs, self.outputs)) if isinstance(x, Slot)]

    @property
    def is_view(self) -> bool:
        """It computes nothing: its outputs are its inputs, seen otherwise."""
        if torch.Tag.inplace_view in self.func.tags:
            return True
        return not self.fresh and not self.func._schema.is_mutable and any(self.outputs)

    @property
    def allocates(self) -> bool:
        """It makes memory and writes nothing into it."""
        return short_name(self.func) in ALLOCATIONS

    def accesses(self) -> Iterator[tuple[str, Slot]]:
        """``("read" | "write" | "touch", slot)`` in order; what is touched is written in part, nobody knows where."""
        if self.is_view or self.allocates:
            return
        name = short_name(self.func)
        given = dict(zip((a.name for a in self.func._schema.arguments), self.args, strict=False)) | self.kwargs
        adds = given.get("accumulate") or "reduce" in given
        partly = name in _SCATTERS and not adds
        blind = partly or name in _OVERWRITES or torch.Tag.out in self.func.tags
        written = self._written(given)
        for key, value in given.items():
            if not (blind and key in written):
                yield from (("read", s) for s in tree_leaves(value) if isinstance(s, Slot))
        for key in written:
            yield from (("touch" if partly else "write", s) for s in tree_leaves(given[key]) if isinstance(s, Slot))
        yield from (("write", s) for s in self.fresh)

    def _written(self, given: dict[str, Any]) -> set[str]:
        """The names of the arguments that are written to."""
        infos = {a.name: a.alias_info for a in self.func._schema.arguments}
        written = {name for name, info in infos.items() if info is not None and info.is_write}
        if short_name(self.func) in _BATCH_NORMS and given.get("training"):
            written |= {"running_mean", "running_var"}
        return written & set(given)


def _bound(given: Any, tensors: dict[int, Tensor]) -> Any:
    """Arguments with tensors in place of slots."""
    if isinstance(given, Slot):
        return tensors[id(given)]
    return [_bound(x, tensors) for x in given] if isinstance(given, (list, tuple)) else given


def run(call: Call, tensors: dict[int, Tensor]) -> None:
    """Make a recorded call again, and bring what it returns to where it lay at capture."""
    try:
        out = call.func(*_bound(call.args, tensors), **{k: _bound(v, tensors) for k, v in call.kwargs.items()})
    except (RuntimeError, IndexError, ValueError) as error:
        raise CaptureError(
            f"{WHERE}.replay", f"{call.name} failed, which it did not at capture", got=error,
            fix="see whether it reads memory that nothing has written in this replay",
        ) from error  # fmt: skip
    if call.allocates:
        return
    for slot, new in zip(call.outputs, tree_leaves(out), strict=True):
        if slot is None or not any(slot is fresh for fresh in call.fresh):
            continue
        if tuple(new.shape) != slot.size or new.dtype != slot.dtype:
            raise CaptureError(
                f"{WHERE}.replay", f"{call.name} returned another shape than at capture", expected=describe(slot),
                got=describe(new), fix="let no shape depend on data",
            )  # fmt: skip
        tensors[id(slot)].copy_(new)
