"""Pooling, similarity matching and normalisation equal their loops; where their definition ends, they stay finite."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from imprint.functional.normalize import rms_normalize
from imprint.functional.pooling import pool_features, pool_sizes, pooled_width
from imprint.functional.similarity_matching import centered_cosine, matching_error, sample_features

from references import forward_forward_paper, local_error_signals

sizes = st.integers(1, 40)


def as_published(channels: int, side: int, limit: int) -> tuple[int, int]:
    """Rows and columns after pooling a square map, by twos: first the height, then the width."""
    window_h = window_w = 1
    rows = columns = side
    while channels * rows * columns > limit and window_h < side:
        window_h *= 2
        rows = math.ceil(side / window_h)
        if channels * rows * columns > limit:
            window_w *= 2
            columns = math.ceil(side / window_w)
    return rows, columns


@given(channels=sizes, side=sizes, limit=st.integers(1, 5000))
def test_square_maps_are_pooled_as_published(channels: int, side: int, limit: int) -> None:
    h, w = pool_sizes((channels, side, side), limit)
    assert (math.ceil(side / h), math.ceil(side / w)) == as_published(channels, side, limit)


@pytest.mark.parametrize(
    "shape,limit,kernel",
    [((128, 8, 8), 4096, (2, 1)), ((256, 8, 8), 4096, (2, 2)), ((512, 4, 4), 2048, (2, 2)),
     ((256, 14, 14), 1024, (8, 8)),
     ((4, 5, 5), 4096, (1, 1)), ((9, 3, 3), 9, (3, 3)), ((100, 4, 4), 10, (4, 4)), ((8, 1, 64), 64, (1, 8))],
)  # fmt: skip
def test_windows_of_known_nets(shape: tuple[int, int, int], limit: int, kernel: tuple[int, int]) -> None:
    assert pool_sizes(shape, limit) == kernel


@given(channels=sizes, height=sizes, width=sizes, limit=st.integers(1, 5000))
def test_pooling_keeps_the_limit_or_ends_at_one_number_a_channel(
    channels: int, height: int, width: int, limit: int
) -> None:
    made = pool_features(torch.randn(1, channels, height, width), limit)
    assert made.shape[1] == pooled_width((channels, height, width), limit)
    assert made.shape[1] <= limit or made.shape[1] == channels


@pytest.mark.parametrize("side,limit", [(4, 20), (5, 20), (5, 12), (7, 30), (3, 4)])
def test_pooled_maps_equal_the_mean_over_each_window(side: int, limit: int) -> None:
    h = torch.randn(2, 4, side, side, dtype=torch.float64)
    by_hand = local_error_signals.average_pool(h, limit)
    torch.testing.assert_close(pool_features(h, limit), by_hand, rtol=1e-12, atol=0)
    assert by_hand.shape[1] < h[0].numel()


def test_series_and_tokens() -> None:
    series, tokens = torch.randn(2, 3, 16), torch.randn(2, 5, 7)
    torch.testing.assert_close(pool_features(series, 12), series.view(2, 3, 4, 4).mean(3).flatten(1))
    torch.testing.assert_close(pool_features(tokens, 12, channels_last=True), tokens.mean(1))
    assert pooled_width((3, 16), 12) == 12 and pooled_width((5, 7), 12, channels_last=True) == 7


def naive(z: Tensor) -> Tensor:
    rows = [local_error_signals.direction(v) for v in z]
    return torch.stack([torch.stack([(a * b).sum().clamp(-1, 1) for b in rows]) for a in rows])


@pytest.mark.parametrize(
    "shape",
    [(6,), (4, 3, 3), (5, 2, 1), (3, 4, 4), (5, 1, 6)],
    ids=["vector", "map", "column", "3 channels", "one row"],
)
def test_centered_cosine(shape: tuple[int, ...]) -> None:
    z = torch.randn(5, *shape, dtype=torch.float64) + 2
    torch.testing.assert_close(centered_cosine(z), naive(z), rtol=1e-10, atol=1e-12)
    flat = z.flatten(1)
    plain = torch.nn.functional.cosine_similarity(flat[:, None], flat[None], dim=2)
    assert (centered_cosine(z) - plain).abs().max() > 0.1
    if shape == (4, 3, 3):  # the deviation over space, not its mean
        assert (centered_cosine(z) - centered_cosine(z.mean((2, 3)))).abs().max() > 0.1


def test_matching_error_counts_pairs_of_valid_rows() -> None:
    z, y = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 1])
    onehot = nn.functional.one_hot(y, 3).double()
    by_hand = local_error_signals.matching_loss(z, y, 3)
    torch.testing.assert_close(matching_error(z, onehot), by_hand, rtol=1e-10, atol=0)
    valid = torch.tensor([True, True, False, True, False, True])
    torch.testing.assert_close(matching_error(z, onehot, valid), matching_error(z[valid], onehot[valid]))
    assert matching_error(z, onehot, torch.zeros(6, dtype=torch.bool)) == 0.0


@pytest.mark.parametrize("shape", [(6,), (4, 3, 3)])
def test_dead_outputs_have_finite_gradients(shape: tuple[int, ...]) -> None:
    """A layer of ReLUs that are all off: every deviation and every length is zero."""
    z = torch.zeros(3, *shape, requires_grad=True)
    loss = matching_error(z, torch.eye(3))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(z.grad).all()


def test_tokens_are_read_as_maps() -> None:
    tokens = torch.randn(4, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(
        centered_cosine(sample_features(tokens, True)), centered_cosine(tokens.std(1)), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("shape", [(7,), (3, 2, 2)])
def test_rms_normalize(shape: tuple[int, ...]) -> None:
    x = torch.randn(4, *shape, dtype=torch.float64) * torch.tensor([1.0, 10.0, 1e-3, 5.0]).view(-1, *[1] * len(shape))
    made = rms_normalize(x)
    torch.testing.assert_close(made, forward_forward_paper.normalise(x), rtol=1e-12, atol=0)
    torch.testing.assert_close(made.flatten(1).square().mean(1), torch.ones(4, dtype=torch.float64), rtol=1e-4, atol=0)
    assert (made - forward_forward_paper.normalise(x, "length")).abs().max() > 0.1
    assert rms_normalize(torch.zeros(2, 3)).abs().max() == 0.0
