"""Monitors around losses: their numbers, their line, and that nothing is read before it is asked for."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from imprint import errors, functional, loss, monitors, propagators, signals

LabelMetrics = monitors.loss.LabelMetrics


def test_loss_and_accuracy_of_rows_a_sample_by_loops() -> None:
    watched = LabelMetrics("fc", loss.v9_input_target_max_all)
    sums, hits, count = 0.0, 0, 0
    for rows in (7, 3):
        h1, t1, t0 = (torch.randn(rows, 4) for _ in range(3))
        y = torch.randint(3, (rows,))
        value = watched(None, h1, t1, None, t0, y)
        torch.testing.assert_close(value, loss.v9_input_target_max_all(None, h1, t1, None, t0, y), rtol=0, atol=0)
        last = sum(int(y[max(range(rows), key=lambda j, i=i: float(h1[i] @ t1[j]))] == y[i]) for i in range(rows))
        sums, hits, count = sums + float(value) * rows, hits + last, count + rows
    values = watched.values()
    assert values["correct"] == hits and values["count"] == count == 10
    assert values["acc"] == pytest.approx(hits / 10) and values["acc_last"] == pytest.approx(last / 3)
    assert values["loss"] == pytest.approx(sums / 10) and values["loss_last"] == pytest.approx(float(value))
    line = f"[fc] Acc: {last / 3:.4f} ({hits / 10:.4f}, {hits}/10)  Loss: {float(value):.4f} ({sums / 10:.4f})"
    assert watched.metrics() == line
    watched.reset()
    assert watched.metrics() == "[fc] Acc: 0.0000 (0.0000, 0/0)  Loss: 0.0000 (0.0000)"


@pytest.mark.parametrize("value", [loss.v1_input_label_direct, loss.v9_input_target_max_all(rows="class")])
def test_class_rows_are_known_even_when_the_batch_is_as_large(value) -> None:
    y = torch.tensor([2, 2, 2])
    t1 = torch.eye(3)
    for watched, expected in ((LabelMetrics("k", value), 3), (LabelMetrics("b", lambda *six: six[1].sum()), 3)):
        watched(None, t1[y], t1, None, t1, y)
        assert watched.values()["correct"] == expected
    y = torch.tensor([2, 0, 1])  # as rows of samples, sample 0 would be nearest to sample 2
    watched, confused = LabelMetrics("k", value), LabelMetrics("b", lambda *six: six[1].sum())
    for monitor in (watched, confused):
        monitor(None, t1[y], t1, None, t1, y)
    assert watched.values()["correct"] == 3 and confused.values()["correct"] == 0


def test_contexts_are_compared_as_the_loss_compares_them() -> None:
    t1 = torch.tensor([[5.0, 0.0], [0.9, 0.8]])
    h1, y = torch.tensor([[1.0, 0.9], [1.0, 0.1]]), torch.tensor([1, 0])
    for similarity, expected in (("dot", 1), ("cosine", 2), ("l2", 1)):
        watched = LabelMetrics("fc", loss.v1_input_label_direct(similarity=similarity))
        watched(None, h1, t1, None, None, y)
        assert watched.values()["correct"] == expected, similarity


def test_one_hot_contexts_are_labels_and_what_is_none_is_refused() -> None:
    y = torch.tensor([0, 1, 1])
    h1 = torch.eye(3)
    a, b = LabelMetrics("a", loss.hebbian), LabelMetrics("b", loss.hebbian)
    a(None, h1, h1.roll(1, 0), None, h1, y)
    b(None, h1, h1.roll(1, 0), None, h1, torch.eye(2)[y])
    assert a.values() == b.values() and a.values()["correct"] == 1
    with pytest.raises(errors.LabelError, match="no labels"):
        a(None, h1, h1, None, h1, None)
    with pytest.raises(errors.ArgumentError, match="not callable"):
        LabelMetrics("c", None)


def test_nothing_is_read_from_the_device_before_it_is_asked_for() -> None:
    """Tensors on the meta device have no values: whatever would read one, fails."""
    y = torch.zeros(6, dtype=torch.long, device="meta")
    data = torch.zeros(6, 1, 8, 8, device="meta")
    project = nn.Linear(3, 64, device="meta")
    h1, t1 = (torch.zeros(6, 4, device="meta", requires_grad=True) for _ in range(2))
    for value in (
        loss.v9_input_target_max_all, loss.v14_input_target_max_rand, loss.v15_input_target_topk, loss.hebbian,
        loss.v9_input_target_max_all(similarity="l2"), loss.v9_input_target_max_all(similarity="cosine"),
        loss.v9_input_target_max_all(positives="labels"), loss.v15_input_target_topk(positives="labels"),
    ):  # fmt: skip
        watched = LabelMetrics("fc", value)
        watched(None, h1, t1, None, t1.detach(), y).backward()
        with pytest.raises(RuntimeError, match="meta"):
            watched.metrics()
    for value in (
        loss.v1_input_label_direct, loss.v9_input_target_max_all(rows="class"), loss.hebbian(rows="class"),
        loss.v14_input_target_max_rand(rows="class"), loss.v15_input_target_topk(rows="class"),
    ):  # fmt: skip
        LabelMetrics("fc", value)(None, h1, t1[:3], None, t1.detach()[:3], y).backward()
    module = nn.Sequential(
        signals.LabelNumberToOnehot(3), signals.DistinctBatchLabelsOnehot(),
        signals.ProjectionContext(project, (3,), (1, 8, 8)),
    )  # fmt: skip
    assert module((data, y))[1].shape == (3, 1, 8, 8)
    draw = nn.Sequential(signals.LabelNumberToOnehot(3), signals.LabelVectorToNumber(), signals.FixedDrawContext(2)).to(
        "meta"
    )
    assert draw((data, y))[1].shape == (6, 1, 8, 8)
    assert functional.nearest_context(h1, t1).shape == (6,)


def test_a_watched_loss_learns_like_the_bare_one_and_hides_no_parameters() -> None:
    class Head(loss.Loss):
        def __init__(self) -> None:
            super().__init__()
            self.read = nn.Linear(4, 3)

        def forward(self, sp_learn, h1, t1, h0, t0, y_onehot):
            return nn.functional.cross_entropy(self.read(h1), y_onehot)

    layer, head = nn.Linear(4, 4), Head()
    made = []
    for wrap in (lambda value: value, lambda value: LabelMetrics("fc", value)):
        unit, value = copy.deepcopy((layer, head))
        prop = propagators.Loss(unit, None, wrap(value))
        assert len(list(prop.parameters())) == 4
        prop.optimizer = torch.optim.SGD(prop.parameters(), lr=0.1)
        torch.manual_seed(1)
        for _ in range(3):
            prop((torch.randn(5, 4), torch.randn(5, 4), torch.arange(5) % 3))
        made.append(list(prop.parameters()))
    for a, b, start in zip(*made, [*layer.parameters(), *head.parameters()], strict=True):
        assert torch.equal(a, b) and not torch.equal(a, start)


def test_groups_read_and_reset_in_order_and_nest() -> None:
    class Calls(monitors.Monitor):
        def __init__(self, name: str) -> None:
            self.name = name
            self.reset()

        def reset(self) -> None:
            self.calls = 0

        def metrics(self) -> str:
            return f"[{self.name}] {self.calls}"

    inner, outer = monitors.Group(), monitors.Group()
    a, b = Calls("a"), Calls("b")
    assert outer.add(a) is a
    inner.add(b)
    outer.add(inner)
    a.calls, b.calls = 1, 2
    assert outer.metrics() == "[a] 1\n[b] 2"
    outer.reset()
    assert outer.metrics() == "[a] 0\n[b] 0"
    with pytest.raises(errors.DtypeError, match="no monitor"):
        outer.add(loss.hebbian)
    with pytest.raises(TypeError):
        monitors.Monitor()


def test_a_monitor_of_ones_own_around_a_loss() -> None:
    class Largest(monitors.loss.Loss):
        def reset(self) -> None:
            self.largest = torch.tensor(0.0)

        def metrics(self) -> str:
            return f"largest {float(self.largest):.2f}"

        def forward(self, sp_learn, h1, t1, h0, t0, y_onehot):
            self.largest = h1.detach().max()
            return self.loss(sp_learn, h1, t1, h0, t0, y_onehot)

    watched = Largest(loss.hebbian)
    watched.reset()
    unit = propagators.Loss(nn.Identity(), None, watched)
    unit((torch.tensor([[2.5]]), torch.tensor([[1.0]]), None))
    group = monitors.Group()
    group.add(watched)
    assert group.metrics() == "largest 2.50" and float(unit.last_loss) == -2.5
