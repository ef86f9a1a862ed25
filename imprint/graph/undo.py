"""Binding is all or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ..utils import random_state, set_random_state


@contextmanager
def undone_on_error(module: nn.Module) -> Iterator[None]:
    """If the block fails, `module` and all it consists of get back the attributes they had, and so do random numbers.

    What the block writes into tensors, or into lists, is not undone.
    """
    drawn = random_state()
    kept = [(m, dict(vars(m)), [(d, dict(d)) for d in vars(m).values() if type(d) is dict]) for m in module.modules()]
    try:
        yield
    except BaseException:
        for m, attributes, inner in kept:
            vars(m).clear()
            vars(m).update(attributes)
            for held, entries in inner:
                held.clear()
                held.update(entries)
        set_random_state(drawn)
        raise
