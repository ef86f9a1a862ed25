"""One step of an attached model as a function of fixed tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from ..errors import CaptureError
from ..runtime.optimizers import Steps
from ..runtime.store import Store, write_all
from .compiled_facts import fixed_of, names_of
from .compiled_host import StepHost
from .compiled_monitors import Gathered, watching
from .compiled_watch import Watch
from .learning_pass import learn
from .options import Inputs

if TYPE_CHECKING:
    from .manager import Manager

Tree = tuple[list[Any], TreeSpec]


class Body:
    """What one step does, and what it leaves for the host to do.

    Args:
        manager: whose step it is.
        x, y: a batch like those to come; only sizes and what is no tensor are kept of it.
        share: as in ``Manager._learn``.
        due: units that have gathered gradient step at the end.
        steps: all optimizers.
        store: tensors that steps of all sizes share.
        modules: that may hold state.

    Attributes:
        own: tensors of this size alone.
        runs: how often it was called.
        output: of the model, in tensors that stay.
        carries: what each propagator has gathered afterwards, and from how many more calls; None if all was spent.
    """

    def __init__(
        self, manager: Manager, x: Any, y: Tensor | None, share: float | None, due: bool, steps: Steps, store: Store,
        modules: list[nn.Module],
    ) -> None:  # fmt: skip
        self.manager, self.share, self.due = manager, share, due
        self.steps, self.store, self.modules, self.own = steps, store, modules, Store()
        leaves, self.spec = tree_flatten(x)
        self.leaves = [self._slot(f"x {i}", v) if isinstance(v, Tensor) else v for i, v in enumerate(leaves)]
        self.y = None if y is None else self._slot("y", y)
        self.host = StepHost(steps, self.own, steps.device)
        self.monitors = Gathered(watching(manager), store)
        self.watch = Watch(modules, names_of(manager))
        self.written: list[tuple[nn.Module, str]] | None = None
        self.begun = {name: (prop.carry, prop.ticks) for name, prop in manager.propagators.items()}
        self.carries: dict[str, tuple[Any, int | None]] = {}
        self.output: Tree = ([], self.spec)
        self.runs = 0

    def _slot(self, name: str, like: Tensor) -> Tensor:
        """A tensor that stays, laid out like another."""
        slot = self.own.held.get(name)
        if slot is None:
            slot = self.own.held[name] = torch.zeros_like(like.detach(), requires_grad=False)
        return slot

    def fixed(self) -> Iterator[tuple[str, Tensor]]:
        """Everything that the step may read and write, by name."""
        yield from self.own.held.items()
        yield from self.store.held.items()
        yield from fixed_of(self.manager, self.modules, self.steps)

    def __call__(self, *_: Any) -> tuple[()]:
        """Take the step on the fixed tensors, and write what it leaves into them."""
        self.runs += 1
        manager, host = self.manager, self.host
        before = self._buffers()
        versions = {key: b._version for key, b in before.items()}
        kept = {key: b.clone() for key, b in before.items() if self.written is None or key in self.written}
        with self._substituted(), self.watch.looking() if self.runs == 1 else nullcontext():
            x = tree_unflatten(self.leaves, self.spec)
            for probe in manager.probes.values():
                probe.started(manager, x, self.y)
            output = learn(manager, Inputs.of(x), self.y, self.share)
            if self.due:
                manager.update()
            with torch.no_grad():
                pairs = self._changed_buffers(before, kept, versions)
                pairs += self._gathered()
                self.monitors.collect(host)
                pairs += [*self.monitors.pairs, *self._emitted(output), *host.writes()]
                write_all(pairs, [v for _, v in self.fixed()])
                self.steps.hoist()
        return ()

    @contextmanager
    def _substituted(self) -> Iterator[None]:
        """Propagators step on the device, from what was gathered in tensors that stay; afterwards all is as it was."""
        manager, gathered = self.manager, self.manager.gathered
        props = list(manager.propagators.values())
        attributes = [(prop, prop.host, prop.carry, prop.ticks) for prop in props]
        buffers = [(m, dict(m._buffers)) for m in self.modules]
        self.host.begin()
        try:
            for prop in props:
                carry, ticks = self.begun[prop.name]
                prop.host, prop.carry, prop.ticks = self.host, self._held(prop.name, carry), min(ticks, 1)
            with self.monitors.substituted():
                yield
        finally:
            manager.gathered = gathered
            manager.phase.forget()
            for prop, host, carry, ticks in attributes:
                prop.host, prop.carry, prop.ticks = host, carry, ticks
            for m, own in buffers:
                m._buffers.update(own)

    def _held(self, name: str, carry: Any) -> Any:
        leaves, spec = tree_flatten(carry)
        return tree_unflatten([self.place(name, i, v) for i, v in enumerate(leaves)], spec)

    def place(self, name: str, i: int, v: Any) -> Any:
        """Where part `i` of what a propagator has gathered stays."""
        return self.store.hold(f"{name}: gathered {i} {tuple(v.shape)}", v) if isinstance(v, Tensor) else v

    def _gathered(self) -> list[tuple[Tensor, Tensor]]:
        pairs: list[tuple[Tensor, Tensor]] = []
        self.carries = {}
        for name, prop in self.manager.propagators.items():
            leaves, spec = tree_flatten(prop.carry)
            slots = [self.place(name, i, v) for i, v in enumerate(leaves)]
            pairs += [
                (slot, self.host.chosen(v.detach(), slot))
                for slot, v in zip(slots, leaves, strict=True) if isinstance(v, Tensor)
            ]  # fmt: skip
            more = prop.ticks - min(self.begun[name][1], 1) if prop.ticks else None
            self.carries[name] = tree_unflatten(slots, spec), more
        return pairs

    def _buffers(self) -> dict[tuple[nn.Module, str], Tensor]:
        return {(m, k): b for m in self.modules for k, b in m._buffers.items() if b is not None}

    def _changed_buffers(
        self, before: dict[Any, Tensor], kept: dict[Any, Tensor], versions: dict[Any, int]
    ) -> list[tuple[Tensor, Tensor]]:
        """Those that were written or replaced: replaced ones are written, and all are as they were after a failure."""
        now = self._buffers()
        if now.keys() != before.keys() or any(now[k].shape != b.shape for k, b in before.items()):
            changed = [k for (m, k) in {**before, **now} if (m, k) not in now or (m, k) not in before]
            raise CaptureError("the step", "a module makes, drops or resizes a buffer", got=changed, fix="fixed sizes")
        if self.written is None:  # writes through .data do not count as a new version
            self.written = [
                key for key, b in before.items()
                if now[key] is not b or b._version != versions[key] or not torch.equal(b, kept[key])
            ]  # fmt: skip
        return [(before[key], self.host.chosen(now[key].detach(), kept[key])) for key in self.written]

    def _emitted(self, output: Any) -> list[tuple[Tensor, Tensor]]:
        leaves, spec = tree_flatten(output)
        for v in leaves:
            if not (v is None or isinstance(v, Tensor | bool | int | float | str)):
                raise CaptureError(
                    "the model's output", "it holds what is no tensor, which would stay that of the first batch",
                    expected="tensors in tuples, lists or dicts", got=type(v).__name__, fix="return tensors",
                )  # fmt: skip
        slots = [self._slot(f"output {i}", v) if isinstance(v, Tensor) else v for i, v in enumerate(leaves)]
        self.output = (slots, spec)
        return [(slot, v) for slot, v in zip(slots, leaves, strict=True) if isinstance(v, Tensor)]
