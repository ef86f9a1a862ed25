"""What monitors add up in a captured step, in tensors that stay."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_flatten_with_path, tree_unflatten

from ..errors import CaptureError
from ..monitors.metric import Metric
from ..runtime.store import Store
from .compiled_host import StepHost

if TYPE_CHECKING:
    from .manager import Manager

SKIPPED = ("sums", "labels")
FIX = "leave it out of monitors=, or manager.compiled.close()"


class Gathered:
    """The sums of all monitors, and what else they remember as tensors; read and written in place by captured steps.

    Args:
        metrics: each once.
        store: where the tensors are kept; between steps the monitors hold the same ones.
    """

    def __init__(self, metrics: list[Metric], store: Store) -> None:
        self.metrics, self.store = metrics, store
        self.pairs: list[tuple[Tensor, Tensor]] = []
        self.added: list[tuple[Metric, tuple[str, str], list[Tensor | float]]] = []
        self.after: list[dict[str, Any]] = []

    @contextmanager
    def substituted(self) -> Iterator[None]:
        """Let them start from nothing added up, on state in tensors that stay; afterwards all is as it was."""
        before = [dict(vars(m)) for m in self.metrics]
        self.plain = [_plain(m) for m in self.metrics]
        for m in self.metrics:
            m.sums = {}
            vars(m).update({k: self._held(m, k, v) for k, v in _trees(m).items()})
        try:
            yield
        finally:
            for m, attributes in zip(self.metrics, before, strict=True):
                vars(m).clear()
                vars(m).update(attributes)

    def _held(self, m: Metric, attribute: str, value: Any) -> Any:
        """The same tree, of copies of tensors that stay: a monitor may write into them."""
        found, spec = tree_flatten_with_path(value)
        held = [self._slot(m, attribute, path, v).clone() if isinstance(v, Tensor) else v for path, v in found]
        return tree_unflatten(held, spec)

    def _slot(self, m: Metric, attribute: str, path: Any, v: Tensor) -> Tensor:
        return self.store.hold(f"monitor {m.name}: {attribute}{path} {tuple(v.shape)} {v.dtype}", v.detach())

    def collect(self, host: StepHost) -> None:
        """Within :meth:`substituted`: what this step has added, as writes to the tensors that stay.

        Raises:
            CaptureError: a monitor counts in Python, or remembers what is no tensor.
        """
        self.pairs, self.added, self.after = [], [], []
        for m, plain in zip(self.metrics, self.plain, strict=True):
            for name, pair in m.sums.items():
                self.added.append((m, name, [self._sum(m, name, i, v, host) for i, v in enumerate(pair)]))
            if _plain(m) != plain:
                changed = sorted({k for k, _ in {*_plain(m).items()} ^ {*plain.items()}}, key=str)
                raise CaptureError(
                    f"monitor {m.name!r}", "it counts in Python, which a compiled step would do once and never again",
                    expected="tensors in attributes, lists or dicts", got=", ".join(k for k, _ in changed), fix=FIX,
                )  # fmt: skip
            self.after.append({k: self._kept(m, k, v, host) for k, v in _trees(m).items()})

    def _sum(self, m: Metric, name: tuple[str, str], i: int, v: Tensor | float, host: StepHost) -> Tensor | float:
        if not isinstance(v, Tensor):
            return v
        slot = self.store.hold(f"monitor {m.name}: {name}, {i}", v)
        self.pairs.append((slot, host.chosen(slot + v, slot)))
        return slot

    def _kept(self, m: Metric, attribute: str, value: Any, host: StepHost) -> Any:
        found, spec = tree_flatten_with_path(value)
        slots: list[Any] = []
        for path, v in found:
            if isinstance(v, Tensor):
                slots.append(self._slot(m, attribute, path, v))
                self.pairs.append((slots[-1], host.chosen(v, slots[-1])))
            else:
                slots.append(v)
        return tree_unflatten(slots, spec)

    def load(self) -> None:
        """Before a step: what somebody else put into the monitors goes to the tensors that stay."""
        for m in self.metrics:
            for k, value in _trees(m).items():
                for path, v in tree_flatten_with_path(value)[0]:
                    if isinstance(v, Tensor) and (slot := self._slot(m, k, path, v)) is not v:
                        slot.copy_(v)
        for m, name, pair in self.added:
            for now, kept in zip(m.sums.get(name, (0.0, 0.0)), pair, strict=True):
                if isinstance(kept, Tensor) and now is not kept:
                    kept.copy_(torch.as_tensor(now))

    def give(self) -> None:
        """After a step that went through: monitors hold the tensors that stay."""
        for m, name, pair in self.added:
            before = m.sums.get(name, (0.0, 0.0))
            a, b = (v if isinstance(v, Tensor) else now + v for now, v in zip(before, pair, strict=True))
            m.sums[name] = a, b
        for m, state in zip(self.metrics, self.after, strict=True):
            for k, value in state.items():
                setattr(m, k, tree_unflatten(*tree_flatten(value)))  # containers of its own


def watching(manager: Manager) -> list[Metric]:
    """All monitors that watch a unit, each once."""
    probes = [*manager.probes.values(), *(p for prop in manager.propagators.values() for p in prop.probes)]
    return list({id(p): p for p in probes if isinstance(p, Metric)}.values())


def _trees(m: Metric) -> dict[str, Any]:
    """What it remembers as tensors besides its sums, by attribute."""
    found = {k: v for k, v in vars(m).items() if k not in SKIPPED}
    return {k: v for k, v in found.items() if isinstance(v, Tensor | dict | list | tuple)}


def _plain(m: Metric) -> dict[tuple[str, str], Any]:
    """Its other values, by attribute and place in it; objects by their id."""
    found: dict[tuple[str, str], Any] = {}
    for k, v in vars(m).items():
        if k not in SKIPPED:
            leaves = tree_flatten_with_path(v)[0]
            found |= {(k, str(path)): _value(leaf) for path, leaf in leaves if not isinstance(leaf, Tensor)}
    return found


def _value(v: Any) -> Any:
    return v if v is None or isinstance(v, bool | int | float | str) else (type(v).__name__, id(v))


def form_of(m: Metric) -> tuple[Any, ...]:
    """What of its state is part of a captured step: everything but the numbers in its tensors.

    Raises:
        CaptureError: it remembers objects of its own, in lists or dicts.
    """
    form = []
    for k, v in vars(m).items():
        if k in SKIPPED:
            continue
        if not isinstance(v, Tensor | dict | list | tuple):
            form.append((k, _value(v)))
            continue
        leaves, spec = tree_flatten(v)
        for leaf in leaves:
            if not (leaf is None or isinstance(leaf, Tensor | bool | int | float | str)):
                raise CaptureError(
                    f"monitor {m.name!r}", "it remembers what is no tensor, which a compiled step cannot move on",
                    expected="tensors in attributes, lists or dicts", got=f"{k}: {type(leaf).__name__}", fix=FIX,
                )  # fmt: skip
        form.append((k, repr(spec) if leaves else (), *[_size(leaf) for leaf in leaves]))
    return tuple(form)


def _size(v: Any) -> Any:
    return (tuple(v.shape), v.dtype) if isinstance(v, Tensor) else v
