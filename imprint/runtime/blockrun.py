"""A block of ticks of a rollout as the engine sees it while it is captured: everything comes from fixed tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_with_path

from ..errors import CaptureError
from ..graph.agenda import Agenda
from ..graph.due import Due
from ..graph.rollout import Rollout
from ..graph.signal import Signal
from .store import Store

Writes = list[tuple[Tensor, Tensor]]


class BlockRun(Rollout):
    """Ticks `start` to `stop` of `run`: inputs from slots at the present tick, signals and states from held tensors.

    Args:
        run: a rollout for which the block stands; only its python facts are read.
        store: the fixed tensors.
        index: ``[K]``, the block's ticks within the slots.
        masked: rows end at ticks of their own, which the slots know.
        prefix: names of its tensors begin with it.
    """

    def __init__(
        self, run: Rollout, store: Store, index: Tensor, start: int, stop: int, masked: bool, prefix: str = ""
    ) -> None:
        vars(self).update(vars(run))
        self.store, self.index, self.prefix = store, index, prefix
        self.start, self.stop, self.partner = start, stop, None
        self.rested = self._masks() if masked else None
        if masked:  # every tick may be the last of some row
            self.lengths = list(range(1, self.offset + stop + 2))
        self.kept = {key: [] for key in run.kept}
        self.emissions: dict[str, tuple[list[int], Tensor]] = {}
        self.watched, self.state_log = set(run.watched), {}
        self.signals = {key: self._held(key, signal) for key, signal in run.signals.items()}
        self.states = tree_map_with_path(lambda path, v: store.hold(state_name(prefix, path), v), run.states)

    def _masks(self) -> Tensor:
        return self.store["valid"].index_select(0, self.index)

    def _held(self, key: str, signal: Signal) -> Signal:
        made = Signal(self.store.hold(f"{self.prefix}{key}", signal.before), signal.reach)
        made.history = [self.store.hold(f"{self.prefix}{key}, {j + 1} ago", signal.before) for j in range(signal.reach)]
        return made

    def shown(self, name: str, start: int, stop: int) -> Tensor:
        """From the slots."""
        return self.store[f"{self.prefix}{name}"].index_select(0, self.index)

    def valid(self, t: int) -> Tensor | None:
        """From the slots."""
        return None if self.rested is None else self.rested[t - self.start]

    def valid_at(self, ticks: list[int]) -> Tensor | None:
        """Of ticks of the block."""
        if self.rested is None:
            return None
        return torch.stack([self.rested[t - self.start] for t in ticks])

    def named(self) -> list[tuple[str, Tensor]]:
        """What ports hold, and held, and the states; the names are those of the store."""
        found = []
        for key, signal in self.signals.items():
            found.append((f"{self.prefix}{key}", signal.before))
            found += [(f"{self.prefix}{key}, {j + 1} ago", v) for j, v in enumerate(signal.history)]
        return found + [(state_name(self.prefix, path), v) for path, v in state_leaves(self.states)]

    def writes(self) -> Writes:
        """What has to be written where, for the next block to find it."""
        return [(self.store[name], v) for name, v in self.named()]

    def leaves(self) -> dict[str, Tensor]:
        """Begin with leaves of a graph in place of the fixed tensors; returns those that may have a gradient."""
        made: dict[str, Tensor] = {}

        def leaf(name: str) -> Tensor:
            held = self.store[name]
            if not held.is_floating_point():
                return held
            made[name] = held.detach().requires_grad_()
            return made[name]

        for key, signal in self.signals.items():
            signal.before = leaf(f"{self.prefix}{key}")
            signal.history = [leaf(f"{self.prefix}{key}, {j + 1} ago") for j in range(signal.reach)]
        self.states = tree_map_with_path(lambda path, _: leaf(state_name(self.prefix, path)), self.states)
        return made

    def emitted(self) -> dict[str, tuple[list[int], Tensor]]:
        """What is kept of the block, by name, before its end: at which of its ticks, and ``[n, B, …]``."""
        found = {}
        for key in self.kept:
            signal = self.signals[key]
            at = [i for i, n in enumerate(signal.counts) if n > (signal.counts[i - 1] if i else 0)]
            if at:
                found[key] = at, signal.stacked()
        for name, logged in self.state_log.items():
            at = [t - self.start for t in range(self.start, self.stop) if self.schedule.emits(name, t)]
            each = [state_leaves(state) for state in logged]
            for i, (path, _) in enumerate(each[0]):
                found[state_name(f"{name}: ", path)] = at, torch.stack([leaves[i][1] for leaves in each])
        return found

    def at(self, ticks: list[int]) -> Tensor:
        """Where those ticks of the block are within the slots."""
        return self.index if len(ticks) == len(self.index) else torch.stack([self.index[i] for i in ticks])

    def end(self, cut: bool) -> None:
        """Remember what was emitted."""
        self.emissions = self.emitted()
        super().end(cut)

    def show(self) -> None:
        """After the end: what was emitted goes into its rings."""
        for name, (ticks, stack) in self.emissions.items():
            self.store[ring_name(name)].index_copy_(0, self.at(ticks), stack)


def state_name(prefix: str, path: Any) -> str:
    """Of a leaf of the states."""
    return f"{prefix}state of " + ".".join(str(getattr(p, "key", getattr(p, "idx", p))) for p in path)


def ring_name(key: str) -> str:
    """Of what a port emitted at the ticks of the slots."""
    return f"{key} over time"


def state_leaves(states: Any) -> list[tuple[Any, Tensor]]:
    """The tensors of states, each with its path."""
    found: list[tuple[Any, Tensor]] = []
    tree_map_with_path(lambda path, v: found.append((path, v)), states)
    return found


@dataclass
class BlockDue(Due):
    """A term's targets within a block.

    Attributes:
        numbers: ``[E]``, the ticks of its emissions.
    """

    numbers: Tensor | None = None

    def tick(self, emission: int) -> Any:
        """Another one each time the block is run: a tensor."""
        assert self.numbers is not None
        return self.numbers[emission]


class BlockBatch(Mapping[str, Any]):
    """What objectives see of the batch: tensors at fixed addresses.

    Raises:
        CaptureError: what is read is no tensor.
    """

    def __init__(self, batch: Mapping[str, Any], store: Store) -> None:
        self.batch, self.store = batch, store

    def __getitem__(self, key: str) -> Tensor:
        v = self.batch[key]
        if not isinstance(v, Tensor):
            raise CaptureError(
                "objective", f"it reads batch[{key!r}], which is no tensor, and would be that of one batch for good",
                got=type(v).__name__, fix=f"torch.as_tensor(batch[{key!r}]); or backend='eager'",
            )  # fmt: skip
        return self.store.hold(batch_name(key), v)

    def __iter__(self) -> Iterator[str]:
        return iter(self.batch)

    def __len__(self) -> int:
        return len(self.batch)


def batch_name(key: str) -> str:
    """Of what objectives read of the batch."""
    return f"batch: {key}"


class BlockAgenda(Agenda):
    """What a group has to learn in a block, from slots; emissions are numbered from the block's first.

    Args:
        real: of the rollout that the block stands for.
        name: the group's.
    """

    def __init__(self, real: Agenda, name: str, store: Store, index: Tensor, start: int, stop: int) -> None:
        vars(self).update(vars(real))
        self.dues, self.shares, self.at = {}, {}, {}
        self.batch = BlockBatch(real.batch, store)
        first = {term: sum(t < start for t in due.ticks) for term, due in real.dues.items()}
        for term, due in real.dues.items():
            ticks = [t for t in due.ticks if start <= t < stop]
            at = _at(index, [t - start for t in ticks])
            slot = target_name(name, term)
            some = bool(ticks)
            self.dues[term] = replace(
                BlockDue(**vars(due)), ticks=ticks, batch=self.batch, numbers=at + store["first tick"],
                y=None if due.y is None or not some else store[f"{slot}, y"].index_select(0, at),
                valid=None if due.valid is None or not some else store[f"{slot}, valid"].index_select(0, at),
                facts=([True] * len(ticks), [due.valid is None] * len(ticks)),
            )  # fmt: skip
            share = real.shares[term]
            alike = isinstance(share, float) and share == 1.0
            self.shares[term] = 1.0 if alike or not some else store[f"{slot}, share"].index_select(0, at)
        for t in range(start, stop):
            if t in real.at:
                self.at[t] = [(term, e - first[term]) for term, e in real.at[t]]
        if self.penalties:
            sizes = store[f"{name}, size"].index_select(0, index)
            self.sizes = {self.period(t): sizes[t - start] for t in self.at}  # type: ignore[assignment]


def target_name(group: str, term: str) -> str:
    """Of a term's slots."""
    return f"{group}: {term}"


def _at(index: Tensor, places: list[int]) -> Tensor:
    if len(places) == len(index) or not places:
        return index
    return torch.stack([index[i] for i in places])


def leaves(tree: Any) -> list[Tensor]:
    """Tensors of a tree."""
    return [v for v in tree_flatten(tree)[0] if isinstance(v, Tensor)]
