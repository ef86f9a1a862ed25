"""CUDA graphs on a CPU: one run of a tick is recorded call by call, and replayed over the same addresses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from ..errors import ArgumentError, CaptureError, StateError
from .calls import WHERE, Call, Memory, Slot, describe, named, run
from .legality import HOST_READS, host_data, sync
from .modes import HostReads, Recorder

R = TypeVar("R")


class EmulatedGraph:
    """What ``torch.cuda.CUDAGraph`` does, without a GPU: for tests, and for plans on a CPU.

    :meth:`capture` records every aten call of one run with the addresses it reads and writes. :meth:`replay` makes the
    same calls over the same addresses. So whatever Python did during capture is baked in, as on a GPU: branches, plain
    numbers, attributes that were bound anew, memory that was allocated. What is emulated:

    * After capture nothing has happened: all memory that was there before is as it was, and so is the state of random
      generators. What the run allocated holds no numbers yet.
    * Memory of the run itself belongs to the graph. It is poisoned before every replay (NaN, or the least integer; bool
      has no such value), so that numbers an earlier replay left there are not taken for this replay's.
    * Memory from outside is not kept alive. If it is freed or moved, a replay is refused before anything runs.
    * What the host would wait for, and data that it would bring, is refused by name, with what to write instead.
    * Random calls draw anew at each replay.

    Not emulated: several streams; memory that intermediates share; and a copy ``x.to(device)``, which on a CPU goes
    from the CPU to the CPU (``.cpu()``, ``.numpy()`` and ``.tolist()`` are refused). Code that is no aten call
    (compiled kernels, numpy) is not recorded; if it writes into a tensor of `restore`, capture raises.

    Args:
        restore: tensors that are put back after capture even if no recorded call touches them; a mapping also gives
            them names, which errors use. Put all memory here that crosses ticks.
        allow: names of calls that are recorded though a CUDA graph could not hold them, for example ``"aten::nonzero"``
            or ``"Tensor.cpu"``.

    Raises:
        ArgumentError: `allow` names no call, or a tensor to restore is none.

    >>> import torch
    >>> h, x = torch.zeros(2), torch.ones(2)
    >>> def tick():
    ...     h.copy_(0.5 * h + x)
    >>> graph = EmulatedGraph()
    >>> graph.capture(tick)
    >>> h                                  # nothing has happened yet
    tensor([0., 0.])
    >>> graph.replay()
    >>> x.fill_(3.0)
    tensor([3., 3.])
    >>> graph.replay()
    >>> h
    tensor([3.5000, 3.5000])

    Reference: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """

    def __init__(self, restore: Mapping[str, Tensor] | Sequence[Tensor] = (), allow: Iterable[str] = ()) -> None:
        self._restore: dict[str, Tensor] = named(restore, f"{WHERE}(restore=)")
        self.allow = frozenset([allow] if isinstance(allow, str) else allow)
        for name in sorted(self.allow - set(HOST_READS.values())):
            if "::" not in name or not torch._C._jit_get_schemas_for_operator(name):
                raise ArgumentError(
                    f"{WHERE}(allow=)", "there is no such call", got=repr(name), fix="the name in the error it raised"
                )
        self.captured = False
        self._forget()

    def _forget(self) -> None:
        self.calls: list[Call] = []
        self._kernels: list[Call] = []
        self._tensors: dict[int, Tensor] = {}
        self._memories: dict[int, Memory] = {}
        self._slots: dict[Slot, Slot] = {}
        self._before: list[tuple[Memory, Tensor]] = []
        self._generators: dict[torch.Generator, Tensor] = {}

    def capture(self, fn: Callable[[], R]) -> R:
        """Record one run of `fn`; afterwards nothing has happened.

        Args:
            fn: takes nothing; works in place on tensors that were allocated before.

        Returns:
            What `fn` returned. Tensors in it hold numbers from the first replay on.

        Raises:
            StateError: something is captured already.
            CaptureError: `fn` did what a CUDA graph cannot hold.

        >>> import torch
        >>> graph, x = EmulatedGraph(), torch.ones(2)
        >>> y = graph.capture(lambda: x + 1)
        >>> y
        tensor([nan, nan])
        >>> graph.replay()
        >>> y
        tensor([2., 2.])
        """
        if self.captured:
            raise StateError(
                f"{WHERE}.capture", "it holds a run already", fix="graph = EmulatedGraph() for another one"
            )
        restore, self._restore = self._restore, {}  # not kept: their owner may free them
        try:
            outside = {self._memory(t, f"{name!r} ({describe(t)})").key for name, t in restore.items()}
            self._keep_generator(torch.default_generator)
            with HostReads(self._refuse), Recorder(self._record):
                out = fn()
            self._check_writes(self._undo(), outside)
        except BaseException:
            self._undo()
            self._forget()
            self._restore = restore
            raise
        self._settle()
        self.poison()
        return out

    @torch.no_grad()
    def replay(self) -> None:
        """Make the recorded calls again, over the same addresses.

        Raises:
            StateError: nothing is captured.
            CaptureError: memory from outside is gone or lies elsewhere (nothing ran), or the shape of a result changed.

        >>> import torch
        >>> graph, x, y = EmulatedGraph(), torch.ones(2), torch.zeros(2)
        >>> _ = graph.capture(lambda: y.add_(x))
        >>> del x
        >>> graph.replay()
        Traceback (most recent call last):
        imprint.errors.CaptureError: CaptureError: EmulatedGraph.replay: memory that it reads or writes is freed.
          expected: all tensors from before capture alive, at their addresses
          got:      argument 1 of aten::add_ (float32 [2])
          fix:      keep the tensor, and write into it (copy_) instead of binding a new one
        """
        if not self.captured:
            raise StateError(f"{WHERE}.replay", "nothing is captured", fix="graph.capture(tick) before")
        self.check_liveness()
        tensors = self._tensors | {id(slot): slot.tensor() for slot in self._slots if not slot.memory.own}
        self.poison()
        with torch.autocast("cpu", enabled=False):
            for call in self._kernels:
                run(call, tensors)

    def check_liveness(self) -> None:
        """Refuse if memory from outside is freed or lies elsewhere than at capture.

        Raises:
            CaptureError: it does; the message names what is gone.
        """
        for clause, bad in (("is freed", Memory.is_freed), ("lies elsewhere now", Memory.is_moved)):
            gone = [memory.what for memory in self._memories.values() if bad(memory)]
            if gone:
                raise CaptureError(
                    f"{WHERE}.replay",
                    f"memory that it reads or writes {clause}",
                    expected="all tensors from before capture alive, at their addresses",
                    got=", ".join(gone),
                    fix="keep the tensor, and write into it (copy_) instead of binding a new one",
                )

    @torch.no_grad()
    def poison(self) -> None:
        """Overwrite the graph's own memory with values that show: NaN, or the least integer.

        Every replay begins with it. Call it on all graphs of a plan before each tick to see that no graph reads what
        another one, or the tick before, left in its own memory.

        >>> import torch
        >>> graph, x = EmulatedGraph(), torch.ones(2)
        >>> y = graph.capture(lambda: x.long())
        >>> graph.replay()
        >>> graph.poison()
        >>> (y == torch.iinfo(torch.int64).min).all()
        tensor(True)
        """
        for memory in self._memories.values():
            if memory.own:
                memory.poison()

    def _record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make one call, and note it."""
        if not isinstance(func, OpOverload):
            raise CaptureError(
                f"{WHERE}.capture", f"{func} chooses kernels by values", fix="torch.where, or a Python loop"
            )
        name, brings = func._schema.name, host_data(func)
        self._refuse(name, "makes the host wait", sync(func, args, kwargs))
        self._refuse(name, "brings data from the host", brings)
        leaves, spec = tree_flatten((args, kwargs))
        for leaf in leaves:
            if isinstance(leaf, torch.Generator):
                self._keep_generator(leaf)
        flat = [self._slot(x, f"argument {i} of {name}", constant=brings is not None) for i, x in enumerate(leaves)]
        known = {slot.memory.key for slot in flat if isinstance(slot, Slot)}
        out = func(*args, **kwargs)
        outputs = [self._slot(x, f"result of {name}", own=True) for x in tree_leaves(out)]
        slots = tuple(slot if isinstance(slot, Slot) else None for slot in outputs)
        fresh = tuple(slot for slot in slots if slot is not None and slot.memory.key not in known)
        args, kwargs = tree_unflatten(flat, spec)
        self.calls.append(Call(func, args, kwargs, slots, fresh))
        return out

    def _check_writes(self, changed: list[Memory], outside: set[int]) -> None:
        """Refuse what changed behind the calls' back, and what another size keeps from being put back."""
        unseen = [memory.what for memory in changed if memory.key in outside - self._used()]
        if unseen:
            raise CaptureError(
                f"{WHERE}.capture", f"{', '.join(unseen)} changed, but no recorded call touches it",
                expected="a tick of aten calls", fix="capture the tick before it is compiled; no numpy in it",
            )  # fmt: skip
        resized = [memory.what for memory, before in self._before if memory.size() != before.numel()]
        if resized:
            raise CaptureError(
                f"{WHERE}.capture", f"{', '.join(resized)} got another number of bytes, and could not be put back",
                fix="no resize_ of memory from outside: allocate the largest size before, and use views of it",
            )  # fmt: skip

    def _settle(self) -> None:
        """Keep what replays need, and of memory from outside only what they touch."""
        touched = self._used()
        self._before, self._generators, self.captured = [], {}, True
        self._memories = {key: memory for key, memory in self._memories.items() if memory.own or key in touched}
        self._kernels = [call for call in self.calls if not call.is_view]  # what follows a view knows where it lies
        used = {id(slot) for call in self._kernels for slot in call.slots()}
        self._slots = {slot: slot for slot in self._slots if id(slot) in used}
        self._tensors = {id(slot): slot.tensor() for slot in self._slots if slot.memory.own}

    def _used(self) -> set[int]:
        """What memory the calls touch; who only views it does not."""
        return {slot.memory.key for call in self.calls if not call.is_view for slot in call.slots()}

    def _refuse(self, name: str, clause: str, fix: str | None) -> None:
        if fix is not None and name not in self.allow:
            raise CaptureError(f"{WHERE}.capture", f"{name} {clause}, which a CUDA graph cannot hold", fix=fix)

    def _slot(self, leaf: Any, what: str, *, own: bool = False, constant: bool = False) -> Any:
        """A tensor's slot; anything else as it is."""
        if not isinstance(leaf, Tensor):
            return leaf
        memory = self._memory(leaf, f"{what} ({describe(leaf)})", own=own, constant=constant)
        slot = Slot.of(leaf, memory)
        return self._slots.setdefault(slot, slot)

    def _memory(self, tensor: Tensor, what: str, *, own: bool = False, constant: bool = False) -> Memory:
        """The memory of a tensor; its contents are kept for later if it is seen for the first time."""
        special = tensor.layout != torch.strided or tensor.is_conj() or tensor.is_neg()
        if tensor.device.type != "cpu" or special or is_traceable_wrapper_subclass(tensor):
            raise CaptureError(
                f"{WHERE}.capture", f"{what} cannot be emulated", expected="plain dense tensors on the CPU",
                got=f"{tensor.layout} on {tensor.device}", fix="to_dense(), resolve_conj(), or a GPU's own graphs",
            )  # fmt: skip
        memory = self._memories.get(tensor.untyped_storage()._cdata)
        if memory is None:
            memory = Memory(tensor, own=own or constant, what=what, constant=constant)
            self._memories[memory.key] = memory
            if not memory.own:
                self._before.append((memory, memory.elements(torch.uint8).clone()))
        return memory

    def _keep_generator(self, generator: torch.Generator) -> None:
        if generator not in self._generators:
            self._generators[generator] = generator.get_state()

    @torch.no_grad()
    def _undo(self) -> list[Memory]:
        """Put back all memory from outside, and random generators; what had changed."""
        changed = []
        for memory, before in self._before:
            storage = memory.storage()
            if storage is None:
                continue
            now = memory.elements(torch.uint8)[: before.numel()]
            if not torch.equal(now, before):  # what is equal is not written to: it may be a file that is read only
                now.copy_(before)
                changed.append(memory)
        for generator, state in self._generators.items():
            generator.set_state(state)
        return changed
