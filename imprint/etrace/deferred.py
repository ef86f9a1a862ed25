"""Premises that are looked at later, by whoever cannot wait for the device now."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

from ..errors import ImprintError

Found = list[tuple[Tensor, str]]
_found: ContextVar[Found | None] = ContextVar("found", default=None)


@contextmanager
def deferred() -> Iterator[Found]:
    """Inside, premises are gathered, ``(holds, whose)``, in place of being looked at."""
    found: Found = []
    before = _found.set(found)
    try:
        yield found
    finally:
        _found.reset(before)


def require(holds: Tensor, whose: str, error: Callable[[], ImprintError]) -> None:
    """Raise what `error` makes unless all of `holds` is true; or leave it to whoever gathers premises."""
    found = _found.get()
    if found is not None:
        found.append((holds.all(), whose))
    elif not bool(holds.all()):
        raise error()
