"""What a graph module's output is compared with, declared before any data is seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import ArgumentError


@dataclass(frozen=True, repr=False)
class BatchKey:
    """``batch[key]``."""

    key: str

    def __repr__(self) -> str:
        return f"batch_key({self.key!r})"


@dataclass(frozen=True, repr=False)
class ShiftedInput:
    """What `source` emits `shift` ticks later."""

    source: Any
    shift: int

    def __repr__(self) -> str:
        return f"shifted_input({_name(self.source)}, {self.shift})"


@dataclass(frozen=True, repr=False)
class PortDrive:
    """The input drive of `module`'s port at the same tick."""

    module: Any
    port: str

    def __repr__(self) -> str:
        return f"port_drive({_name(self.module)}, {self.port!r})"


@dataclass(frozen=True, repr=False)
class PortOutput:
    """What `module` holds at its port `shift` ticks later; not projected."""

    module: Any
    port: str = "out"
    shift: int = 0

    def __repr__(self) -> str:
        return f"port_output({_name(self.module)}, {self.port!r}, {self.shift})"


def _name(module: Any) -> str:
    """Of what may be no module at all, as far as this room can tell."""
    return repr(getattr(module, "name", module))


TargetSpec = BatchKey | ShiftedInput | PortDrive | PortOutput


class Targets:
    """Declared targets. They are always detached: nothing learns through a target."""

    @staticmethod
    def batch_key(key: str) -> BatchKey:
        """Labels or values from the batch.

        Shape: ``[B, …]`` for every emission, ``[B, E, …]`` one an emission, ``[B, T, …]`` read at the emission ticks.
        """
        if not isinstance(key, str):
            raise ArgumentError(
                "Targets.batch_key", "not a key", expected="a string", got=repr(key), fix="Targets.batch_key('y')"
            )
        return BatchKey(key)

    @staticmethod
    def shifted_input(source: Any, shift: int = 1) -> ShiftedInput:
        """The input of `source` at tick ``t + shift``, for every such tick inside the row's length."""
        if isinstance(shift, bool) or not isinstance(shift, int):
            raise ArgumentError(
                "Targets.shifted_input", "not a number of ticks", expected="an int", got=repr(shift),
                fix="Targets.shifted_input(source, 1) for the next tick",
            )  # fmt: skip
        return ShiftedInput(source, shift)

    @staticmethod
    def port_drive(module: Any, port: str = "in") -> PortDrive:
        """The drive that arrives at an input port of `module`, at the emission tick."""
        _check_port("Targets.port_drive", port)
        return PortDrive(module, port)

    @staticmethod
    def port_output(module: Any, port: str = "out", shift: int = 0) -> PortOutput:
        """What an output port of `module` holds at tick ``t + shift``, for a shift of 0, 1, …"""
        _check_port("Targets.port_output", port)
        if isinstance(shift, bool) or not isinstance(shift, int) or shift < 0:
            raise ArgumentError(
                "Targets.port_output", "not a number of ticks to come", expected="0, 1, …", got=repr(shift),
                fix="an edge with delay= brings what was before",
            )  # fmt: skip
        return PortOutput(module, port, shift)


def _check_port(where: str, port: Any) -> None:
    if not isinstance(port, str):
        raise ArgumentError(where, "not the name of a port", expected="a string", got=repr(port), fix="port='in'")
