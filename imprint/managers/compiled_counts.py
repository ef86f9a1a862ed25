"""Counts of steps, kept in the optimizers after every compiled step, and read only where somebody else moved them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..runtime.optimizers import Steps

Marks = tuple[Any, ...]


class Counts:
    """Calls ``Steps.load`` and ``Steps.store`` where they are needed, as both look at every parameter.

    Args:
        steps: of all optimizers of a manager.
    """

    def __init__(self, steps: Steps) -> None:
        self.steps = steps
        self.settings: Marks = ()
        self.known: Marks = ()

    def load(self, anew: bool) -> None:
        """Before a step: read learning rates and counts, unless they are as after the last one.

        Args:
            anew: read them anyway: the step shall be asked afterwards whose counts it moved.
        """
        settings, known = settings_of(self.steps.optimizers), _marks(self.steps.optimizers)
        if anew or settings != self.settings or known != self.known:
            self.known = ()  # until the step is through
            self.steps.load()
            self.settings = settings

    def store(self, counted: list[Tensor] | None, ok: bool) -> list[Tensor]:
        """After a step: count it.

        Args:
            counted: what the same captured step returned here before; None the first time.
            ok: it went through.
        """
        if counted is not None and ok and self.known:
            if counted:
                torch._foreach_add_(counted, 1.0)
        else:
            before = {id(v): v._version for v in _counts(self.steps.optimizers)}
            self.steps.store()
            counted = [v for v in _counts(self.steps.optimizers) if before.get(id(v)) != v._version]
        self.known = _marks(self.steps.optimizers) if ok else ()
        return counted


def settings_of(optimizers: list[Optimizer]) -> Marks:
    """What is set of each, learning rates among it; tensors by identity and version."""
    return tuple([_setting(v) for o in optimizers for g in o.param_groups for k, v in g.items() if k != "params"])


def _setting(v: Any) -> Any:
    return (id(v), v._version) if isinstance(v, Tensor) else tuple(v) if isinstance(v, list) else v


def _marks(optimizers: list[Optimizer]) -> Marks:
    """Changes if a state is loaded, or a step is taken elsewhere."""
    found: list[Any] = []
    for o in optimizers:
        for own in o.state.values():
            for name, v in own.items():
                found.append((id(v), v._version) if name == "step" and isinstance(v, Tensor) else id(v))
    return tuple(found)


def _counts(optimizers: list[Optimizer]) -> list[Tensor]:
    return [v for o in optimizers for own in o.state.values() if isinstance(v := own.get("step"), Tensor)]
