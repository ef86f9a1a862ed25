"""What happened in a rollout, tick by tick and module by module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .learned import Learned

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Read:
    """An edge brought a value.

    Attributes:
        edge, port: names of the edge and of what it read.
        tick: when that was emitted; None for the zeros that a port holds before its first emission.
        shape: of what was read, with its rows.
    """

    edge: str
    port: str
    tick: int | None
    shape: Shape


@dataclass(frozen=True)
class PortOp:
    """What was read became what a proto gets.

    Attributes:
        op: ``"linear"`` or ``"identity"`` of an edge; ``"sum"`` or ``"concat"`` of what several edges bring to a port,
            or of the sub-ports of a group where the proto takes one input.
        of: names of the edges, or of the sub-ports.
        into: the input port.
        shape: of what was made, with its rows.
    """

    op: str
    of: tuple[str, ...]
    into: str
    shape: Shape

    def __repr__(self) -> str:
        return f"PortOp({self.into} = {self.op}({', '.join(self.of)}) {list(self.shape)})"


@dataclass(frozen=True)
class Event:
    """A module ran at a tick, or its group learned.

    Attributes:
        tick: from 0 in the rollout, or in those that it continues.
        module: its name.
        inner_steps: how often its proto stepped; 0 of sources, and of protos without memory where they do not emit.
        reset: its state started anew before.
        rows: how many rows the tick belonged to; those that had ended keep what they had.
        reads: what arrived, in the order of the edges.
        emitted: shape of what each output port emitted; empty if nothing was.
        ops: how what arrived was projected, added and joined.
        learned: what its gradient group learned at this tick, after all modules had run; None if nothing. Every module
            of the group shows it; one that rests has an event for that alone.
    """

    tick: int
    module: str
    inner_steps: int
    reset: bool
    rows: int
    reads: tuple[Read, ...]
    emitted: Mapping[str, Shape]
    ops: tuple[PortOp, ...] = ()
    learned: Learned | None = None

    @property
    def ran(self) -> bool:
        """Did the module run, or has only its group learned?"""
        return bool(self.reads or self.emitted)

    def __repr__(self) -> str:
        does = [f"{self.inner_steps} step{'s' * (self.inner_steps > 1)}"] * bool(self.inner_steps)
        does += ["reset"] * self.reset
        does += [f"reads {r.port}@{'-' if r.tick is None else r.tick} {list(r.shape)}" for r in self.reads]
        does += [repr(op).removeprefix("PortOp(")[:-1] for op in self.ops]
        does += [f"emits {port} {list(shape)}" for port, shape in self.emitted.items()]
        does += [repr(self.learned).removeprefix("Learned(")[:-1]] * (self.learned is not None)
        return f"Event({self.tick} {self.module}: {', '.join(does)})"
