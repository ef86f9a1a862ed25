"""A captured step for one size of batch: what is brought to it, and what it leaves behind."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..errors import CaptureError
from ..propagators.host import EAGER
from ..runtime.capture import Captured, capture
from ..runtime.codegen import RANDOM
from .compiled_body import Body
from .compiled_counts import Counts
from .compiled_host import NORM, step_left
from .compiled_watch import whose

Generate = Callable[[Captured], Callable[[], None]]


class Function:
    """Runs a captured step.

    Args:
        body: what was asked for.
        generate: makes something that runs of what was captured.

    Attributes:
        runs: how often it ran.
        settled: its last run went through, and made no new optimizer state.

    Raises:
        CaptureError: the step cannot be captured; nothing was changed.
    """

    def __init__(self, body: Body, generate: Generate) -> None:
        self.body = body
        try:
            self.captured = capture(body, body.fixed)
        except CaptureError as error:
            if error.__cause__ is not None or error.where == "plan":
                error.where = whose(error.__cause__)
            raise
        random = any(any(word in str(n.target) for word in RANDOM) for n in self.captured.module.graph.nodes)
        if random and body.watch.set:
            raise CaptureError(
                "the step", "it sets torch's random numbers back, as checkpointing and rules with two passes do, and "
                "draws some", fix="no activation checkpointing around dropout; with 'pepita' no dropout at all",
            )  # fmt: skip
        self.calls = sum(n.op == "call_function" for n in self.captured.module.graph.nodes)
        self.generated, self.runs = generate(self.captured), 0
        self.counted: list[Tensor] | None = None
        self.settled = False

    @torch.no_grad()
    def __call__(self, leaves: list[Any], y: Tensor | None, counts: Counts) -> Any:
        """Take a step; returns the model's output.

        Raises:
            NonFiniteError: names the unit; its weights and those of units after it are as they were.
        """
        body, props = self.body, self.body.manager.propagators
        for slot, v in zip(body.leaves, leaves, strict=True):
            if isinstance(v, Tensor):
                slot.copy_(v)
        if body.y is not None and y is not None:
            body.y.copy_(y)
        for name, prop in props.items():
            for i, v in enumerate(tree_flatten(prop.carry)[0] if prop.carry else ()):
                if isinstance(v, Tensor) and (slot := body.place(name, i, v)) is not v:
                    slot.copy_(v)
        body.monitors.load()
        counts.load(self.counted is None)
        self.generated()
        ok = "going" not in body.own or bool(body.own["going"])
        self.settled, counted = ok and self.counted is not None, counts.store(self.counted, ok)
        if not ok:
            self._refuse()
        self.counted = counted
        step_left(body.host.left, body.own)
        for name, (carry, ticks) in body.carries.items():
            prop = props[name]
            prop.carry, prop.ticks = tree_unflatten(*tree_flatten(carry)), 0 if ticks is None else prop.ticks + ticks
        if body.due:
            body.manager.gathered = 0
        body.monitors.give()
        self.runs += 1
        slots, spec = body.output
        return tree_unflatten([v.clone() if isinstance(v, Tensor) else v for v in slots], spec)

    def _refuse(self) -> None:
        """Name what was not finite."""
        body = self.body
        for (kind, prop), value in zip(body.host.checks, body.own["seen"].tolist(), strict=True):
            if math.isfinite(value):
                continue
            if kind == NORM and body.share is None:  # the update itself failed, as in an eager step
                body.manager.gathered = 0
                for each in body.manager.propagators.values():
                    each.reset()
            (EAGER.check_norm if kind == NORM else EAGER.check)(prop, torch.tensor(value))
