"""What is measured of a run beside its accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter, process_time
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ..data.batches import Samples
from ..functional.pooling import pool_features
from ..managers import Manager
from ..monitors import Metric
from ..monitors.metrics.alignment import Alignment
from ..propagators.layer import primary
from ..propagators.probe import Learner

ROWS, FEATURES = 5000, 1024
"""Of the probe: training samples it is fitted to, and features of a unit it reads."""


def cosine_every(steps: int) -> int:
    """Steps between two comparisons of gradients: some ten an epoch of `steps`.

    >>> cosine_every(469), cosine_every(5)
    (46, 1)
    """
    return max(1, steps // 10)


@dataclass(frozen=True)
class Time:
    """Seconds by the clock on the wall, and seconds of the processor in this process, all threads together.

    Other programs make the first ones longer, and hardly the second.
    """

    wall: float = 0.0
    processor: float = 0.0

    @classmethod
    def now(cls) -> Time:
        """Both, from an arbitrary start."""
        return cls(perf_counter(), process_time())

    def __add__(self, other: Time) -> Time:
        return Time(self.wall + other.wall, self.processor + other.processor)

    def __sub__(self, other: Time) -> Time:
        return Time(self.wall - other.wall, self.processor - other.processor)


class Cosine(Alignment):
    r"""Mean cosine between a unit's gradient and backpropagation's of the plain task loss, whatever it is trained by.

    Args:
        loss: ``f(output, y)``, the plain task loss.
        every: measure one update in so many.

    Attributes:
        took: what measuring has taken since it was last asked.
    """

    name = "cosine"

    def __init__(self, loss: Callable[[Any, Tensor], Tensor], every: int) -> None:
        super().__init__(every)
        self.loss, self.took = loss, Time()

    def started(self, learner: Learner, x: Any, y: Tensor | None) -> None:
        """As the monitor ``"alignment"``, with the plain loss, and with an eye on the clock."""
        start = Time.now()
        seen: Any = SimpleNamespace(
            model=learner.model, labels=learner.labels, steps=learner.steps, gathered=learner.gathered,
            task_loss=self.loss,
        )  # fmt: skip
        super().started(seen, x, y)
        _wait(y)
        self.took += Time.now() - start

    def spent(self) -> Time:
        """What it took, which starts at zero again."""
        took, self.took = self.took, Time()
        return took


class Clock(Metric):
    """Mean seconds of a learning step, without what :class:`Cosine` takes: columns of ``"task"``."""

    name = "seconds"

    def tell(self, took: Time) -> None:
        """One step more."""
        self.add("task", took.wall, column="seconds")
        self.add("task", took.processor, column="processor")


class Timed(Samples):
    """Samples in memory, shuffled by a generator, that time whoever learns from them.

    Args:
        x: samples.
        y: their labels.
        batch_size: samples of a batch.
        seed: of the order.
        clock: is told the seconds of each step.
        cosine: its seconds do not count.

    >>> clock = Clock()
    >>> rows = Timed(torch.arange(3.0)[:, None], torch.arange(3), 2, 0, clock, None)
    >>> [len(y) for x, y in rows], list(clock.read()), rows.generator is not None
    ([2, 1], ['task'], True)
    """

    def __init__(self, x: Tensor, y: Tensor, batch_size: int, seed: int, clock: Clock, cosine: Cosine | None) -> None:
        super().__init__(x, y, batch_size, torch.Generator().manual_seed(seed))
        self.clock, self.cosine = clock, cosine

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        for batch in super().__iter__():
            start = Time.now()
            yield batch
            _wait(batch[1])
            self.clock.tell(Time.now() - start - (self.cosine.spent() if self.cosine else Time()))


def _wait(y: Tensor | None) -> None:
    if y is not None and y.is_cuda:
        torch.cuda.synchronize(y.device)


def probe_layers(
    manager: Manager, units: list[str], train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: int,
    channels_last: bool = False,
) -> dict[str, float]:  # fmt: skip
    """Test accuracy of a linear readout of each unit's output, the same for all rules.

    Outputs are those of inference, average-pooled to at most 1024 features; see :func:`ridge_accuracy`.

    Args:
        manager: of a trained model.
        units: paths of its units.
        train: what the readout is fitted to.
        test: what is classified.
        classes: how many there are.
        channels_last: units put out tokens.
    """
    here = outputs(manager, units, train[0], channels_last)
    there = outputs(manager, units, test[0], channels_last)
    return {u: ridge_accuracy((here[u], train[1]), (there[u], test[1]), classes) for u in units}


@torch.no_grad()
def outputs(manager: Manager, units: list[str], x: Tensor, channels_last: bool, batch: int = 500) -> dict[str, Tensor]:
    """``[N, D]`` of every unit, in eval mode."""
    found: dict[str, list[Tensor]] = {unit: [] for unit in units}

    def hear(unit: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            found[unit].append(pool_features(primary(out, unit), FEATURES, channels_last))

        return hook

    hooks = [manager.model.get_submodule(unit).register_forward_hook(hear(unit)) for unit in units]
    try:
        for rows in x.split(batch):
            manager.predict(rows)
    finally:
        for hook in hooks:
            hook.remove()
    return {unit: torch.cat(parts) for unit, parts in found.items()}


def ridge_accuracy(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: int) -> float:
    r"""Accuracy of ridge regression onto one-hot labels: :math:`W = (X^\top X + 0.01 N)^{-1} X^\top Y`, in double
    precision, on features of mean 0 and standard deviation 1. Rows without a label (-100) have no part in it.

    >>> x, y = torch.tensor([[0.0], [1.0], [2.0], [9.0]]), torch.tensor([0, 0, 1, 1])
    >>> ridge_accuracy((x, y), (torch.tensor([[1.0], [8.0]]), torch.tensor([0, 0])), 2)
    0.5
    """
    (x, y), (x_test, y_test) = ((h[y >= 0].double(), y[y >= 0]) for h, y in (train, test))
    mean, std = x.mean(0), x.std(0, correction=0).clamp_min(1e-6)
    x, x_test = (x - mean) / std, (x_test - mean) / std
    wanted = nn.functional.one_hot(y, classes).double()
    bias = wanted.mean(0)
    gram = x.T @ x + 0.01 * len(x) * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    weight = torch.linalg.solve(gram, x.T @ (wanted - bias))
    return ((x_test @ weight + bias).argmax(1) == y_test).double().mean().item()
