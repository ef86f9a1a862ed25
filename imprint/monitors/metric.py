"""Numbers per unit, gathered on the device while a model learns, read when asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from ..errors import ArgumentError, UnknownNameError, did_you_mean
from ..objectives import Labels
from ..propagators.probe import Learner, Probe

Table = dict[str, dict[str, float]]
"""``{unit: {column: value}}``"""
registry: dict[str, type[Metric]] = {}
M = TypeVar("M", bound="type[Metric]")


class Metric(Probe):
    """Means of one number or several per unit, since the last reset.

    Subclass it, call :meth:`add` from a probe's method, register it. A metric has one column of its own name, or
    several, named after what they hold. Sums are kept in double precision.

    >>> from imprint.propagators import Propagator
    >>> class Peak(Metric):
    ...     '''Largest weight after each update.'''
    ...     name = "peak"
    ...     def updated(self, prop, grads):
    ...         self.add(prop.name, max(p.detach().abs().max() for p in prop.params.values()))
    >>> peak = Peak()
    >>> for value in (1.0, 4.0):
    ...     peak.updated(Propagator(name="fc", params={"w": torch.tensor([value, -2.0])}), {})
    >>> peak.read()
    {'fc': {'peak': 3.0}}

    Attributes:
        name: what it is registered under, and its column in tables and files.
        labels: how targets are read; known once a step has started.
    """

    name: ClassVar[str] = ""

    def __init__(self) -> None:
        self.labels: Labels | None = None
        self.reset()

    def started(self, learner: Learner, x: Any, y: Tensor | None) -> None:
        """Remember how targets are read."""
        self.labels = learner.labels

    def reset(self) -> None:
        """Start new means. What a metric has learned stays."""
        self.sums: dict[tuple[str, str], tuple[Tensor | float, Tensor | float]] = {}

    def add(self, unit: str, value: Tensor | float, count: Tensor | float = 1, column: str = "") -> None:
        """Add `value` (a sum over `count` things) to a column of `unit`; nothing is read from the device."""
        key = (unit, column or self.name)
        total, things = self.sums.get(key, (0.0, 0.0))
        self.sums[key] = _plus(total, value), _plus(things, count)

    def read(self) -> Table:
        """The means; a column nothing was counted for is left out. This waits for the device, once."""
        flat = _host([v for pair in self.sums.values() for v in pair])
        table: Table = {}
        for (unit, column), total, count in zip(self.sums, flat[::2], flat[1::2], strict=True):
            if count:
                table.setdefault(unit, {})[column] = total / count
        return table

    def state_dict(self) -> dict[str, Any]:
        """What an exact continuation needs: plain values and copies of tensors."""
        return {"sums": [[*key, *(_kept(v) for v in pair)] for key, pair in self.sums.items()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The counterpart of :meth:`state_dict`."""
        self.sums = {(unit, column): (_kept(a), _kept(b)) for unit, column, a, b in state["sums"]}


def _plus(total: Tensor | float, value: Tensor | float) -> Tensor | float:
    if not isinstance(value, Tensor):
        return total + value
    if not isinstance(total, Tensor):
        wide = torch.float32 if value.device.type == "mps" else torch.float64
        total = torch.full((), total, dtype=wide, device=value.device)
    return total.to(value.device).add_(value.detach())


def _kept(value: Tensor | float) -> Tensor | float:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _host(values: list[Tensor | float]) -> list[float]:
    tensors = [v for v in values if isinstance(v, Tensor)]
    if not tensors:
        return [float(v) for v in values]
    read = iter(torch.stack([v.to(tensors[0].device) for v in tensors]).tolist())
    return [next(read) if isinstance(v, Tensor) else float(v) for v in values]


def gather(metrics: Iterable[Metric], units: Iterable[str], reset: bool = True) -> Table:
    """What all `metrics` found for these units, in this order."""
    table: Table = {name: {} for name in units}
    for metric in metrics:
        for unit, columns in metric.read().items():
            if unit in table:
                table[unit].update(columns)
        if reset:
            metric.reset()
    return {name: columns for name, columns in table.items() if columns}


def register_monitor(name: str) -> Callable[[M], M]:
    """Make a metric known by `name` to ``attach(monitors=...)``.

    Raises:
        ArgumentError: the name is taken.
    """

    def register(cls: M) -> M:
        if name in registry and registry[name].__qualname__ != cls.__qualname__:
            raise ArgumentError(
                f"register_monitor({name!r})", "the name is taken", got=registry[name], fix="another name"
            )
        cls.name = name
        registry[name] = cls
        return cls

    return register


def make_metric(metric: str | Metric | type[Metric]) -> Metric:
    """A metric from its name, class or instance.

    Raises:
        UnknownNameError: nothing is registered under that name.
        ArgumentError: it is no metric.

    >>> make_metric("los")
    Traceback (most recent call last):
    imprint.errors.UnknownNameError: ...
    """
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, str):
        if metric not in registry:
            raise UnknownNameError("monitors", f"unknown monitor {metric!r}", fix=did_you_mean(metric, registry))
        metric = registry[metric]
    if not (isinstance(metric, type) and issubclass(metric, Metric)):
        raise ArgumentError(
            "monitors", "not a metric", expected="a name, or a Metric", got=repr(metric), fix="monitors=['loss']"
        )
    return metric()


def make_metrics(metrics: str | Iterable[str | Metric | type[Metric]]) -> list[Metric]:
    """One metric, or several of different names.

    Raises:
        ArgumentError: two have one name, or they are no metrics at all.

    >>> make_metrics(["loss", "loss"])
    Traceback (most recent call last):
    imprint.errors.ArgumentError: ...
    """
    if not isinstance(metrics, str | Iterable):
        raise ArgumentError(
            "monitors", "neither a name nor several", expected="names or metrics", got=repr(metrics),
            fix="monitors=() for none",
        )  # fmt: skip
    made = [make_metric(m) for m in ([metrics] if isinstance(metrics, str) else metrics)]
    names = [m.name for m in made]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ArgumentError(
            "monitors",
            f"two are called {twice[0]!r}",
            got=names,
            fix="name each once; your own class needs its own name",
        )
    return made
