"""How long steps take, beside each other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch


def times(steps: Mapping[str, Callable[[], Any]], repeats: int = 15, warmup: int = 3) -> dict[str, float]:
    """Median seconds of each step, measured in turns, so that whatever else the machine does hits all alike.

    >>> found = times({"little": lambda: torch.ones(9).sum(), "much": lambda: torch.ones(9**6).exp().sum()})
    >>> 0 < found["little"] < found["much"]
    True
    """
    for step in steps.values():
        for _ in range(warmup):
            step()
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            _wait()
            start = time.perf_counter()
            step()
            _wait()
            found[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in found.items()}


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
