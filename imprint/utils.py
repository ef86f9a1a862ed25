"""Small helpers that stand beside the maths."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np
import torch

from .errors import ShapeError


def shape_numel(shape: Iterable[int]) -> int:
    """Number of elements of a tensor of this shape: the product of its sizes.

    Args:
        shape: sizes, as a tuple, a list or a ``torch.Size``.

    Raises:
        ShapeError: a size is negative.

    >>> shape_numel((128, 32, 32)), shape_numel(())
    (131072, 1)
    """
    sizes = [int(d) for d in shape]
    if any(d < 0 for d in sizes):
        raise ShapeError("shape_numel", "a size is negative", expected="sizes >= 0", got=tuple(sizes))
    return prod(sizes)


def random_state() -> dict[str, Any]:
    """Where the global random numbers of torch (CPU, and CUDA once it is in use), Python and NumPy stand.

    Tensors and plain values only, so that it can be read back with ``weights_only=True``.

    >>> before = random_state()
    >>> drawn = torch.rand(1), random.random()
    >>> set_random_state(before)
    >>> drawn == (torch.rand(1), random.random())
    True
    """
    version, words, gauss = random.getstate()
    kind, keys, *rest = _numpy_state()
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "python": [version, torch.tensor(words), gauss],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """The counterpart of :func:`random_state`; CUDA's is set where the machine has as many devices."""
    torch.set_rng_state(state["cpu"].cpu())
    if state["cuda"] and torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002


def _numpy_state() -> tuple[Any, ...]:
    return np.random.get_state()  # type: ignore[return-value]  # noqa: NPY002  (what user code may draw from)


@contextmanager
def same_random_state(*generators: torch.Generator) -> Iterator[None]:
    """Random numbers drawn inside are given back: after the block the next ones are as if it had not run.

    Args:
        generators: further ones than the global ones.

    >>> before = torch.get_rng_state()
    >>> with same_random_state():
    ...     _ = torch.rand(3)
    >>> torch.equal(torch.get_rng_state(), before)
    True
    """
    state, own = random_state(), [g.get_state() for g in generators]
    try:
        yield
    finally:
        set_random_state(state)
        for generator, its in zip(generators, own, strict=True):
            generator.set_state(its)
