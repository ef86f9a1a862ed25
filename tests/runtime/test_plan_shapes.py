"""Batches with another number of rows than a plan was made for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from imprint import Auto, Graph, Module, Source, Targets, protos
from imprint.credit import ETrace, Unrolled
from imprint.errors import ArgumentError, LabelError, ShapeError

from references.graph_small import CLASSES, batch
from references.plan_runs import EMULATED, adam, close, pair, sgd, small, weights


@pytest.mark.parametrize("options", [{}, EMULATED], ids=["calls", "emulated"])
def test_each_number_of_rows_is_captured_by_itself(options: dict[str, Any]) -> None:
    both = pair(small, optimizer=adam, options=options)
    for i, rows in enumerate((4, 2, 5, 4)):
        both.roll(batch(rows=rows, seed=i))
    both.same_weights()


@pytest.mark.parametrize(
    ("learning", "options"),
    [
        ({}, EMULATED), ({"update": 2}, {}), ({"credit": ETrace("d_rtrl")}, {}), ({"credit": Unrolled()}, {}),
        ({"rule": "sigprop", "num_classes": CLASSES}, {}),
    ], ids=str,
)  # fmt: skip
def test_a_batch_that_is_filled_up_learns_as_it_is(learning: dict[str, Any], options: dict[str, Any]) -> None:
    """Outputs, states, losses, weights and optimizers are those of its own rows; and full batches come in between."""
    both = pair(small, options={**options, "on_shape": "pad"}, optimizer=adam, **learning)
    for i, rows in enumerate((4, 3, 4, 1)):
        out, theirs = both.roll(batch(rows=rows, seed=i), seed=i)
        assert theirs["head"].shape == out["head"].shape == (rows, 5, CLASSES)
        assert both.graph.run.rows == rows
    both.same_weights()


def test_rows_of_different_lengths_are_filled_up() -> None:
    both = pair(small, options={"on_shape": "pad"}, optimizer=sgd)
    for i, length in enumerate(([5, 3, 4, 2], [2, 4], [3, 5, 1])):
        both.roll(batch(rows=len(length), seed=i, length=length))
    both.same_weights()


def opened() -> Graph:
    """Gradients pass its edges."""
    return small().open_edges()


def test_losses_and_gradients_of_a_plain_graph_that_is_filled_up() -> None:
    both = pair(opened, None, options={"on_shape": "pad"})
    for i, rows in enumerate((4, 3)):
        both.roll(batch(rows=rows, seed=i))
        for run in (both.eager, both.plan):
            run.loss().backward()
    for (name, p), q in zip(both.eager.named_parameters(), both.graph.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            close(q.grad, p.grad, name)


def rate(view: Any) -> Tensor:
    """Looks at all rows at once."""
    return (view.h.mean(0) - 0.1).square().sum()


def with_function() -> Graph:
    graph = small(bind=False)
    graph["enc"].objectives.add(rate)
    return graph.bind(batch())


def with_batch_norm() -> Graph:
    torch.manual_seed(0)
    graph, src, head = Graph(), Source("x"), Module("head", protos.MLP([Auto, 4, Auto], norm="batch"))
    graph.connect(src["out"], head["in"])
    head.objectives.ce(target=Targets.batch_key("y"), num_classes=CLASSES)
    return graph.bind(batch())


@pytest.mark.parametrize(("make", "why"), [(with_batch_norm, "BatchNorm"), (with_function, "sees all rows")])
def test_what_sees_all_rows_is_not_filled_up(make: Any, why: str) -> None:
    """It is refused and nothing has moved; full batches run, and so does everything under ``"recapture"``."""
    both = pair(make, options={"on_shape": "pad"}, optimizer=sgd)
    both.roll(batch(seed=0))
    before = weights(both.graph)
    with pytest.raises(ArgumentError, match=why) as caught:
        both.plan.rollout(batch(rows=3, seed=1))
    assert "on_shape='recapture'" in str(caught.value)
    assert all(torch.equal(v, before[k]) for k, v in weights(both.graph).items())
    both.roll(batch(seed=2))
    both.same_weights()
    other = pair(make, optimizer=sgd)
    for i, rows in enumerate((4, 3)):
        other.roll(batch(rows=rows, seed=i))
    other.same_weights()


@pytest.mark.parametrize(("policy", "rows"), [("error", 3), ("error", 5), ("pad", 5)])
def test_other_numbers_of_rows_are_refused_where_asked_to(policy: str, rows: int) -> None:
    both = pair(small, options={"on_shape": policy}, optimizer=sgd)
    both.roll(batch(seed=0))
    with pytest.raises(ShapeError, match=r"captured for") as caught:
        both.plan.rollout(batch(rows=rows, seed=1))
    assert "on_shape='recapture'" in str(caught.value) and f"got:      {rows}" in str(caught.value)
    both.roll(batch(seed=2))
    both.same_weights()


def cases() -> dict[str, tuple[dict[str, Any], type[Exception]]]:
    """Batches that fit no graph."""
    return {
        "another width": (batch(width=3), ShapeError),
        "no input": ({"y": batch()["y"]}, Exception),
        "labels of other rows": ({**batch(), "y": torch.zeros(3, dtype=torch.int64)}, ShapeError),
        "a label too large": ({**batch(), "y": torch.full((4,), 9)}, LabelError),
        "no ticks": (batch(ticks=0), Exception),
    }


@pytest.mark.parametrize("name", sorted(cases()))
def test_a_batch_that_does_not_fit_is_refused_as_the_graph_refuses_it(name: str) -> None:
    both = pair(small, optimizer=sgd)
    both.roll(batch(seed=0))
    data, kind = cases()[name]
    said = []
    for run in (both.eager, both.plan):
        with pytest.raises(kind) as caught:
            run.rollout(data)
        said.append(str(caught.value))
    assert said[0] == said[1]
    both.roll(batch(seed=1))
    both.same_weights()


def test_lengths_alone_capture_nothing_twice() -> None:
    """Where a row ends is data; which batch size there is, is not."""
    both = pair(small, optimizer=sgd)
    counts = []
    for i, length in enumerate(([5, 3, 4, 2], [2, 5, 5, 4], [4, 4, 2, 5])):
        both.roll(batch(seed=i, length=length))
        counts.append(sum(len(p.captured) for some in both.plan.backend.programs.values() for p in some))
    assert counts[0] > 0 and counts[-1] <= counts[0] + 2  # ticks beyond some row's end have a due set of their own
