"""What a learning step costs in each update mode, beside backpropagation through the same model."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ..diagnostics.cost import peak_bytes
from ..diagnostics.timing import times
from ..errors import ArgumentError, StateError
from ..propagators.switch import learning_enabled
from ..utils import same_random_state
from .backprop_step import backprop_step
from .learning_pass import UPDATES
from .twin import twin

if TYPE_CHECKING:
    from .manager import Manager

BACKPROP, CHECKPOINTED = "backprop", "backprop, checkpointed"


@dataclass(frozen=True)
class Cost:
    """One row of a profile.

    Attributes:
        way: an update mode, ``"backprop"`` or ``"backprop, checkpointed"``.
        ms: median milliseconds of a step.
        mib: most MiB that a step needs at once, gradients among them; weights, optimizer state and batch are not.
        time, memory: both as ratios to backprop.
    """

    way: str
    ms: float
    mib: float
    time: float
    memory: float


@dataclass(frozen=True, repr=False)
class Profile:
    """Time and memory of a step; printing it gives a table.

    Attributes:
        rows: one for each update mode, then for backprop and for backprop with a checkpoint around every unit.
        about: what was measured, and on what.

    >>> Profile((Cost("immediate", 1.5, 0.25, 0.75, 0.5), Cost("backprop", 2.0, 0.5, 1.0, 1.0)), "2 steps on cpu")
    2 steps on cpu
    way        ms     MiB    time  memory
    ---------  -----  -----  ----  ------
    immediate  1.500  0.250  0.75  0.50
    backprop   2.000  0.500  1.00  1.00
    time and memory: ratios to backprop
    """

    rows: tuple[Cost, ...]
    about: str

    def __repr__(self) -> str:
        cells = [("way", "ms", "MiB", "time", "memory")]
        for row in self.rows:
            cells.append((row.way, f"{row.ms:.3f}", f"{row.mib:.3f}", f"{row.time:.2f}", f"{row.memory:.2f}"))
        widths = [max(len(row[i]) for row in cells) for i in range(5)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]
        lines.insert(1, "  ".join("-" * w for w in widths))
        return "\n".join([self.about, *lines, "time and memory: ratios to backprop"])


def profile(manager: Manager, x: Any, y: Tensor, steps: int = 10) -> Profile:
    """Measure a learning step of each update mode, of backprop, and of backprop that checkpoints every unit.

    All are measured on copies, which start from the manager's weights and optimizer state and learn from this batch:
    nothing of the manager changes, not even the next random numbers. Memory must hold five copies. Steps are taken in
    turns and medians given; monitors are left out, and each batch is an update. Backprop trains the parameters that
    learn here, through the same task loss, with one optimizer of the same kind over all of them.

    Args:
        manager: with its model in training mode.
        x: inputs, as for ``manager.step``.
        y: targets.
        steps: of each way, after two that are not counted.

    Returns:
        a table to print, and its rows.

    Raises:
        ArgumentError: there are no targets, nothing learns, or the model cannot be copied.
        StateError: gradients or learning are off, the model is in eval mode, or it was detached.

    >>> import imprint
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    >>> manager = imprint.attach(model, "local_ce")
    >>> found = profile(manager, torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]), steps=2)
    >>> [row.way for row in found.rows]
    ['immediate', 'deferred', 'summed', 'backprop', 'backprop, checkpointed']
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ArgumentError("manager.profile", "steps= must be a whole number from 1", got=repr(steps), fix="steps=10")
    if not isinstance(y, Tensor):
        raise ArgumentError(
            "manager.profile", "there are no targets, and backprop needs them", expected="a tensor y",
            got=type(y).__name__, fix="manager.profile(x, y)",
        )  # fmt: skip
    manager.phase.require_idle("manager.profile")
    if not (learning_enabled() and torch.is_grad_enabled()):
        raise StateError(
            "manager.profile", "nothing learns here", fix="leave torch.no_grad() and imprint.no_learning()"
        )
    x, y = tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, (x, y))  # a model may write into its input
    device = next(manager.model.parameters()).device
    with same_random_state():
        ways: dict[str, Callable[[], Any]] = {u: partial(twin(manager, u).step, x, y) for u in UPDATES}
        for way in (BACKPROP, CHECKPOINTED):
            ways[way] = backprop_step(twin(manager, UPDATES[0]), x, y, way == CHECKPOINTED)
        seconds, memory = times(ways, steps, warmup=2), {}
        for way, step in ways.items():
            gc.collect()  # cycles of steps before are not this one's
            memory[way] = peak_bytes(step, device) / 2**20
    mine, least = seconds[BACKPROP], max(memory[BACKPROP], 2**-20)
    rows = [Cost(way, seconds[way] * 1e3, memory[way], seconds[way] / mine, memory[way] / least) for way in ways]
    threads = f", threads: {torch.get_num_threads()}" if device.type == "cpu" else ""
    about = f"a step on {len(y)} samples, median of {steps}, device: {device}{threads}"
    return Profile(tuple(rows), about)
