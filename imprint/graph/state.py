"""What a module shows of the last rollout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from ..errors import StateError, UnknownNameError, did_you_mean

Made = dict[str, Callable[[], Tensor]]


class Recorded(Mapping[str, Tensor]):
    """Tensors by port, stacked when they are first read; an unknown port is an error with near misses."""

    def __init__(self, where: str, made: Made) -> None:
        self._where, self._made = where, made
        self._read: dict[str, Tensor] = {}

    def __getitem__(self, port: str) -> Tensor:
        if port not in self._made:
            raise UnknownNameError(
                self._where, f"nothing was recorded for {port!r}", fix=did_you_mean(port, self._made)
            )
        if port not in self._read:
            self._read[port] = self._made[port]()
        return self._read[port]

    def __contains__(self, port: object) -> bool:
        return port in self._made

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)

    def __repr__(self) -> str:
        return f"{{{', '.join(f'{k!r}: {tuple(v.shape)}' for k, v in self.items())}}}"


class ModuleState:
    """State of one module; a copy or a pickle of it is empty.

    Attributes:
        input_drive: ``{port: [B, T, D_port]}`` at the ticks it stepped; a group also as ``"in"``.
        output: ``{port: [B, T_emit, D_port]}``, its emissions.
        recurrent: the proto's state after the last tick; ``()`` of protos without one.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._drive: Recorded | None = None
        self._output: Recorded | None = None
        self.recurrent: Any = None

    def show(self, drive: Made | None, output: Made | None, recurrent: Any) -> None:
        """Take what a rollout recorded."""
        self._drive = None if drive is None else Recorded(f"module {self._name!r}, state.input_drive", drive)
        self._output = None if output is None else Recorded(f"module {self._name!r}, state.output", output)
        self.recurrent = recurrent

    @property
    def input_drive(self) -> Recorded:
        """Drives of the last rollout."""
        return self._known(self._drive, "input_drive", "graph.rollout(batch, keep='all')")

    @property
    def output(self) -> Recorded:
        """Emissions of the last rollout."""
        return self._known(self._output, "output", "graph.rollout(batch)")

    def _known(self, recorded: Recorded | None, what: str, fix: str) -> Recorded:
        if recorded is None:
            raise StateError(f"module {self._name!r}, state.{what}", "nothing was recorded", fix=fix)
        return recorded

    def __reduce__(self) -> tuple[type[ModuleState], tuple[str]]:
        return ModuleState, (self._name,)
