"""What runs a plan: an interface, and what is registered under which name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from ..errors import ArgumentError
from ..graph import Graph, Result
from .timetable import Timetable

CHOICES: dict[str, tuple[str | None, ...]] = {
    "codegen": (None, "eager", "inductor"), "on_shape": ("error", "pad", "recapture"),
    "on_stale": ("recapture", "error"),
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What ``Recording.compile`` was asked for.

    Attributes:
        fuse_projections: join projections of several edges into one product.
        fuse_port_sums: add what several edges bring within that product.
        codegen: what runs a captured block: ``"eager"`` call by call, ``"inductor"`` compiled; None: the backend's own.
        on_shape: another number of rows is captured anew (``"recapture"``), filled up (``"pad"``) or refused.
        on_stale: what captures take for granted has changed: capture anew, or refuse.
        fallback: what cannot be captured or compiled runs on the graph's own engine, and :meth:`Plan.explain` says so.
        allow_emulation: CUDA graphs may be emulated where there is no CUDA device.
    """

    fuse_projections: bool = True
    fuse_port_sums: bool = True
    codegen: str | None = None
    on_shape: str = "recapture"
    on_stale: str = "error"
    fallback: bool = False
    allow_emulation: bool = False

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ArgumentError(
                    f"compile({name}=)", "unknown", expected=" | ".join(map(repr, choices)),
                    got=repr(getattr(self, name)), fix=f"{name}={choices[-1]!r}",
                )  # fmt: skip
        for name, value in vars(self).items():
            if name not in CHOICES and not isinstance(value, bool):
                raise ArgumentError(
                    f"compile({name}=)", "it is on or off", expected="True | False", got=repr(value), fix=f"{name}=True"
                )


class Backend:
    """Runs a graph by a fixed timetable. A new one is one file:

    >>> @register_backend("mine")
    ... class Mine(Backend):
    ...     '''Runs the graph itself.'''
    ...     def rollout(self, batch, reset, keep):
    ...         return self.graph.rollout(batch, reset, keep)
    >>> registry.pop("mine").name
    'mine'

    It refuses options that it cannot honour when it is made, with an :class:`imprint.errors.ArgumentError`; what has no
    effect on it is said in :meth:`notes`.

    Args:
        graph: what runs; bound, and as it was when it was recorded.
        schedule: who is due when.
        options: what was asked for.

    Attributes:
        rows: of the largest batch that was recorded.
    """

    name: ClassVar[str] = ""

    def __init__(self, graph: Graph, schedule: Timetable, options: Options) -> None:
        self.graph, self.schedule, self.options = graph, schedule, options
        self.rows = 1

    def rollout(self, batch: Mapping[str, Any], reset: bool, keep: str) -> Result:
        """What ``graph.rollout`` does, with the same numbers; ``graph.run`` is this rollout afterwards."""
        raise ArgumentError(
            f"backend {self.name!r}", "it has no rollout", fix="write rollout(self, batch, reset, keep)"
        )

    def notes(self) -> dict[str, str]:
        """What became of each option, by its name; what is not in it is honoured."""
        return {}

    def modules(self) -> list[str]:
        """A line or more a module: what was made of it."""
        return []

    def stale(self) -> list[str]:
        """What has changed of what it takes for granted, beside the structure that was recorded."""
        return []

    def check(self) -> None:
        """Before each rollout: refuse, or take in, what has changed."""

    def refresh(self) -> None:
        """Take the graph as it is now."""

    def close(self) -> None:
        """Let go of what it holds."""


B = TypeVar("B", bound=type[Backend])
registry: dict[str, type[Backend]] = {}


def register_backend(name: str) -> Callable[[B], B]:
    """Make a backend known by `name`: to ``compile``, to its error messages and to the conformance tests.

    Raises:
        ArgumentError: the name is taken, or the class is no Backend.
    """

    def register(cls: B) -> B:
        where = f"register_backend({name!r})"
        if not (isinstance(cls, type) and issubclass(cls, Backend)):
            raise ArgumentError(
                where,
                "not a Backend",
                expected="a subclass of imprint.runtime.Backend",
                got=cls,
                fix="class Mine(imprint.runtime.Backend)",
            )
        if name in registry and registry[name].__qualname__ != cls.__qualname__:
            raise ArgumentError(where, "the name is taken", got=registry[name], fix="another name")
        cls.name = name
        registry[name] = cls
        return cls

    return register
