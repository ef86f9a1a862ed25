"""What a step costs in memory, and on which machine that was found."""

from __future__ import annotations

import platform
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten


class Peak(TorchDispatchMode):
    """Most bytes of tensors that are alive at once and were made inside the block: what a step needs beside weights.

    Scratch space inside one kernel is not seen.

    >>> with Peak() as tracker:
    ...     x = torch.ones(256)
    ...     del x
    ...     y = torch.ones(64)
    >>> tracker.bytes, tracker.peak
    (256, 1024)
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
                    weakref.finalize(storage, self._free, key)
        self.peak = max(self.peak, self.bytes)
        return out

    def _free(self, key: int) -> None:
        self.bytes -= self.live.pop(key, 0)


def peak_bytes(step: Callable[[], Any], device: torch.device | str = "cpu") -> int:
    """Transient memory of one call: the most that its tensors took at once, beside what was there before.

    On a CPU tensors are followed as they come and go, on a CUDA device the allocator is asked.

    >>> peak_bytes(lambda: torch.ones(256).add(1).sum())
    2048
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with Peak() as tracker:
        step()
    return tracker.peak


def machine() -> dict[str, Any]:
    """What figures are measured on: torch, Python, processor, threads of torch, CUDA device.

    >>> sorted(machine())
    ['cpu', 'cuda', 'python', 'threads', 'torch']
    """
    told = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.split(":")[1].strip() for line in told if "model name" in line), platform.processor())
    return {
        "torch": torch.__version__, "python": platform.python_version(), "cpu": cpu, "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }  # fmt: skip
