"""A graph in a training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..data import Batches
from ..data.batches import generators, move
from ..errors import ArgumentError, DataError
from ..graph import Graph, Result
from ..managers import GraphManager
from ..monitors.metric import Metric
from ..objectives import BatchKey
from ..runtime import Plan as RuntimePlan
from ..utils import same_random_state
from .global_loss import GlobalLoss, LossFn, scalar
from .history import Table
from .recipes import LastStep, LastStepAccuracy
from .subject import Subject

MetricFn = Callable[[Result, Mapping[str, Any]], Any]
WHOLE = "graph"
"""Name under which windows hold the numbers of the whole graph."""


class GraphSubject(Subject):
    """Trains a graph by its manager, or by one global loss.

    Args:
        graph: bound.
        manager: what learns.
        metric: ``metric(out, batch) -> float``, or None.
        val: validation data.
        val_loss: replaces the sum of all losses there.
        val_metric: replaces `metric` there.
        plan: runs what is learned from; the graph itself, without one.
    """

    where = "train_graph"

    def __init__(
        self, graph: Graph, manager: GraphManager | GlobalLoss, metric: MetricFn | None, val: Batches | None,
        val_loss: LossFn | None, val_metric: MetricFn | None, plan: RuntimePlan | None = None,
    ) -> None:  # fmt: skip
        self.graph, self.manager, self.metric = graph, manager, metric
        self.val, self.val_loss, self.val_metric = val, val_loss, val_metric or metric
        self.recent = Metric()
        self.runner = graph if plan is None else plan

    @property
    def probes(self) -> dict[str, Metric]:
        """The manager's, and the losses since the last table."""
        return {**self.manager.probes, "recent": self.recent}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        first = next(self.graph.parameters(), None)
        assert self.graph.known is not None
        return torch.device(self.graph.known["device"]) if first is None else first.device

    def start(self) -> None:
        """A graph that is in eval mode as a whole goes to training mode."""
        if not self.graph.training:
            self.graph.train()

    def learn(self, batch: Any) -> None:
        """One rollout."""
        batch = move(batch, self.device)
        if isinstance(self.manager, GlobalLoss):
            out, losses = self.manager.step(batch)
        else:
            keep = "last" if self.metric is None or isinstance(self.metric, LastStep) else "emissions"
            out = self.runner.rollout(batch, keep=keep)
            losses = self.graph.losses()
        if self.tally is None:
            self.tally = self.make_tally()
        total = torch.stack([loss.detach() for loss in losses.values()]).sum() if losses else None
        for sums, unit in ((self.tally, ""), (self.recent, WHOLE)):
            count(sums, unit, out, batch, total, self.metric)
        if isinstance(self.manager, GlobalLoss):
            for name, loss in losses.items():
                module, _, term = name.partition(".")
                self.recent.add(module if term else WHOLE, loss, column=term or name)

    def make_tally(self) -> Metric:
        """Loss and metric."""
        return Metric()

    def read(self) -> Table:
        """By group or module; the whole graph's under its own name."""
        table = self.recent.read()
        self.recent.reset()
        return {**self.manager.metrics(), **table}

    def validate(self, progress: bool) -> dict[str, float]:
        """Loss and metric over the validation data, each batch by its rows."""
        assert self.val is not None
        tally, clock, rolled = self.make_tally(), self.graph.clock.tick, self.graph.rolled
        training = [(m, m.training) for m in self.graph.modules()]
        self.graph.eval()
        try:
            with same_random_state(*generators(self.val.source)), torch.no_grad(), self._measured():
                for batch in tqdm(self.val.at(0), "validate", self.val.batches_per_epoch, leave=False,
                                  disable=not progress):  # fmt: skip
                    self._evaluate(tally, move(batch, self.device))
        finally:
            for module, mode in training:
                module.training = mode
            self.graph.clock.tick, self.graph.rolled = clock, rolled
        return tally.read().get("", {})

    def check_validation(self) -> None:
        """Before anything is learned: is there something to measure in the validation data?

        Raises:
            DataError: no loss and no metric is found there.
        """
        if self.val is None or self.val_loss is not None or self.val_metric is not None:
            return
        if isinstance(self.manager, GlobalLoss):
            return
        batch = self.val.peek()
        with self._measured():
            objectives = [m.objectives for m in self.graph.modules_by_name.values()]
            targets = [term.target for each in objectives for term in each]
        if any(each.params for each in objectives):
            return
        if not any(not isinstance(target, BatchKey) or target.key in batch for target in targets):
            raise DataError(
                "train_graph(val_dataset=)", "there is nothing to measure", expected="targets of a declared objective",
                got=sorted(map(str, batch)), fix="give labels with the validation data, val_loss_fn= or val_metric_fn=",
            )  # fmt: skip

    @contextmanager
    def _measured(self) -> Iterator[None]:
        """Where no module declares what it learns, what the rule has given is measured inside the block."""
        modules, filled = self.graph.modules_by_name, {}
        if isinstance(self.manager, GraphManager) and not any(m.objectives.has_data for m in modules.values()):
            filled = {k: term for k, term in self.manager.filled.items() if not term.objective.needs_context}
        owners = [(modules[key.split(".")[0]].objectives.terms, term) for key, term in filled.items()]
        for terms, term in owners:
            terms.append(term)
        try:
            yield
        finally:
            for terms, _ in reversed(owners):
                del terms[-1]

    def _evaluate(self, tally: Metric, batch: Mapping[str, Any]) -> None:
        out = self.graph.rollout(batch)
        total = None
        if self.val_loss is not None:
            total = scalar("val_loss_fn", self.val_loss(out, batch))
        else:
            global_loss = isinstance(self.manager, GlobalLoss)
            losses = self.manager.losses(out, batch) if global_loss else self.graph.losses()
            total = torch.stack(list(losses.values())).sum() if losses else None
        weigh = self.val_loss if isinstance(self.val_loss, LastStep) else None
        count(tally, "", out, batch, total, self.val_metric, weigh)


def count(
    sums: Metric, unit: str, out: Result, batch: Mapping[str, Any], loss: Tensor | None, metric: MetricFn | None,
    weigh: LastStep | None = None,
) -> None:  # fmt: skip
    """Add one batch, weighed by its rows (or the rows that `weigh` counts); nothing is read from the device."""
    rows: Any = out.rows
    if loss is not None:
        things = rows if weigh is None else weigh.count(out, batch)
        sums.add(unit, loss * things, things, column="loss")
    if isinstance(metric, LastStepAccuracy):
        sums.add(unit, *metric.hits(out, batch), column=metric.name)
    elif metric is not None:
        with torch.no_grad():
            sums.add(unit, number(metric(out, batch)) * rows, rows, column=getattr(metric, "name", "metric"))


def number(value: Any) -> Any:
    """A user's metric.

    Raises:
        ArgumentError: it is no number.
    """
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.detach().reshape(())
    if isinstance(value, (int, float)):
        return float(value)
    got = tuple(value.shape) if isinstance(value, Tensor) else repr(value)
    raise ArgumentError(
        "train_graph", "metric_fn did not return a number", expected="a float", got=got, fix="return value.item()"
    )
