"""Time, floating point operations and memory of a step."""

from __future__ import annotations

import platform
import statistics
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import FlopCounterMode


class Peak(TorchDispatchMode):
    """Most bytes of tensors that are alive at once and were made inside the block: what a step needs beside weights.

    Scratch space inside one kernel is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.bytes = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {v.untyped_storage()._cdata for v in tree_flatten((args, kwargs))[0] if isinstance(v, Tensor)}
        out = func(*args, **(kwargs or {}))
        for v in tree_flatten(out)[0]:
            if isinstance(v, Tensor):
                storage = v.untyped_storage()
                key = storage._cdata
                if key not in known and key not in self.live:
                    self.live[key] = storage.nbytes()
                    self.bytes += storage.nbytes()
                    weakref.finalize(storage, self.free, key)
        self.peak = max(self.peak, self.bytes)
        return out

    def free(self, key: int) -> None:
        self.bytes -= self.live.pop(key, 0)


def peak_bytes(step: Callable[[], Any]) -> int:
    """Transient memory of one step, exactly as its tensors come and go."""
    if torch.cuda.is_available() and torch.cuda.current_device() >= 0 and torch.get_default_device().type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with Peak() as tracker:
        step()
    return tracker.peak


def flops(step: Callable[[], Any]) -> int:
    """Floating point operations of the matrix products and convolutions of one step."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def times(steps: dict[str, Callable[[], Any]], repeats: int = 15, warmup: int = 3) -> dict[str, float]:
    """Median seconds of each step, measured in turns, so that whatever else the machine does hits all alike."""
    for step in steps.values():
        for _ in range(warmup):
            step()
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            found[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in found.items()}


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    told = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.split(":")[1].strip() for line in told if "model name" in line), platform.processor())
    return {
        "torch": torch.__version__, "python": platform.python_version(), "cpu": cpu, "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }  # fmt: skip
