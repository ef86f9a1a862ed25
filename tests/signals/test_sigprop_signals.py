"""Signals as the first link of a chain: shapes, freezing, dtypes, regression, one channel, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from imprint import errors, functional, loss, models, propagators, signals


def classes(distinct: bool, *generator: nn.Module) -> nn.Sequential:
    rows = [signals.DistinctBatchLabelsOnehot()] if distinct else []
    return nn.Sequential(signals.LabelNumberToOnehot(3), *rows, *generator)


def test_a_projection_by_hand() -> None:
    project, first = nn.Linear(3, 12, bias=False), nn.Conv2d(1, 3, 1)
    x, y = torch.randn(5, 1, 2, 2), torch.tensor([0, 2, 1, 1, 0])
    h1, t1, h0, t0 = classes(False, signals.ProjectionContextInput(project, first, (3,), (3, 2, 2)))((x, y))
    torch.testing.assert_close(t1, project.weight.T[y].view(5, 3, 2, 2))
    torch.testing.assert_close(h1, first(x))
    assert h0 is x and torch.equal(t0, torch.eye(3)[y])  # the formatted context
    h1, t1, h0, t0 = classes(False, signals.ProjectionContext(nn.Linear(3, 4), (3,), (1, 2, 2)))((x, y))
    assert h1 is x and t1.shape == x.shape


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_distinct_rows_are_one_a_class_for_any_batch(batch: int) -> None:
    project = nn.Linear(3, 4)
    module = classes(True, signals.ProjectionContext(project, (3,), (4,)))
    h1, t1, _, t0 = module((torch.randn(batch, 4), torch.zeros(batch, dtype=torch.long)))
    assert torch.equal(t0, torch.eye(3)) and len(h1) == batch
    torch.testing.assert_close(t1, project(torch.eye(3)))


def test_numbers_go_round_through_the_formatters() -> None:
    y = torch.tensor([2, 0, 1, 1])
    module = nn.Sequential(signals.LabelNumberToOnehot(3), signals.LabelVectorToNumber(), signals.FixedDrawContext(1))
    x = torch.zeros(4, 1, 7, 7)
    _, t1, _, t0 = module((x, y))
    assert t0.flatten().tolist() == y.tolist()
    assert torch.equal(t1[:, 0], functional.digit_glyphs()[y])
    module = nn.Sequential(signals.LabelNumberToOnehot(3), signals.DistinctBatchLabels(), signals.FixedDrawContext(1))
    assert torch.equal(module((x, y))[1][:, 0], functional.digit_glyphs()[:3])


def test_fixed_freezes_and_a_fixed_signal_stays_as_it_is() -> None:
    context, first = nn.Linear(3, 4), nn.Linear(4, 4)
    generator = signals.ProjectionContextInput(context, first, (3,), (4,), fixed=True)
    assert not any(p.requires_grad for p in generator.parameters())
    learned = signals.ProjectionContext(nn.Linear(3, 4), (3,), (4,))
    assert all(p.requires_grad for p in learned.parameters())
    for module in (generator, learned):
        prop = propagators.signals.Loss(
            classes(False, module), torch.optim.Adam(module.parameters(), lr=0.1), loss.v9_input_target_max_all
        )
        before = [p.detach().clone() for p in module.parameters()]
        prop((torch.randn(6, 4), torch.arange(6) % 3, torch.arange(6) % 3))
        moved = any(not torch.equal(a, b) for a, b in zip(module.parameters(), before, strict=True))
        assert moved == (module is learned)


def test_one_hot_rows_take_the_dtype_of_the_data() -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        module = classes(False, signals.ProjectionContext(nn.Linear(3, 4).to(dtype), (3,), (4,)))
        assert module((torch.zeros(2, 4, dtype=dtype), torch.tensor([0, 1])))[1].dtype == dtype
    onehot = signals.LabelNumberToOnehot(3)((torch.zeros(2, 4, dtype=torch.long), torch.tensor([0, 1])))[1]
    assert onehot.dtype == torch.get_default_dtype()
    for formatter in (
        signals.DistinctBatchLabelsOnehot(),
        signals.DistinctBatchLabels(),
        signals.LabelVectorToNumber(),
    ):
        assert formatter((None, torch.zeros(4, 3, dtype=torch.float64)))[1].dtype == torch.float64


@pytest.mark.parametrize("column", [False, True])
def test_a_value_to_regress_is_learned_by_a_chain(column: bool) -> None:
    """The context of a sample is its value; by distance each is its own positive, and the nearest context tells it."""
    torch.manual_seed(0)
    value = loss.v9_input_target_max_all(similarity="l2")
    generator = signals.ProjectionContext(nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 2)), (1,), (2,))
    adam = lambda m: torch.optim.Adam(m.parameters(), lr=0.02)
    signal = propagators.signals.Loss(generator, adam(generator), value)
    layer = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 16))
    chain = propagators.Loss(layer, adam(layer), value)
    grid = torch.linspace(-1, 1, 21)

    def error() -> float:
        x = torch.rand(200, 2) * 2 - 1
        with propagators.no_learning():
            h, t = signal((x, grid[:, None] if column else grid, None))
            h, t, _ = chain((h, t, None))
        found = grid[functional.nearest_context(h, t, similarity="l2")]
        return float((found - x.mean(1)).abs().mean())

    before = error()
    for _ in range(300):
        x = torch.rand(64, 2) * 2 - 1
        y = x.mean(1, keepdim=column)
        h, t = signal((x, y, y))
        chain((h, t, y))
    assert error() < 0.1 < 0.3 < before


def test_nearest_context_predicts_without_a_classifier() -> None:
    """The class contexts run through the trained chain beside the data."""
    torch.manual_seed(0)
    centres = torch.randn(3, 8) * 2
    module = classes(True, signals.ProjectionContext(nn.Linear(3, 8), (3,), (8,)))
    adam = lambda m: torch.optim.Adam(m.parameters(), lr=0.01)
    signal = propagators.signals.Loss(module, adam(module), loss.v1_input_label_direct)
    units = [nn.Sequential(nn.Linear(8, 16), nn.Tanh()), nn.Sequential(nn.Linear(16, 16), nn.Tanh())]
    chain = nn.Sequential(*(propagators.Loss(u, adam(u), loss.v1_input_label_direct) for u in units))

    def accuracy() -> float:
        y = torch.randint(3, (200,))
        x = centres[y] + torch.randn(200, 8)
        every = torch.arange(3)
        with propagators.no_learning():
            h, t = signal((x, every, every))
            h, t, _ = chain((h, t, every))
        assert len(h) == 200 and len(t) == 3
        return float((functional.nearest_context(h, t) == y).float().mean())

    before = accuracy()
    for _ in range(100):
        y = torch.randint(3, (32,))
        models.Forward(chain, signal)(centres[y] + torch.randn(32, 8), y)
    assert accuracy() > 0.95 > 0.8 > before


def test_what_does_not_fit_is_refused() -> None:
    x, y = torch.randn(5, 4), torch.zeros(5, dtype=torch.long)
    with pytest.raises(errors.DtypeError, match="not floating"):
        signals.ProjectionContext(nn.Linear(3, 4), (3,), (4,))((x, y))
    with pytest.raises(errors.ShapeError, match="input shape"):
        signals.ProjectionContext(nn.Linear(3, 4), (3,), (4,))((x, torch.eye(4)))
    with pytest.raises(errors.ShapeError, match="output shape"):
        signals.ProjectionContext(nn.Linear(3, 4), (3,), (2, 4))((x, torch.eye(3)))
    with pytest.raises(errors.ShapeError, match="input's projection"):
        signals.ProjectionContextInput(nn.Linear(3, 4), nn.Linear(4, 5), (3,), (4,))((x, torch.eye(3)))
    with pytest.raises(errors.ShapeError, match="negative"):
        signals.ProjectionContext(nn.Linear(3, 4), (3,), (-4,))
    for formatter in (
        signals.DistinctBatchLabelsOnehot(),
        signals.DistinctBatchLabels(),
        signals.LabelVectorToNumber(),
    ):
        with pytest.raises(errors.LabelError, match="LabelNumberToOnehot"):
            formatter((x, y))


def test_they_say_what_they_are() -> None:
    shown = repr(classes(True, signals.ProjectionContext(nn.Linear(3, 4), [3], [2, 2]), signals.FixedDrawContext(2)))
    for words in ("LabelNumberToOnehot(3)", "DistinctBatchLabelsOnehot()", "(3,) -> (2, 2)", "places=2"):
        assert words in shown
