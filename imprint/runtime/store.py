"""Tensors that outlive a block of ticks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..utils import random_state, set_random_state


class Store:
    """Tensors by name, each made once: blocks read and write them in place, so that a captured block finds them again.

    >>> store = Store()
    >>> held = store.hold("h", torch.ones(2))
    >>> held.zero_() is store.hold("h", torch.ones(2))
    True
    """

    def __init__(self) -> None:
        self.held: dict[str, Tensor] = {}

    def hold(self, name: str, like: Tensor) -> Tensor:
        """The tensor of that name; made for a shape, dtype and place like these if there is none yet."""
        held = self.held.get(name)
        if held is None or held.shape != like.shape or held.dtype != like.dtype or held.device != like.device:
            held = self.held[name] = torch.zeros(like.shape, dtype=like.dtype, device=like.device)
        return held

    def __getitem__(self, name: str) -> Tensor:
        return self.held[name]

    def __contains__(self, name: str) -> bool:
        return name in self.held


@contextmanager
def undone(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Whatever the block writes to these tensors, and draws of random numbers, is taken back.

    What was only read is not written either: it may be part of somebody's graph, or watched for changes.
    """
    kept, drawn = [(v, v.detach().clone()) for v in tensors], random_state()
    try:
        yield
    finally:
        with torch.no_grad():
            for v, before in kept:
                if not torch.equal(v, before):  # versions do not tell: BatchNorm writes without counting
                    v.copy_(before)
        set_random_state(drawn)


def write_all(pairs: Iterable[tuple[Tensor, Tensor]], fixed: Iterable[Tensor]) -> None:
    """Copy every value into its target, as if at once: values that share memory with `fixed` tensors are read first."""
    places = {v.untyped_storage()._cdata for v in fixed}
    todo = [(target, value) for target, value in pairs if target is not value]
    read = [value.clone() if value.untyped_storage()._cdata in places else value for _, value in todo]
    for (target, _), value in zip(todo, read, strict=True):
        target.copy_(value)
