"""What becomes of a captured function."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from imprint.runtime.capture import Captured, capture
from imprint.runtime.codegen import inductor

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


def captured(function: object, **fixed: Tensor) -> Captured:
    """A function of these tensors."""
    return capture(lambda *_: (function(), ())[1], lambda: list(fixed.items()))  # type: ignore[operator]


@needs_compiler
def test_scalars_in_double_precision_are_written() -> None:
    """One number, and a vector of one as control."""
    total, vector = torch.zeros((), dtype=torch.float64), torch.zeros(1, dtype=torch.float64)

    def add() -> None:
        total.add_(2)
        vector.add_(2)

    run = inductor(captured(add, total=total, vector=vector))
    assert total.item() == vector.item() == 0
    run()
    run()
    assert total.item() == vector.item() == 4


def test_blocks_that_draw_twice_run_call_by_call() -> None:
    """One draw is compiled, two are not, and it is said."""
    x, y = torch.ones(50), torch.zeros(50)
    twice = captured(lambda: y.copy_(F.dropout(x, 0.5) + 10 * F.dropout(x, 0.5)), x=x, y=y)
    assert inductor(twice) is twice
    assert "run call by call" in twice.said[0]
    torch.manual_seed(0)
    twice()
    torch.manual_seed(0)
    assert torch.equal(y, F.dropout(x, 0.5) + 10 * F.dropout(x, 0.5))
    once = captured(lambda: y.copy_(F.dropout(x, 0.5)), x=x, y=y)
    assert inductor(once) is not once
