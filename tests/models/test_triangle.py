"""Triangle keeps what is above the mean of its position; its gradient is finite at every power."""

from __future__ import annotations

import pytest
import torch

from imprint.errors import ArgumentError
from imprint.models import Triangle


@pytest.mark.parametrize("power", [0.7, 1.0, 1.4])
def test_it_equals_a_loop(power: float) -> None:
    u = torch.randn(2, 5, 3, 2, dtype=torch.float64, requires_grad=True)
    out = Triangle(power)(u)
    (grad,) = torch.autograd.grad(out.sum(), u)
    u, out = u.detach(), out.detach()
    for b in range(2):
        for i in range(3):
            for j in range(2):
                mean = float(u[b, :, i, j].sum()) / 5
                for c in range(5):
                    above = float(u[b, c, i, j]) - mean
                    assert abs(float(out[b, c, i, j]) - max(above, 0.0) ** power) < 1e-12
                    slope = power * above ** (power - 1) if above > 0 else 0.0
                    assert abs(float(grad[b, c, i, j]) - slope) < 1e-10
    assert (out - u.relu() ** power).abs().max() > 0.05


def test_ties_have_no_gradient() -> None:
    u = torch.ones(1, 4, requires_grad=True)
    Triangle(0.7)(u).sum().backward()
    assert u.grad is not None and bool((u.grad == 0).all())


@pytest.mark.parametrize("power", [0, -1.0, "1"])
def test_a_power_that_is_none_is_refused(power: object) -> None:
    with pytest.raises(ArgumentError, match=r"Triangle\(0.7\)"):
        Triangle(power)  # type: ignore[arg-type]
