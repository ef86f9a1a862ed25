"""What may look at a graph while it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from .rollout import Rollout

Tapping = Callable[[str, Tensor], Tensor]


class Observer:
    """Watches rollouts; every method may be left as it is. ``graph.observers.append(observer)`` makes it known."""

    def rolling(self, run: Rollout, learns: bool) -> None:
        """The graph is bound, has its groups, and is about to run; `learns`: a manager's groups learn in this run."""

    def rolled(self, run: Rollout) -> None:
        """All ticks have passed."""


class Observers(list[Observer]):
    """Who watches a graph; a copy or a pickle of it is empty: copies of a watched graph are not watched."""

    def __reduce__(self) -> tuple[type[Observers], tuple[()]]:
        return Observers, ()


class Tap:
    """Sees what a module combines and emits, or an edge reads, and hands it on; ``None`` in copies and pickles.

    Args:
        see: ``(name, value) -> value``: of a port ``module.port``, of an edge its name. What comes back takes the
            value's place and has to be equal to it.
    """

    def __init__(self, see: Tapping) -> None:
        self.see = see

    def __call__(self, name: str, value: Tensor) -> Tensor:
        """What takes the place of `value`."""
        return self.see(name, value)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return type(None), ()
