"""What a group's credit carries from block to block, at fixed addresses."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..credit import ETrace, Params, Traces
from ..propagators import Propagator
from .store import Store


@dataclass(frozen=True)
class Carried:
    """What there is of it, without numbers.

    Attributes:
        grads: names of the gradients that were gathered.
        traces: whose traces there are; None without traces.
        ticks: an update has something to step with.
    """

    grads: tuple[str, ...]
    traces: tuple[Hashable, ...] | None
    ticks: bool

    @classmethod
    def of(cls, prop: Propagator) -> Carried:
        """Now."""
        carry = prop.carry
        if isinstance(carry, Traces):
            return cls(tuple(carry.grads), tuple(carry.kept), prop.ticks > 0)
        return cls(tuple(carry or ()), None, prop.ticks > 0)


class Carry:
    """One group's: gathered gradients in the store, traces in traces of its own.

    Args:
        prop: the group.
        store: where gradients are held.
    """

    def __init__(self, prop: Propagator, store: Store) -> None:
        self.prop, self.store = prop, store
        self.traces: Traces | None = None

    def load(self) -> Carried:
        """Take the numbers of what the propagator carries; what of it there is.

        Where nothing is carried, traces that are known are there and zero.
        """
        carry = self.prop.carry
        if carry is None and isinstance(self.prop.credit, ETrace):
            for v in self.tensors:
                v.zero_()
            return Carried((), tuple(self.traces.kept) if self.traces is not None else (), False)
        if isinstance(carry, Traces):
            carry.flush()
            self._learn_of(carry)
            self._write(carry)
        made = Carried.of(self.prop)
        for k, g in _grads(carry).items():
            self._held(k, g).copy_(g)
        return made

    def reset(self, rows: Tensor) -> None:
        """Rows of the mask start anew."""
        for kept in self.traces.kept.values() if self.traces is not None else ():
            kept.trace.reset(rows)

    @property
    def untold(self) -> bool:
        """Nobody knows yet which traces there will be."""
        return isinstance(self.prop.credit, ETrace) and self.traces is None and bool(self.prop.optimizers)

    def put(self, carried: Carried) -> None:
        """Let the propagator carry the fixed tensors."""
        self.prop.ticks = int(carried.ticks)
        grads = {k: self.store[self._name(k)] for k in carried.grads}
        if carried.traces is None:
            self.prop.carry = grads
        else:
            traces = self._fresh() if self.traces is None else self.traces
            self.prop.carry = traces.part(carried.traces, grads)  # type: ignore[arg-type]

    def seen(self) -> Carried:
        """After a block: make room for what it carries now."""
        carry = self.prop.carry
        if isinstance(carry, Traces):
            carry.flush()
            self._learn_of(carry)
        for k, g in _grads(carry).items():
            self._held(k, g)
        return Carried.of(self.prop)

    def writes(self) -> list[tuple[Tensor, Tensor]]:
        """What it carries after a block, and where that is held."""
        carry = self.prop.carry
        pairs = [(self.store[self._name(k)], g) for k, g in _grads(carry).items()]
        if isinstance(carry, Traces):
            assert self.traces is not None
            for key, kept in carry.kept.items():
                held = self.traces.kept[key].trace.store
                pairs += [(held[name], v) for name, v in kept.trace.store.items()]
        return pairs

    def give(self, carried: Carried) -> None:
        """Let the propagator carry numbers of its own again."""
        self.put(carried)
        carry = self.prop.carry
        if isinstance(carry, Traces):
            self.prop.carry = carry.copied()
        elif carry is not None:
            self.prop.carry = {k: g.clone() for k, g in carry.items()}

    @property
    def tensors(self) -> list[Tensor]:
        """Traces."""
        if self.traces is None:
            return []
        return [v for kept in self.traces.kept.values() for v in kept.trace.store.values()]

    def _fresh(self) -> Traces:
        """Nothing has been begun."""
        return self.prop.credit.init(self.prop.unit, self.prop.params, None, None)  # type: ignore[arg-type]

    def _learn_of(self, carry: Traces) -> None:
        if self.traces is None:
            self.traces = carry.copied()
        new = {key: kept for key, kept in carry.copied().kept.items() if key not in self.traces.kept}
        self.traces.kept |= new

    def _write(self, carry: Traces) -> None:
        assert self.traces is not None
        for key, kept in carry.kept.items():
            for name, v in kept.trace.store.items():
                self.traces.kept[key].trace.store[name].copy_(v)

    def _held(self, k: str, like: Tensor) -> Tensor:
        return self.store.hold(self._name(k), like)

    def _name(self, k: str) -> str:
        return f"{self.prop.name}: gradient of {k}"


def _grads(carry: Any) -> Params:
    if carry is None:
        return {}
    return carry.grads if isinstance(carry, Traces) else carry
