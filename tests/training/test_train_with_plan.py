"""``train_graph(..., plan=)``: the numbers of a training by the graph's own engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import imprint
from imprint.errors import ArgumentError
from imprint.managers import attach
from imprint.training import train_graph

from references.graph_small import batch
from references.plan_runs import Pair, adam, close, compiled, small

BATCHES = [batch(seed=i) for i in range(3)]
METRIC = imprint.last_step_accuracy()


def ready() -> imprint.Graph:
    graph = small().to(torch.float64)
    torch.manual_seed(3)
    attach(graph, "local", optimizer=adam, scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5)).bind(batch())
    return graph


def train(graph: imprint.Graph, epochs: int = 2, **options: Any) -> Any:
    return train_graph(
        graph, BATCHES, epochs=epochs, seed=1, metric_fn=METRIC, val_dataset=BATCHES[:1], progress=False, **options
    )


def test_it_trains_as_the_graph_does() -> None:
    """Weights, optimizers, schedules and what is recorded of every epoch."""
    eager, graph = ready(), ready()
    plan = compiled(graph, batch())
    histories = train(eager), train(graph, plan=plan)
    Pair(eager, graph, plan).same_weights()
    for ours, theirs in zip(histories[1].epochs, histories[0].epochs, strict=True):
        for kind in ("train", "val"):
            for name, want in getattr(theirs, kind).items():
                close(getattr(ours, kind)[name], want, f"{kind} {name}")
    assert plan.backend.programs and graph.manager.steps == 6


def test_a_run_that_was_broken_off_goes_on(tmp_path: Path) -> None:
    """Where loaded states are captured anew."""
    whole = ready()
    train(whole)
    first = ready()
    train(first, epochs=1, plan=compiled(first, batch()), checkpoint=tmp_path)
    again = ready()
    train(again, plan=compiled(again, batch(), on_stale="recapture"), checkpoint=tmp_path)
    Pair(whole, again, None).same_weights()


def test_what_is_no_plan_of_this_graph_is_refused() -> None:
    graph, other = ready(), ready()
    for plan in (compiled(other, batch()), other, "inductor"):
        with pytest.raises(ArgumentError, match="no plan of this graph"):
            train(graph, plan=plan)
    alone = small()
    with pytest.raises(ArgumentError, match="without a manager"):
        train(alone, plan=compiled(alone, batch()))
