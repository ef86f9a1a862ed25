"""Similarities, positives and prediction by nearest context, against loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from imprint import errors
from imprint import functional as F

from references import sigprop as reference

sizes = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)


@given(shape=sizes, samples=st.integers(1, 4), rows=st.integers(1, 4), temperature=st.sampled_from([1.0, 0.1, 3.0]))
def test_logits_equal_the_loops_for_any_shape(
    shape: tuple[int, ...], samples: int, rows: int, temperature: float
) -> None:
    h, t = torch.randn(samples, *shape).double(), torch.randn(rows, *shape).double()
    positions = max(1, torch.Size(shape[1:]).numel())
    assert F.positions(h) == positions
    for i in range(samples):
        for j in range(rows):
            dot, a, b = reference.similarity(h[i], t[j]), h[i].flatten(), t[j].flatten()
            wanted = {"dot": dot, "cosine": a @ b / (a.norm() * b.norm()), "l2": -(a - b).square().sum() / positions}
            for kind, value in wanted.items():
                found = F.similarity_logits(h, t, kind, temperature)
                assert found.shape == (samples, rows)
                torch.testing.assert_close(found[i, j], value / temperature)


@pytest.mark.parametrize("kind", ["dot", "cosine", "l2"])
def test_pairs_and_targets_are_diagonal_and_square_of_the_same(kind: str) -> None:
    h, t = torch.randn(5, 3, 2).double(), torch.randn(5, 3, 2).double()
    torch.testing.assert_close(F.paired_similarity(h, t, kind), F.similarity_logits(h, t, kind).diagonal())
    torch.testing.assert_close(F.target_similarity(t, kind), F.similarity_logits(t, t, kind))
    assert not F.target_similarity(t.requires_grad_(), kind).requires_grad


def test_targets_are_compared_in_float32_under_autocast() -> None:
    t = torch.randn(6, 64)
    plain = F.target_similarity(t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert F.similarity_logits(t, t).dtype == torch.bfloat16
        assert torch.equal(F.target_similarity(t), plain)
        assert (t @ t.T - plain).abs().max() > 1e-3  # what autocast would have made of it
        assert F.target_similarity(t.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_row_of_zeros_has_cosine_zero_and_no_gradient(dtype: torch.dtype) -> None:
    h, t = torch.zeros(3, 4, dtype=dtype), torch.eye(3, 4, dtype=dtype)
    h[1], t[2] = 1, 0
    for data in (h, h.clone().requires_grad_()):
        z = F.similarity_logits(data, t, "cosine", 0.5)
        assert z.dtype == dtype and z.tolist() == [[0, 0, 0], [1, 1, 0], [0, 0, 0]]
        pairs = F.paired_similarity(data, t, "cosine")
        assert pairs.dtype == dtype and pairs.tolist() == [0, 0.5, 0]
    grad = torch.autograd.grad(F.similarity_logits(data, t, "cosine", 0.5).sum(), data)[0]
    assert grad[0].tolist() == [0] * 4 and grad[1].tolist() == [0.5, 0.5, -0.5, -0.5] and grad[2].tolist() == [0] * 4
    grad = torch.autograd.grad(F.paired_similarity(data, t, "cosine").sum(), data)[0]
    assert grad[0].tolist() == [0] * 4 and bool(grad[1].isfinite().all()) and grad[1].abs().max() > 0.1


def test_small_distances_of_large_values_are_kept() -> None:
    t = torch.tensor([1000.0, 1000.001, 0.0])
    q = F.target_similarity(t, "l2")
    assert q[0, 0] == 0 and q[1, 1] == 0 and q[0, 1] < 0
    assert torch.equal(F.positives_max(q, rounding=0.0), torch.eye(3).bool())


def test_maxima_within_rounding_are_equal_and_beyond_it_are_not() -> None:
    one = torch.tensor(1.0)
    just_below = torch.nextafter(one, torch.tensor(0.0))
    q = torch.stack([one, just_below, torch.tensor(0.9999)])[None]
    assert F.positives_max(q).tolist() == [[True, True, False]]
    assert F.positives_max(q, rounding=0.0).tolist() == [[True, False, False]]
    assert F.positives_max(torch.zeros(1, 3)).all()
    assert F.positives_max(-torch.tensor([[1.0, 2.0]])).tolist() == [[True, False]]


def test_one_of_the_maxima_is_drawn_evenly_and_reproducibly() -> None:
    q = torch.tensor([[1.0, 1.0, 0.0, 1.0]]).expand(3000, 4)
    draw = lambda: F.positives_random_max(q, torch.Generator().manual_seed(3))
    counts = draw().bincount(minlength=4)
    assert counts[2] == 0 and ((counts[[0, 1, 3]] - 1000).abs() < 4 * (3000 * 2 / 9) ** 0.5).all()
    assert torch.equal(draw(), draw())


def test_topk_and_label_positives() -> None:
    q = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 4.0]])
    assert F.positives_topk(q, 2).tolist() == [[True, False, True], [False, True, True]]
    assert F.positives_topk(q, 9).all()
    y = torch.tensor([2, 0, 2])
    assert F.positives_labels(y, torch.arange(3)).tolist() == torch.eye(3)[y].bool().tolist()
    assert torch.equal(F.positives_labels(torch.eye(3)[y]), F.positives_labels(y))
    with pytest.raises(errors.ArgumentError, match="k must be"):
        F.positives_topk(q, 0)
    with pytest.raises(errors.LabelError, match="no labels"):
        F.positives_labels(None)


@pytest.mark.parametrize("kind", ["dot", "cosine", "l2"])
def test_nearest_context(kind: str) -> None:
    t = torch.tensor([[3.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    h = torch.tensor([[1.0, 0.9], [0.1, 2.0], [-5.0, -4.0]])
    expected = {"dot": [0, 1, 2], "cosine": [0, 1, 2], "l2": [1, 1, 2]}[kind]
    assert F.nearest_context(h, t, similarity=kind).tolist() == expected
    labels = torch.tensor([7, 7, 4])
    assert F.nearest_context(h, t, labels, kind).tolist() == labels[expected].tolist()


def test_what_does_not_fit_is_refused() -> None:
    h = torch.zeros(2, 3)
    with pytest.raises(errors.ShapeError, match="different features"):
        F.similarity_logits(h, torch.zeros(2, 4))
    with pytest.raises(errors.ShapeError, match="not in pairs"):
        F.paired_similarity(h, torch.zeros(4, 3))
    with pytest.raises(errors.ShapeError, match="one label a context row"):
        F.nearest_context(h, h, torch.zeros(3))
    with pytest.raises(errors.ArgumentError, match="unknown similarity"):
        F.similarity_logits(h, h, "euclid")
    with pytest.raises(errors.ArgumentError, match="must be positive"):
        F.similarity_logits(h, h, temperature=-1.0)
    with pytest.raises(errors.ShapeError, match="positives and logits"):
        F.softmax_contrast(torch.zeros(2, 3), torch.zeros(2, 2))
