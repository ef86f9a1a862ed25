"""What attach was asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.utils._pytree import tree_flatten

from ..credit import Params
from ..errors import ArgumentError, DtypeError, ShapeError
from ..objectives import Labels
from ..propagators.propagator import Propagator
from ..rules import Rule
from .schedules import SchedulerBuilder, build_scheduler
from .task import TaskLoss

OptimizerBuilder = Callable[[list[Tensor]], "Optimizer | None"]


@dataclass
class Options:
    """Choices that hold for all units of a model; see :func:`imprint.managers.attach`."""

    labels: Labels = field(default_factory=Labels)
    optimizer: OptimizerBuilder | None = None
    scheduler: SchedulerBuilder | None = None
    grad_clip: float | None = None
    left_out: set[str] = field(default_factory=set)
    task_loss: TaskLoss | None = None
    strict: bool = True
    accumulate: int = 1
    signal: nn.Module | None = None
    context_at: str | None = None
    update: str = "immediate"
    scaler: GradScaler | None = None

    def equip(self, prop: Propagator, params: Params, rule: Rule, task: bool = False) -> list[Any]:
        """Give `prop` its parameters, optimizer and clipping; returns its schedulers. Does it learn from the `task`?

        Raises:
            ArgumentError: a builder returned something that cannot step one unit.
        """
        prop.params, prop.grad_clip = params, self.grad_clip
        learned = [p for p in params.values() if p.requires_grad]
        builder = self.optimizer or (rule.task_optimizer if task else rule.optimizer)
        made = build_optimizer(f"optimizer= of unit {prop.name!r}", builder, learned)
        if made is None:
            prop.optimizers = []
            return []
        prop.optimizers = [made]
        return build_scheduler(f"scheduler= of unit {prop.name!r}", self.scheduler, made)


def build_optimizer(where: str, builder: OptimizerBuilder, learned: list[Tensor]) -> Optimizer | None:
    """What `builder` makes of the parameters of one unit; None if it has none or shall not learn.

    Raises:
        ArgumentError: it returned something that cannot step one unit.
    """
    made = builder(learned) if learned else None
    if made is None:
        return None
    if not isinstance(made, Optimizer) or isinstance(made, torch.optim.LBFGS):
        raise ArgumentError(
            where, "not an optimizer that steps without a closure",
            expected="an Optimizer, or None", got=type(made).__name__,
            fix="optimizer=lambda params: torch.optim.Adam(params, 5e-4)",
        )  # fmt: skip
    own = {id(p) for p in learned}
    if any(id(p) not in own for g in made.param_groups for p in g["params"]):
        raise ArgumentError(
            where, "it moves parameters of other units",
            fix="use the list the builder is called with: lambda params: torch.optim.Adam(params, 5e-4)",
        )  # fmt: skip
    return made


@dataclass(frozen=True)
class Inputs:
    """Arguments of one forward pass."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @staticmethod
    def of(x: Any) -> Inputs:
        """A tensor, a tuple of arguments, or a dict of keyword arguments.

        Raises:
            DtypeError: x holds no tensor, or is a list.
        """
        # a dict is ordered by name, so that its parts are told apart whatever order they are given in
        inputs = (
            Inputs((), dict(sorted(x.items())))
            if isinstance(x, dict)
            else Inputs(x if isinstance(x, tuple) else (x,), {})
        )
        if not any(isinstance(v, Tensor) for v in inputs.leaves()):
            raise DtypeError(
                "the input", "it holds no tensor", expected="a tensor, a tuple or a dict of tensors",
                got=type(x).__name__, fix="torch.as_tensor(x)",
            )  # fmt: skip
        if isinstance(x, list):
            raise DtypeError(
                "the input", "it is a list, which could mean several arguments or one",
                expected="a tensor, a tuple of arguments or a dict of keyword arguments", got=f"a list of {len(x)}",
                fix="tuple(x) for several arguments; (x,) for a model that takes a list",
            )  # fmt: skip
        return inputs

    def leaves(self) -> list[Any]:
        """All arguments, flat."""
        return tree_flatten((self.args, self.kwargs))[0]

    def check_rows(self, rows: int, dims: list[int | None] | None) -> None:
        """Refuse inputs without `rows` samples along their batch dimensions `dims`; unknown, any will do."""
        leaves = self.leaves()
        if dims is None or len(dims) != len(leaves):
            dims = [None] * len(leaves)
        tensors = [(v, d) for v, d in zip(leaves, dims, strict=True) if isinstance(v, Tensor)]
        known = [v.shape[d] if d < v.dim() else None for v, d in tensors if d is not None]
        if any(n != rows for n in known) if known else not any(rows in v.shape for v, _ in tensors):
            raise ShapeError(
                "the batch", "inputs and targets differ in their number of samples",
                expected=f"{rows} samples, as in y", got=[tuple(v.shape) for v, _ in tensors],
                fix="give one target a sample",
            )  # fmt: skip

    def parts(self) -> list[bool]:
        """Of all arguments, flat: which are tensors?"""
        return [isinstance(v, Tensor) for v in self.leaves()]

    def check_parts(self, bound: list[bool]) -> None:
        """Refuse inputs with other parts than those that context inputs were made for."""
        if self.parts() != list(bound):
            raise ShapeError(
                "the batch", "it has other parts than what the model was bound with, and the context has none for them",
                expected=f"{len(bound)} arguments, {sum(bound)} of them tensors",
                got=[tuple(v.shape) if isinstance(v, Tensor) else v for v in self.leaves()],
                fix="give the same arguments in every step, a mask that hides nothing for example",
            )  # fmt: skip

    def check_not_empty(self) -> None:
        """Refuse an empty batch."""
        shapes = [tuple(v.shape) for v in self.leaves() if isinstance(v, Tensor)]
        if any(0 in shape for shape in shapes):
            raise ShapeError(
                "the batch", "it is empty", expected="at least one sample", got=shapes, fix="leave empty batches out"
            )


def check_target(y: Tensor, labels: Labels, bound: tuple[int, ...]) -> None:
    """Refuse targets of another shape than those at bind; how many labels a sample has may differ, not whether."""
    own = () if labels.soft(y) else tuple(y.shape[1:])
    if len(own) != len(bound) or (labels.num_classes is None and own != bound):
        column = "y.argmax(1) turns one-hot rows" if own == (labels.num_classes,) else "y.flatten() turns a column"
        raise ShapeError(
            "the targets", "they have another shape than those it was bound with",
            expected=("batch", *bound), got=tuple(y.shape),
            fix=f"{column} into labels; else attach anew for other targets",
        )  # fmt: skip
