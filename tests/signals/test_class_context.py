"""The rows of a class context: where they lie and how far they spread."""

from __future__ import annotations

import pytest
import torch

from imprint.signals import ClassContext


@pytest.mark.parametrize(("mean", "spread"), [(0.0, 1.0), (5.0, 0.25), (-30.0, 8.0)])
def test_floating_rows_have_the_mean_and_the_spread_of_the_data(mean: float, spread: float) -> None:
    x = torch.randn(32, 500, dtype=torch.float64) * spread + mean
    stream = ClassContext()
    stream.build(stream.describe((x,), [0], 10, 10), torch.device("cpu"))
    rows = stream((x,), torch.eye(10))[0]
    assert rows.shape == (10, 500)
    # 5000 normal numbers: five standard errors
    assert abs(float(rows.mean() - x.mean())) < 5 * spread / 5000**0.5
    assert float(rows.std() / x.std()) == pytest.approx(1, abs=5 / 10000**0.5)


def test_data_without_spread_still_tell_the_classes_apart() -> None:
    x = torch.full((4, 6), 3.0)
    stream = ClassContext()
    stream.build(stream.describe((x,), [0], 3, 3), torch.device("cpu"))
    assert stream((x,), torch.eye(3))[0].unique(dim=0).shape == (3, 6)
