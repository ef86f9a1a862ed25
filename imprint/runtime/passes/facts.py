"""What a captured graph does to memory: where each value lies, and who reads and writes it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from operator import getitem
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

aten = torch.ops.aten
LARGEST = 1 << 22
"""Regions that span more elements and overlap as intervals are taken to overlap."""


@dataclass(frozen=True)
class Region:
    """Elements of a storage: a strided view.

    Attributes:
        offset, shape, stride: in elements; an `offset` of None says that it may be anywhere.
        size: bytes of an element.
    """

    offset: int | None
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    size: int

    @property
    def span(self) -> int:
        """Elements from the first to the last, both included."""
        return 0 if 0 in self.shape else 1 + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))

    @property
    def dense(self) -> bool:
        """Is every element between the first and the last its own?"""
        distinct = 1
        for n, s in zip(self.shape, self.stride, strict=True):
            distinct *= n if s else 1
        return self.offset is not None and distinct == self.span

    def covers(self, other: Region) -> bool:
        """Is all of `other` certainly in it?"""
        if self == other and self.offset is not None:
            return True
        if self.offset is None or other.offset is None or not self.dense or self.size != other.size:
            return False
        return self.offset <= other.offset and other.offset + other.span <= self.offset + self.span


@lru_cache(maxsize=1 << 16)
def overlap(a: Region, b: Region) -> bool:
    """May two regions of one storage have an element in common? Exact for strided views of one dtype.

    >>> left, right = Region(0, (4, 3), (6, 1), 4), Region(3, (4, 3), (6, 1), 4)
    >>> overlap(left, right), overlap(left, Region(2, (4, 3), (6, 1), 4))
    (False, True)
    """
    if not a.span or not b.span:
        return False
    if a.offset is None or b.offset is None:
        return True
    low, high = max(a.offset * a.size, b.offset * b.size), 0
    high = min((a.offset + a.span) * a.size, (b.offset + b.span) * b.size)
    if low >= high:
        return False
    if (a.dense and b.dense) or a.size != b.size or max(a.span, b.span) > LARGEST:
        return True
    first = min(a.offset, b.offset)
    taken = torch.zeros(max(a.offset + a.span, b.offset + b.span) - first, dtype=torch.bool)
    taken.as_strided(a.shape, a.stride, a.offset - first).fill_(True)
    return bool(taken.as_strided(b.shape, b.stride, b.offset - first).any())


OVERWRITES = {aten.copy_.default, aten.zero_.default, aten.fill_.Scalar, aten.fill_.Tensor}
"""Ops that write all of their first argument without reading it."""


def mutable(node: Node) -> bool:
    """Does it write one of its arguments?"""
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def random(node: Node) -> bool:
    """Does it draw from a generator?"""
    return isinstance(node.target, OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


def opaque(node: Node) -> bool:
    """Must it stay, in order with others of its kind, whatever reads it?"""
    if node.op != "call_function" or node.target is getitem:
        return node.op in ("call_module", "call_method")
    known = isinstance(node.target, OpOverload) and node.target.namespace in ("aten", "prims")
    if not known or random(node):
        return True
    return not mutable(node) and not node.target._schema.returns  # type: ignore[union-attr]


def written(node: Node) -> list[Node]:
    """Arguments that it writes."""
    if not mutable(node):
        return []
    found: list[Node] = []
    for i, arg in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if arg.alias_info is not None and arg.alias_info.is_write:
            value = node.args[i] if i < len(node.args) else node.kwargs.get(arg.name)
            map_arg(value, lambda n: found.append(n))
    return found


class Facts:
    """Values as tensors without data that share storages as the real ones do; placeholders are told apart by their
    meta ``"storage"`` (any key; the same key says: the same memory) and ``"offset"`` (elements), where these are given.

    Attributes:
        value: of every node, a tensor or what holds tensors.
        root: of every storage, the node that made it.
        accesses: of every storage that is written, (index, region, is it a write) in the order of the graph.
    """

    def __init__(self, gm: GraphModule, walk: bool = True) -> None:
        self.gm, self.mode = gm, FakeTensorMode(allow_non_fake_inputs=True)
        self.value: dict[Node, Any] = {}
        self.root: dict[Any, Node] = {}
        self.aliases: dict[Any, list[Node]] = defaultdict(list)
        self.nodes = list(gm.graph.nodes)
        self.index = {node: i for i, node in enumerate(self.nodes)}
        self._shared: dict[int, tuple[Any, int | None]] = {}
        self._constants: dict[int, Any] = {}
        if walk:
            for node in self.nodes:
                self.see(node)
            self.find_accesses()

    # -------------------------------------------------------------------------------------------------- values
    def see(self, node: Node) -> None:
        """Take a node in; its arguments were."""
        value = None if node.op == "output" else self._value(node)
        self.value[node] = value
        for t in tensors(value):
            key = self._key(t)
            self.root.setdefault(key, node)
            self.aliases[key].append(node)

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        """Write a call where the graph is being written, and take it in."""
        node = self.gm.graph.call_function(target, args, kwargs)
        self.see(node)
        return node

    def _value(self, node: Node) -> Any:
        with self.mode, torch.no_grad():
            if node.op == "placeholder":
                return self._placeholder(node)
            if node.op == "get_attr":
                real = self.constant(node)
                if id(real) not in self._constants:
                    self._constants[id(real)] = self.mode.from_tensor(real.detach())
                return self._constants[id(real)]
            args, kwargs = map_arg((node.args, node.kwargs), lambda n: self.value[n])
            return node.target(*args, **kwargs)  # type: ignore[operator]

    def _placeholder(self, node: Node) -> Any:
        like = node.meta.get("val")
        if not isinstance(like, Tensor):
            like = node.meta.get("tensor_meta")
        if like is None:
            return None
        stride = like.stride() if isinstance(like, Tensor) else like.stride
        device = like.device if isinstance(like, Tensor) else "cpu"
        value = torch.empty_strided(tuple(like.shape), stride, dtype=like.dtype, device=device)
        if "storage" in node.meta:
            self._shared[value.untyped_storage()._cdata] = (("shared", node.meta["storage"]), node.meta.get("offset"))
        return value

    def constant(self, node: Node) -> Tensor:
        """The tensor that a get_attr node reads."""
        found: Any = self.gm
        for part in str(node.target).split("."):
            found = getattr(found, part)
        return found

    def _key(self, t: Tensor) -> Any:
        own = t.untyped_storage()._cdata
        return self._shared[own][0] if own in self._shared else own

    def storage(self, node: Node) -> Any:
        """Which storage the tensor of a node lies in."""
        return self._key(self.value[node])

    def region(self, node: Node) -> Region:
        """Where in it."""
        return self._region(self.value[node])

    def _region(self, t: Tensor) -> Region:
        own, offset = t.untyped_storage()._cdata, int(t.storage_offset())
        start = self._shared[own][1] if own in self._shared else 0
        return Region(None if start is None else start + offset, tuple(t.shape), t.stride(), t.itemsize)

    def geometry(self, node: Node) -> tuple[Any, ...]:
        """Equal for nodes that are the same view of the same memory."""
        t, region = self.value[node], self.region(node)
        return (self.storage(node), t.dtype, region, node if region.offset is None else None)

    # -------------------------------------------------------------------------------------------------- memory
    def is_view(self, node: Node) -> bool:
        """Does it only point into what an argument holds?"""
        if node.op != "call_function" or mutable(node):
            return False
        if node.target is getitem:
            return True
        own = [self._key(t) for t in tensors(self.value[node])]
        given = {self._key(t) for arg in node.all_input_nodes for t in tensors(self.value[arg])}
        return bool(own) and all(key in given for key in own)

    def is_local(self, storage: Any) -> bool:
        """Was it made in the graph, and is it not seen outside?"""
        if self.root[storage].op in ("placeholder", "get_attr"):
            return False
        return not any(user.op == "output" for node in self.aliases[storage] for user in node.users)

    def regions(self, node: Node) -> Iterator[tuple[Any, Region]]:
        """Storage and region of each tensor of a node."""
        for t in tensors(self.value[node]):
            yield self._key(t), self._region(t)

    def find_accesses(self) -> None:
        """List reads and writes of storages that are written."""
        self.writes: dict[Any, list[tuple[int, Region]]] = defaultdict(list)
        self.accesses: dict[Any, list[tuple[int, Region, bool]]] = defaultdict(list)
        for i, node in enumerate(self.nodes):
            for arg in written(node):
                for key, region in self.regions(arg):
                    self.writes[key].append((i, region))
        for i, node in enumerate(self.nodes):
            if node.op not in ("call_function", "output") or self.is_view(node):
                continue
            own = written(node)
            unread = own if node.target in OVERWRITES else []
            read = [arg for arg in node.all_input_nodes if arg not in unread or arg in node.args[1:]]
            for args, writes in ((read, False), (own, True)):
                for arg in args:
                    for key, region in self.regions(arg):
                        if key in self.writes:
                            self.accesses[key].append((i, region, writes))

    def is_written(self, node: Node) -> bool:
        """Is any storage of it written by anything in the graph?"""
        return any(key in self.writes for key, _ in self.regions(node))

    def changed(self, node: Node, start: int, stop: int) -> bool:
        """Does any op with ``start <= index < stop`` write what the node points to?"""
        return any(
            start <= i < stop and overlap(region, other)
            for key, region in self.regions(node)
            for i, other in self.writes.get(key, ())
        )

    def version(self, node: Node, at: int) -> frozenset[int]:
        """The writes before index `at` that made what the node points to then: equal versions, equal contents."""
        return frozenset(
            i
            for key, region in self.regions(node)
            for i, other in self.writes.get(key, ())
            if i < at and overlap(region, other)
        )


def tensors(value: Any) -> Iterator[Tensor]:
    """Tensors in a value."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors(part)
