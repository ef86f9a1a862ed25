"""Time, floating point operations and memory of a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.flop_counter import FlopCounterMode

from imprint.diagnostics.cost import machine as machine
from imprint.diagnostics.cost import peak_bytes as peak_bytes
from imprint.diagnostics.timing import times as times


def flops(step: Callable[[], Any]) -> int:
    """Floating point operations of the matrix products and convolutions of one step."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()
