"""What a rollout returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import UnknownNameError, did_you_mean

if TYPE_CHECKING:
    from .module import Module
    from .rollout import Rollout


class Result(Mapping[str, Tensor]):
    """Emissions by module name (its port ``out``) or ``module.port``: ``[B, T_emit, …]``; with ``keep="last"`` what the
    port holds at the end, ``[B, 1, …]``. It iterates over module names.
    """

    def __init__(self, run: Rollout, modules: Mapping[str, Module]) -> None:
        self._run, self._modules = run, modules

    def __getitem__(self, name: str) -> Tensor:
        key = name if "." in name else f"{name}.out"
        if key not in self._run.signals:
            known = [*self._modules, *(k for k in self._run.signals if ":" not in k)]
            raise UnknownNameError(
                "the rollout's result", f"unknown module or port {name!r}", fix=did_you_mean(name, known)
            )
        if self._run.keep == "last" or key not in self._run.kept:
            return self._run.signals[key].latest[:, None]
        return self._run.recorded(key)

    @property
    def rows(self) -> int:
        """Rows of the batch."""
        return self._run.rows

    def never_emitted(self, name: str) -> Tensor | None:
        """``[B]`` bool: rows that have ended before a module (or the one of a port) emitted; None where all did."""
        ticks = self._run.emission_ticks(name.split(".")[0])
        if not ticks:
            return torch.ones(self._run.rows, dtype=torch.bool, device=self._run.device)
        valid = self._run.valid_at(ticks[:1])
        return None if valid is None else ~valid[0]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name if "." in name else f"{name}.out") in self._run.signals

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)

    def __repr__(self) -> str:
        return f"{{{', '.join(f'{k!r}: {tuple(v.shape)}' for k, v in self.items())}}}"


def show(run: Rollout, modules: Mapping[str, Module]) -> None:
    """Let every module's ``state`` show what was recorded."""
    for name, module in modules.items():
        if run.keep == "last":
            module.state.show(None, None, run.recurrent(name))
            continue
        drive = None
        if run.keep == "all":
            drive = {p: _later(run, f"{name}.{p}:drive") for p in module.ports.inputs}
            if module.ports.group is not None:
                drive["in"] = _grouped(run, module)
        module.state.show(drive, {p: _later(run, f"{name}.{p}") for p in module.nodes}, run.recurrent(name))


def _later(run: Rollout, key: str) -> Callable[[], Tensor]:
    return lambda: run.recorded(key)


def _grouped(run: Rollout, module: Module) -> Callable[[], Tensor]:
    """The drive of a whole group: its sub-drives side by side, or their sum if they share units."""

    def make() -> Tensor:
        parts = [run.recorded(f"{module.name}.{p}:drive") for p in module.ports.inputs]
        assert module.ports.group is not None
        return torch.cat(parts, -1) if module.ports.group.layout == "disjoint" else sum(parts[1:], parts[0])

    return make
