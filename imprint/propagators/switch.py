"""Learning off, for a block of code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_learning: ContextVar[bool] = ContextVar("imprint_learning", default=True)


def learning_enabled() -> bool:
    """Do propagators learn here?"""
    return _learning.get()


@contextmanager
def no_learning() -> Iterator[None]:
    """Nothing learns inside: propagators, attached models and graphs only run.

    >>> with no_learning():
    ...     learning_enabled()
    False
    """
    token = _learning.set(False)
    try:
        yield
    finally:
        _learning.reset(token)
