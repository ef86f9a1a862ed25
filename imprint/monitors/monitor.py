"""What can be read and reset."""

from __future__ import annotations

from abc import ABC, abstractmethod

from ..errors import DtypeError


class Monitor(ABC):
    """Gathers metrics while a model runs. What it gathers stays on its device until it is read.

    >>> class Calls(Monitor):
    ...     def reset(self):
    ...         self.calls = 0
    ...     def metrics(self):
    ...         return f"[calls] {self.calls}"
    """

    @abstractmethod
    def reset(self) -> None:
        """Start anew."""

    @abstractmethod
    def metrics(self) -> str:
        """One line a thing watched; reading makes the host wait for the device."""


class Group(Monitor):
    """Several monitors read and reset as one, in the order they were added.

    >>> group = Group()
    >>> group.metrics()
    ''
    """

    def __init__(self) -> None:
        self.monitors: list[Monitor] = []

    def add(self, monitor: Monitor) -> Monitor:
        """Add a monitor, and return it.

        Raises:
            DtypeError: it is no monitor.
        """
        if not isinstance(monitor, Monitor):
            raise DtypeError("monitors.Group", "this is no monitor", got=type(monitor).__name__, fix="subclass Monitor")
        self.monitors.append(monitor)
        return monitor

    def reset(self) -> None:
        """Reset all."""
        for monitor in self.monitors:
            monitor.reset()

    def metrics(self) -> str:
        """The lines of all."""
        return "\n".join(monitor.metrics() for monitor in self.monitors)
