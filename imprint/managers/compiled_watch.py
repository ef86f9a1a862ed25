"""Python that a captured step would run once and never again: found while it is captured."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import CaptureError
from ..monitors.metric import Metric
from .agent import LayerAgent

OWN = ("_parameters", "_buffers", "_modules", "training")
SETTERS = ("set_rng_state", "manual_seed")


class Watch:
    """Compares what Python holds before and after one step.

    Args:
        modules: whose attributes are looked at.
        names: how they are called, by id.
    """

    def __init__(self, modules: list[nn.Module], names: dict[int, str]) -> None:
        self.modules, self.names, self.set = modules, names, False

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Over one step.

        Raises:
            CaptureError: a module keeps what it computes in an attribute, or draws random numbers of Python or NumPy.
        """
        before = [self._attributes(m) for m in self.modules]
        drawn, self.set = _python_random(), False
        with self._random():
            yield
        for m, old in zip(self.modules, before, strict=True):
            new = self._attributes(m)
            changed = [k for k in {**old, **new} if old.get(k) != new.get(k)]
            if changed:
                raise CaptureError(
                    self.names.get(id(m), type(m).__name__),
                    "its forward changes an attribute, which a compiled step would do once and never again",
                    expected="state in buffers", got=", ".join(changed),
                    fix="register_buffer, and write it in place; or fallback=True, which leaves the step eager",
                )  # fmt: skip
        if drawn != _python_random():
            raise CaptureError(
                "the step", "it draws random numbers of Python or NumPy, which a compiled step would draw once",
                fix="draw them with torch.rand",
            )  # fmt: skip

    @staticmethod
    def _attributes(m: nn.Module) -> dict[str, Any]:
        return {k: _mark(v) for k, v in vars(m).items() if k not in OWN}

    @contextmanager
    def _random(self) -> Iterator[None]:
        """Notice who sets torch's random numbers back, as checkpointing does."""
        kept = {(where, name): getattr(where, name) for where in (torch, torch.random) for name in SETTERS}

        def noticed(call: Any) -> Any:
            def set_(*args: Any, **kwargs: Any) -> Any:
                self.set = True
                return call(*args, **kwargs)

            return set_

        for (where, name), call in kept.items():
            setattr(where, name, noticed(call))
        try:
            yield
        finally:
            for (where, name), call in kept.items():
                setattr(where, name, call)


def _mark(v: Any) -> tuple[int, Any]:
    """Tells an attribute from another one; of a collection, also how long it is."""
    return id(v), len(v) if isinstance(v, list | dict | set) else v if isinstance(v, int | float | str) else None


def _python_random() -> tuple[Any, ...]:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002  (what user code may draw from)
    return random.getstate(), kind, bytes(keys), *rest  # type: ignore[arg-type]


def whose(error: BaseException | None) -> str:
    """Whom an error in the middle of a step belongs to.

    >>> whose(ValueError())
    'the step'
    """
    found, trace = "the step", None if error is None else error.__traceback__
    while trace is not None:
        me = trace.tb_frame.f_locals.get("self")
        if isinstance(me, LayerAgent):
            found = f"unit {me.prop.name!r} (rule {me.rule.name!r})"
        elif isinstance(me, Metric):
            found = f"monitor {me.name!r}"
        trace = trace.tb_next
    return found
