"""What lies outside the units and is reached from the model's output: it learns from the task loss."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_flatten

from ..credit import Params
from ..errors import ArgumentError, ShapeError
from ..objectives import Labels, Target
from ..propagators import Propagator
from ..propagators.layer import primary

TaskLoss = Callable[[Tensor, Tensor], Tensor]


class TaskUnit:
    """The model's output as a unit: its loss is the task's, its parameters are those no other unit owns.

    Args:
        labels: how targets are read.
        loss: ``loss(output, y) -> scalar``; cross entropy for labels and mean square error for values by default.
    """

    def __init__(self, labels: Labels, loss: TaskLoss | None = None) -> None:
        self.labels, self.own_loss = labels, loss

    def loss(self, output: object, y: Tensor) -> Tensor:
        """The task loss of the model's output."""
        if self.own_loss is not None:
            loss = self.own_loss(output, y)  # type: ignore[arg-type]
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                raise ShapeError(
                    "task_loss=", "it returns no scalar", expected="a tensor with one number, with its graph",
                    got=tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__,
                    fix="take the mean over the batch",
                )  # fmt: skip
            return loss
        out = primary(output, "the model's output")
        if self.labels.num_classes is not None:
            return self.labels.cross_entropy(out, y)
        if out.shape != y.shape:
            raise ShapeError(
                "the task loss", "output and values differ in shape", expected=tuple(out.shape), got=tuple(y.shape),
                fix="reshape the targets, or pass task_loss=",
            )  # fmt: skip
        return F.mse_loss(out, y.to(out.dtype))

    def scores(self, out: object, x: object, y: Target) -> Tensor | None:
        """Logits, if the output is ``[B, classes]``."""
        v = primary(out, "the model's output").detach()
        return v if self.labels.num_classes is not None and v.dim() == 2 else None


def learn_from_task(task: Propagator, others: list[Propagator], output: object, y: Tensor) -> None:
    """Differentiate the task loss as far as the units' detached outputs, and share the gradient out.

    `task` and `others` (the units without boundary) each get their own parameters' part; nothing is stepped yet.
    """
    members = [prop for prop in (task, *others) if prop.optimizers]
    params: Params = {}
    for prop in members:
        params |= {k: p for k, p in prop.params.items() if p.requires_grad}
    if not params:
        return
    unit = task.unit
    assert isinstance(unit, TaskUnit)
    grads, loss, _ = task.diff(lambda p: (with_graph(unit.loss(output, y), output), ()), params)
    task.check(loss)
    for prop in members:
        prop.receive({k: grads[k] for k in prop.params if k in grads})
    for probe in task.probes:
        probe.learned(task, None, output, Target(y), loss)


def with_graph(loss: Tensor, output: object) -> Tensor:
    """The loss, unless it lost the graph that the output has: nothing could learn from it."""
    if not loss.requires_grad and any(isinstance(v, Tensor) and v.requires_grad for v in tree_flatten(output)[0]):
        raise ArgumentError(
            "task_loss=", "it returns a loss without a graph, from which nothing can learn",
            expected="a tensor with one number, with its graph", got="requires_grad=False",
            fix="leave out detach(), item(), numpy() and torch.no_grad() in task_loss",
        )  # fmt: skip
    return loss
