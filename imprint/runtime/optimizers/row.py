"""One parameter of one optimizer, and its state."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...errors import StateError
from .maths import Maths, registry


@dataclass(eq=False)
class Row:
    """Where a parameter's numbers stand: in the vectors of ``Steps``, and in its optimizer.

    Attributes:
        index: its place in the vectors.
        place: which group of its optimizer, by number: loading a state makes the groups anew.
        spare: the state it will have if it steps; torch makes none before the first step.
    """

    index: int
    optimizer: torch.optim.Optimizer
    place: int
    param: Tensor
    spare: dict[str, Tensor] = field(default_factory=dict)

    @property
    def group(self) -> dict[str, Any]:
        """The settings."""
        return self.optimizer.param_groups[self.place]

    @property
    def maths(self) -> Maths:
        """How it moves."""
        return registry[type(self.optimizer)]

    @property
    def own(self) -> dict[str, Any]:
        """The optimizer's state of it; empty before the first step."""
        return self.optimizer.state.get(self.param) or {}

    @property
    def where(self) -> str:
        """For error messages."""
        return f"{type(self.optimizer).__name__}, parameter {self.index} of shape {tuple(self.param.shape)}"

    @torch.no_grad()
    def state(self) -> dict[str, Tensor]:
        """The state tensors of its shape: the optimizer's own, or zeros of which its first step will make its own."""
        own, names = self.own, self.maths.names(self.group)
        if all(own.get(name) is not None for name in names):
            return {name: own[name] for name in names}
        if tuple(self.spare) != names:
            self.spare = {name: torch.zeros_like(self.param, memory_format=torch.preserve_format) for name in names}
        return self.spare

    def check(self) -> None:
        """Refuse a state that the optimizer itself could not step with."""
        own, p = self.own, self.param
        missing = [name for name in self.maths.names(self.group) if own.get(name) is None]
        fix = "optimizer.load_state_dict of a state with the same settings, or a new optimizer"
        if self.maths.counts and own and (missing or own.get("step") is None):
            raise StateError(self.where, "its state lacks tensors", expected=missing or ["step"], got=[*own], fix=fix)
        for name, value in self.state().items():
            kind, right = (tuple(value.shape), value.dtype, value.device), (tuple(p.shape), p.dtype, p.device)
            if kind != right:
                raise StateError(self.where, f"its {name} does not fit it", expected=right, got=kind, fix=fix)

    @torch.no_grad()
    def keep(self, steps: float) -> None:
        """Tell the optimizer of steps that were made: the state becomes its own, with their count."""
        if not self.maths.counts and not self.state():
            return
        own = self.optimizer.state[self.param]
        if self.maths.counts and own.get("step") is None:
            on_device = self.group["capturable"] or self.group.get("fused")
            wide = torch.get_default_dtype() == torch.float64 and not self.group.get("fused")
            dtype, device = torch.float64 if wide else torch.float32, self.param.device if on_device else "cpu"
            own["step"] = torch.zeros((), dtype=dtype, device=device)
        own.update(self.state())
        self.spare = {}
        if self.maths.counts:
            own["step"].fill_(steps)
