"""Inference with an attached model: outputs, local scores, and how good they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..data.batches import Source, batches, generators, length, move, split
from ..errors import ArgumentError, LabelError, StateError, UnknownNameError, did_you_mean
from ..monitors.metric import Metric
from ..objectives import Labels, hits
from ..propagators.layer import primary
from ..utils import same_random_state
from .assignment import named
from .binding import require_bound
from .coverage import whole_calls
from .examine import classes_of
from .options import Inputs
from .place import follow
from .task import TaskLoss, TaskUnit

if TYPE_CHECKING:
    from .manager import Manager


def predict(manager: Manager, x: Any, by: str, layers: str | Iterable[str] | None) -> Any:
    """See :meth:`imprint.managers.Manager.predict`."""
    inputs = Inputs.of(x)
    inputs.check_not_empty()
    manager.phase.require_idle("manager.predict")
    with evaluating(manager.model), torch.no_grad():
        if by == "output":
            if layers is not None:
                raise ArgumentError(
                    "predict(by='output')", "layers= chooses units, and the model has one output", got=layers,
                    fix="predict(x, by='local', layers=...)",
                )  # fmt: skip
            if manager.context is not None and manager.bound is not None:
                inputs = manager.context.data(inputs)
            return manager.model(*inputs.args, **inputs.kwargs)
        if by != "local":
            raise UnknownNameError("predict", f"unknown by={by!r}", fix=did_you_mean(by, ["output", "local"]))
        scores = _local_scores(manager, inputs)
    chosen = list(scores) if layers is None else named(manager.units, [layers] if isinstance(layers, str) else layers)
    names = [n for n in chosen if n in scores]
    if not names:
        raise StateError(
            "predict(by='local')", "none of these units has scores for the classes",
            got=f"rules {sorted({a.rule.name for a in manager.units.values()})}",
            fix="predict(x) reads the model's output",
        )  # fmt: skip
    total = scores[names[0]]
    for name in names[1:]:
        total = total + scores[name]
    return total


def _local_scores(manager: Manager, inputs: Inputs) -> dict[str, Tensor]:
    require_bound(manager, "local scores")
    follow(manager)
    phase = manager.phase
    scores: dict[str, Tensor] = {}
    phase.scores = scores
    try:
        with whole_calls():
            if manager.context is not None:
                inputs.check_parts(manager.bound["parts"])  # type: ignore[index]
                # values have no context to be compared with
                made = None if manager.labels.num_classes is None else manager.context.candidates(inputs)
                if made is not None:
                    with phase.during("context"):
                        manager.model(*made.args, **made.kwargs)
                inputs = manager.context.data(inputs)
            with phase.during("score"):
                manager.model(*inputs.args, **inputs.kwargs)
        return scores
    finally:
        phase.scores = {}
        phase.forget()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode; afterwards each in the mode it had."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for m, mode in modes:
            m.training = mode


class Tally(Metric):
    """Loss and accuracy of a model's outputs, batch by batch, as if all batches were one.

    Rows without a label do not count. The mean over batches of different size, or with class weights, is that over all
    rows; an own task loss is taken to be a mean over labelled rows.

    Args:
        labels: how targets are read; a missing number of classes is read off the first output.
        loss: the task loss; see ``attach``.

    >>> tally = Tally(Labels(2))
    >>> tally.add_batch(torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1]))
    >>> tally.add_batch(torch.tensor([[9.0, 0.0]]), torch.tensor([-100]))
    >>> tally.value()
    {'accuracy': 0.5, 'loss': 0.6931471824645996}
    """

    name = "loss"

    def __init__(self, labels: Labels, loss: TaskLoss | None = None) -> None:
        super().__init__()
        self.labels: Labels = labels
        self.loss = loss

    def add_batch(self, output: Any, y: Tensor) -> None:
        """Add one batch; nothing is read from the device."""
        if self.labels.num_classes is None and not y.is_floating_point():
            self.labels = replace(self.labels, num_classes=classes_of(output, y))
        with torch.no_grad():
            value, count = TaskUnit(self.labels, self.loss).loss(output, y), self._count(y)
            self.add("", torch.where(count > 0, value * count, 0.0), count)
        if (counted := hits(primary(output, "the model's output"), y, self.labels)) is not None:
            self.add("", *counted, column="accuracy")

    def _count(self, y: Tensor) -> Tensor:
        """What the loss of one batch was divided by."""
        labels = self.labels
        if y.is_floating_point():
            return torch.full((), len(y), device=y.device)
        valid = y != labels.ignore_index
        if labels.weight is None or self.loss is not None:
            return valid.sum()
        return (labels.weight.to(y.device)[y.masked_fill(~valid, 0)] * valid).sum()

    def value(self) -> dict[str, float]:
        """``{"accuracy": ..., "loss": ...}``, without the accuracy for values; reading waits for the device."""
        return dict(sorted(self.read().get("", {}).items()))


def evaluate(manager: Manager, data: Source, batch_size: int, by: str, progress: bool) -> dict[str, float]:
    """See :meth:`imprint.managers.Manager.evaluate`."""
    source = batches(data, batch_size)
    device = next(manager.model.parameters()).device
    tally = Tally(manager.labels, manager.options.task_loss if by == "output" else None)
    with same_random_state(*generators(source)), torch.no_grad():
        for batch in tqdm(source, "evaluate", length(source), leave=False, disable=not progress):
            x, y = split(batch)
            if not isinstance(y, Tensor):
                raise LabelError(
                    "evaluate", "targets are missing", expected="batches (x, y)", got=type(y).__name__,
                    fix="manager.evaluate([(x, y), …]), or manager.predict(x) without targets",
                )  # fmt: skip
            tally.add_batch(predict(manager, move(x, device), by, None), move(y, device))
    value = tally.value()
    if not value:
        raise LabelError(
            "evaluate", "no row has a label", expected="at least one row with a label", fix="check the data"
        )
    return value
