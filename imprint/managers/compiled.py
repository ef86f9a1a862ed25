"""``manager.step`` as one captured function: all units' forward, losses, gradients and optimizer steps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from ..errors import ArgumentError, CaptureError, CompileError, ShapeError, StateError, UnknownNameError, did_you_mean
from ..runtime.codegen import generators
from ..runtime.graphs import Graphs, replayed
from ..runtime.optimizers import Steps
from ..runtime.store import Store
from .compiled_body import Body
from .compiled_counts import Counts
from .compiled_facts import PLACES, Facts, facts_of, modules_of, refuse
from .compiled_function import Function, Generate
from .compiled_monitors import form_of, watching

if TYPE_CHECKING:
    from .manager import Manager

ON_SHAPE, ON_STALE = ("recapture", "error"), ("recapture", "error")


@dataclass
class Captures:
    """What holds for one state of the model: captured steps, and why others are eager."""

    functions: dict[Any, Function]
    eager: dict[Any, Exception]


class CompiledStep:
    """Runs ``manager.step`` as one captured function; made by :meth:`imprint.managers.Manager.compile`.

    A step is captured for each size of batch, once. What else it takes for granted (training modes, frozen units, what
    wants gradient, settings and state of optimizers, monitors, the weights' places) is compared before each step; if
    it has changed, the step is captured anew, or refused with ``on_stale="error"``. Learning rates may change freely.

    Args:
        manager: whose step it is.
        backend, codegen, on_shape, on_stale, fallback, allow_emulation: see :meth:`imprint.managers.Manager.compile`.
    """

    def __init__(
        self, manager: Manager, backend: str, codegen: str | None, on_shape: str, on_stale: str, fallback: bool,
        allow_emulation: bool,
    ) -> None:  # fmt: skip
        self.generate = generate_of(manager, backend, codegen, allow_emulation)
        _check_choice("on_shape", on_shape, ON_SHAPE)
        _check_choice("on_stale", on_stale, ON_STALE)
        if not isinstance(fallback, bool):
            raise ArgumentError("manager.compile", "fallback= is on or off", got=repr(fallback), fix="fallback=True")
        self.manager, self.backend, self.fallback = manager, backend, fallback
        self.on_shape, self.on_stale = on_shape, on_stale
        self.refresh()

    def refresh(self) -> None:
        """Forget all captures: the next step is captured anew."""
        self.captures: dict[Any, Captures] = {}
        self.facts: Facts | None = None
        self.store, self.counts = Store(), Counts(Steps([], "cpu"))
        self._hung: Any = None

    def close(self) -> None:
        """``manager.step`` is eager again."""
        if self.manager.compiled is self:
            self.manager.compiled = None
        self.refresh()

    def stale(self) -> list[str]:
        """What has changed since the last step; empty if nothing has, or if nothing is captured."""
        return [] if self.facts is None else _changed(self.facts, self._now())

    def step(self, x: Any, y: Tensor | None, share: float | None, due: bool) -> Any:
        """What ``Manager._eager`` does.

        Raises:
            CaptureError: the step cannot be captured; says whose fault it is. Nothing was changed.
            CompileError: it cannot be compiled. Nothing was changed.
            StateError: it is stale, and ``on_stale="error"``.
            ShapeError: the batch has another size, and ``on_shape="error"``.
        """
        leaves, spec = tree_flatten(x)
        sizes = ("" if leaves[0] is x else repr(spec), tuple([_size(v) for v in (*leaves, y)]))
        captures = self._current()
        key: Any = (sizes, share, due)
        try:
            key = (sizes, share, due, self._forms())
            if key in captures.eager:
                return self.manager._eager(x, y, share, due)
            function = captures.functions.get(key) or self._capture(captures, key, x, y)
            try:
                return function(leaves, y, self.counts)
            finally:
                self._follow_new_state(function)
        except (CaptureError, CompileError) as error:
            if not self.fallback:
                captures.functions.pop(key, None)
                raise
            captures.functions.pop(key, None)
            captures.eager[key] = error
            return self.manager._eager(x, y, share, due)

    def _capture(self, captures: Captures, key: Any, x: Any, y: Tensor | None) -> Function:
        (sizes, share, due, _), known = key, [k[0] for each in self.captures.values() for k in each.functions]
        if self.on_shape == "error" and known and sizes not in known:
            raise ShapeError(
                "manager.step", "it is compiled for batches of another size", expected=_said(known[0]),
                got=_said(sizes), fix='drop the last batch, or on_shape="recapture"',
            )  # fmt: skip
        steps = self.counts.steps
        refuse(self.manager, self._modules, steps)
        self.counts.load(True)
        body = Body(self.manager, x, y, share, due, steps, self.store, self._modules)
        captures.functions[key] = Function(body, self.generate)
        return captures.functions[key]

    def _current(self) -> Captures:
        """The captures that hold now; those whose tensors are gone are dropped.

        Raises:
            StateError: something has changed, and ``on_stale="error"``.
        """
        now = self._now()
        changed = [] if self.facts is None else _changed(self.facts, now)
        if changed and self.on_stale == "error":
            raise StateError(
                "manager.step", "it is compiled for another state of the model", got=f"changed: {', '.join(changed)}",
                fix='manager.compiled.refresh(), or on_stale="recapture"',
            )  # fmt: skip
        if self.facts is None or any(name in PLACES for name in changed):
            manager, self.captures = self.manager, {}
            optimizers = [o for prop in manager.propagators.values() for o in prop.optimizers]
            self.counts = Counts(Steps(optimizers, next(manager.model.parameters()).device))
        if self.facts is None or changed:
            self.facts = now
            self._holding = self.captures.setdefault(tuple(now.values()), Captures({}, {}))
        return self._holding

    def _follow_new_state(self, function: Function) -> None:
        """State that optimizers have made in a first step is that of the captured step, so nothing is stale."""
        if function.settled:
            return
        now = self._now()
        if self.facts is not None and now != self.facts:
            self.facts, self.captures = now, {tuple(now.values()): self._holding}

    def _now(self) -> Facts:
        if self._hung is not self.manager.hung:
            self._hung, self._modules = self.manager.hung, modules_of(self.manager)
        return facts_of(self.manager, self._modules)

    def _forms(self) -> tuple[Any, ...]:
        """What has been gathered, and what monitors remember, but for the numbers."""
        props = self.manager.propagators.values()
        carries = tuple([_form(prop.carry) if prop.carry or prop.ticks else None for prop in props])
        return carries, tuple([form_of(m) for m in watching(self.manager)])

    def explain(self) -> str:
        """What is captured, for which sizes; what steps or runs eagerly, and why."""
        functions = [(key, f) for each in self.captures.values() for key, f in each.functions.items()]
        lines = [f"compiled step: backend {self.backend!r}, {len(functions)} captured"]
        for (sizes, share, due, _), f in functions:
            what = "learns" if share is not None else "gathers, and updates" if due else "gathers"
            lines.append(
                f"  {_said(sizes)}: {what}; {f.calls} calls on {len(f.captured.tensors)} tensors, ran {f.runs}x"
            )
        left = self.counts.steps.left
        for name, prop in self.manager.propagators.items():
            whys = [left[id(o)] for o in prop.optimizers if id(o) in left]
            lines += [f"  optimizer of {name!r}: steps by itself, after the captured step: {why}" for why in whys]
        for each in self.captures.values():
            for key, error in each.eager.items():
                lines.append(f"  {_said(key[0])}: eager, as fallback=True asks: {' '.join(str(error).split())}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.explain()


def generate_of(manager: Manager, backend: str, codegen: str | None, allow_emulation: bool) -> Generate:
    """What makes something that runs of a captured step.

    Raises:
        UnknownNameError: there is no such backend.
        ArgumentError: an option has no meaning with it.
        StateError: there is no CUDA device for CUDA graphs.
    """
    known = [*generators, "cuda_graph"]
    if backend not in known:
        raise UnknownNameError("manager.compile", f"unknown backend {backend!r}", fix=did_you_mean(backend, known))
    if backend == "cuda_graph":
        device = next((p.device for p in manager.model.parameters()), torch.device("cpu"))
        where = "manager.compile(backend='cuda_graph')"
        return partial(replayed, Graphs(where, device, codegen, allow_emulation))
    given = {"codegen": codegen not in (None, backend), "allow_emulation": allow_emulation is not False}
    for name in (name for name, bad in given.items() if bad):
        raise ArgumentError(
            "manager.compile", f"{name}= has no meaning with backend={backend!r}", fix=f"leave {name}= out"
        )
    return generators[backend]


def _changed(before: Facts, now: Facts) -> list[str]:
    return [] if now == before else [name for name, value in before.items() if now[name] != value]


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if name == "on_shape" and value == "pad":
        raise ArgumentError(
            "manager.compile", "rows of an attached model may see each other, so padding would change what it learns",
            expected=" | ".join(map(repr, choices)), got="on_shape='pad'", fix="on_shape='recapture'",
        )  # fmt: skip
    if value not in choices:
        raise ArgumentError(
            "manager.compile", f"unknown {name}=", expected=" | ".join(map(repr, choices)), got=repr(value),
            fix=f"{name}={choices[0]!r}",
        )  # fmt: skip


def _size(v: Any) -> Any:
    if not isinstance(v, Tensor):
        return v
    return tuple(v.shape), v.dtype, v.device, None if v.is_contiguous() else v.stride()


def _form(carry: Any) -> Any:
    leaves, spec = tree_flatten(carry)
    return repr(spec), tuple([_size(v)[:2] if isinstance(v, Tensor) else v for v in leaves])


def _said(sizes: Any) -> str:
    said = [f"{list(v[0])} {str(v[1])[6:]}" if isinstance(v, tuple) else repr(v) for v in sizes[1]]
    return f"x {', '.join(said[:-1])}, y {said[-1]}"
