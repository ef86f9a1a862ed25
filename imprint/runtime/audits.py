"""Audits of a captured tick: each returns what is wrong in words, and nothing if all is well."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_map_only

from ..errors import ArgumentError, StateError
from . import legality
from .calls import ALLOCATIONS, Memory, Slot, describe, named
from .emulation import EmulatedGraph

Tick = EmulatedGraph | GraphModule
Tensors = Sequence[Tensor] | Mapping[str, Tensor]
_FREE = ALLOCATIONS | {"_unsafe_view", "unsafe_split", "unsafe_split_with_sizes", "lift_fresh", "_reshape_alias"}


def syncs(tick: Tick) -> list[str]:
    """Calls that the host waits for.

    Args:
        tick: a captured run (only those that were allowed are left in it), or a graph of aten calls from ``make_fx``.

    >>> import torch
    >>> from torch.fx.experimental.proxy_tensor import make_fx
    >>> syncs(make_fx(lambda x: x[x > 0])(torch.ones(3)))
    ['call 1, aten::index: the host waits for it; let no shape depend on data: multiply by the mask, or ...']
    >>> syncs(make_fx(lambda x: x * (x > 0))(torch.ones(3)))
    []
    """
    found = ((i, func, legality.sync(func, args, kwargs)) for i, func, args, kwargs in _calls(tick))
    return [f"call {i}, {func._schema.name}: the host waits for it; {fix}" for i, func, fix in found if fix]


def host_data(tick: Tick) -> list[str]:
    """Calls that bring numbers from the host.

    >>> import torch
    >>> graph = EmulatedGraph(allow=["aten::lift_fresh"])
    >>> _ = graph.capture(lambda: torch.tensor([1.0, 2.0]) * 2)
    >>> host_data(graph)
    ['call 0, aten::lift_fresh: the host brings data; make the tensor before capture, or fill one in place: ...']
    """
    found = ((i, func, legality.host_data(func)) for i, func, _, _ in _calls(tick))
    return [f"call {i}, {func._schema.name}: the host brings data; {fix}" for i, func, fix in found if fix]


def kernels(tick: Tick) -> Counter[str]:
    """How many calls of each name compute something, without views and bare allocations; ``.total()`` of all.

    >>> import torch
    >>> from torch.fx.experimental.proxy_tensor import make_fx
    >>> kernels(make_fx(lambda x: (x.t() @ x).view(-1) + 1)(torch.ones(3, 3)))
    Counter({'aten::mm': 1, 'aten::add': 1})
    """
    funcs = [func for _, func, _, _ in _calls(tick)]
    return Counter(f._schema.name for f in funcs if not _launches_nothing(f))


def over_budget(tick: Tick, budget: int) -> list[str]:
    """Whether there are more kernels than `budget`; the most frequent are named.

    >>> import torch
    >>> graph, x = EmulatedGraph(), torch.ones(2)
    >>> _ = graph.capture(lambda: x.mul_(2).add_(1).mul_(3))
    >>> over_budget(graph, 2)
    ['3 kernels, 2 are budgeted: 2 aten::mul_, 1 aten::add_']
    """
    count = kernels(tick)
    most = ", ".join(f"{n} {name}" for name, n in count.most_common(5))
    return [f"{count.total()} kernels, {budget} are budgeted: {most}"] if count.total() > budget else []


def allocated(graph: EmulatedGraph, fixed: Tensors) -> list[str]:
    """What a replay leaves for the next one outside of `fixed`, element by element; what is read and never written.

    An element crosses replays if a replay reads it before writing it, and writes it. It has to lie in one of the
    tensors that were allocated for this. Memory of the graph itself may not be read before it is written.

    Args:
        graph: a captured run.
        fixed: all tensors that are meant to cross replays; views of a larger one count as what they show.

    Raises:
        StateError: nothing is captured.

    >>> import torch
    >>> graph, h, out = EmulatedGraph(), torch.zeros(4), torch.zeros(4)
    >>> def tick():
    ...     h[2:] += 1
    ...     out.copy_(h)
    >>> graph.capture(tick)
    >>> allocated(graph, [h])
    []
    >>> allocated(graph, [h[:3]])
    ['argument 0 of aten::slice (float32 [4]): 1 of 4 elements cross replays, and are not in fixed memory']
    """
    if not graph.captured:
        raise StateError("audits.allocated", "nothing is captured", fix="graph.capture(tick) before")
    covered = list(named(fixed, "audits.allocated(fixed=)").values())
    return [line for trace in _traces(graph) for line in trace.findings(covered)]


def strides(pairs: Iterable[tuple[Tensor, Tensor]] | Mapping[str, tuple[Tensor, Tensor]]) -> list[str]:
    """Pairs of a parameter and its gradient or optimizer state that do not lie alike.

    Fused optimizers on a CPU walk both in the parameter's order, and are silently wrong where the strides differ.

    Args:
        pairs: the parameter first; a mapping gives them names.

    >>> import torch
    >>> strides([(torch.zeros(2, 3), torch.zeros(2, 3)), (torch.zeros(2, 3), torch.zeros(3, 2).t())])
    ['[1]: strides (3, 1) and (1, 2) of sizes [2, 3] and [2, 3]']
    """
    items = pairs.items() if isinstance(pairs, Mapping) else ((f"[{i}]", pair) for i, pair in enumerate(pairs))
    return [
        f"{name}: strides {a.stride()} and {b.stride()} of sizes {list(a.shape)} and {list(b.shape)}"
        for name, (a, b) in items
        if _steps(a) != _steps(b)
    ]


def addresses(fn: Callable[[], Any], fixed: Tensors | Callable[[], Tensors], n: int = 3) -> list[str]:
    """Fixed tensors that move while `fn` runs.

    Args:
        fn: a tick, a replay, a whole rollout.
        fixed: the tensors, or a function that looks them up anew: only that sees an attribute that is bound anew.
        n: how often it runs.

    Raises:
        ArgumentError: `n` is below 1.

    >>> import torch
    >>> class State:
    ...     h = torch.zeros(2)
    >>> def tick():
    ...     State.h = State.h + 1
    >>> addresses(tick, lambda: {"h": State.h}, n=5)
    ['h (float32 [2]) moved in run 1, 2, 3, 4, 5']
    """
    if n < 1:
        raise ArgumentError("audits.addresses(n=)", "it has to run at least once", expected="n >= 1", got=n, fix="n=3")
    look = fixed if callable(fixed) else lambda: fixed
    now = named(look(), "audits.addresses(fixed=)")
    kept = [t.detach() for t in now.values()]  # so that no address is used twice
    moved: dict[str, list[str]] = {name: [] for name in now}
    where = {name: t.data_ptr() for name, t in now.items()}
    for run in range(1, n + 1):
        fn()
        now = named(look(), "audits.addresses(fixed=)")
        kept += [t.detach() for t in now.values()]
        for name in where.keys() & now.keys():
            if now[name].data_ptr() != where[name]:
                moved[name].append(str(run))
        where = {name: t.data_ptr() for name, t in now.items()}
    gone = [f"{name} is not there any more" for name in moved if name not in now]
    return gone + [f"{k} ({describe(now[k])}) moved in run {', '.join(v)}" for k, v in moved.items() if v and k in now]


def _calls(tick: Tick) -> Iterator[tuple[int, OpOverload, Any, Any]]:
    """Place, function and arguments of every aten call, with something that has a dtype in place of tensors."""
    if isinstance(tick, EmulatedGraph):
        for i, call in enumerate(tick.calls):
            yield i, call.func, call.args, call.kwargs
        return
    nodes = [n for n in tick.graph.nodes if n.op == "call_function" and isinstance(n.target, OpOverload)]
    for i, node in enumerate(nodes):
        assert isinstance(node.target, OpOverload)
        yield i, node.target, *tree_map_only(Node, _value, (tuple(node.args), dict(node.kwargs)))


def _value(node: Node) -> Any:
    if "val" in node.meta:
        return node.meta["val"]
    where = f"node {node.name!r}"
    raise ArgumentError(where, "its type is not known", expected='node.meta["val"]', fix="trace the tick with make_fx")


def _launches_nothing(func: OpOverload) -> bool:
    return func.is_view or torch.Tag.inplace_view in func.tags or legality.short_name(func) in _FREE


def _steps(tensor: Tensor) -> list[tuple[int, int]]:
    """Sizes and strides; the stride of a dimension of size 1 takes nobody anywhere."""
    return [(size, stride if size > 1 else 0) for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]


class _Trace:
    """Which elements of one memory are written, and which are read before."""

    def __init__(self, memory: Memory, unit: int, nbytes: int) -> None:
        self.memory, self.unit = memory, unit
        self.places = torch.arange(nbytes // unit)
        self.written, self.touched, self.exposed = (torch.zeros(nbytes // unit, dtype=torch.bool) for _ in range(3))

    def at(self, dtype: torch.dtype, size: Sequence[int], stride: Sequence[int], offset: int) -> Tensor:
        """The places of a tensor's elements."""
        k = dtype.itemsize // self.unit
        size, stride = (*size, k), (*(s * k for s in stride), 1)
        return self.places.as_strided(size, stride, offset * k).reshape(-1)

    def access(self, kind: str, slot: Slot) -> None:
        """Note one access."""
        places = self.at(slot.dtype, slot.size, slot.stride, slot.offset)
        if kind == "read":
            self.exposed[places] |= ~self.written[places]
        else:
            self.touched[places] = True
            if kind == "write":
                self.written[places] = True

    def findings(self, fixed: Sequence[Tensor]) -> Iterator[str]:
        """What crosses replays outside of `fixed`; what of the graph's own memory is read without being written."""
        if self.memory.own:
            if n := 0 if self.memory.constant else int(self.exposed.sum()):
                yield f"{self.memory.what}: {n} elements are read before they are written"
            return
        crossing = self.exposed & self.touched
        for t in fixed:
            if t.untyped_storage()._cdata == self.memory.key:
                crossing[self.at(t.dtype, t.shape, t.stride(), int(t.storage_offset()))] = False
        if n := int(crossing.sum()):
            yield f"{self.memory.what}: {n} of {len(crossing)} elements cross replays, and are not in fixed memory"


def _traces(graph: EmulatedGraph) -> list[_Trace]:
    """Every memory that the calls touch, with what they do to it."""
    graph.check_liveness()
    found: dict[int, list[tuple[str, Slot]]] = {}
    for call in graph.calls:
        for kind, slot in call.accesses():
            found.setdefault(slot.memory.key, []).append((kind, slot))
    traces = []
    for accesses in found.values():
        memory = accesses[0][1].memory
        unit = min(slot.dtype.itemsize for _, slot in accesses)
        traces.append(_Trace(memory, unit, memory.elements(torch.uint8).numel()))
        for kind, slot in accesses:
            traces[-1].access(kind, slot)
    return traces
