"""Which dimension of each tensor is the batch, also where another one happens to be as long."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice, product
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from .options import Inputs

Dims = list["int | None"]
Run = Callable[[Inputs], Sequence[Any]]
TRIALS = 32


def batch_dims(inputs: Inputs, outputs: Sequence[Any], batch: int, run: Run) -> tuple[Dims, Dims]:
    """The batch dimension of every leaf of `inputs`, and of all `outputs`; None where there is none.

    Sizes decide. Where two dimensions are as long as the batch, `run` is called on inputs with one row more, and
    the dimensions that grow are the batch's; what cannot be told so is the first one that fits.

    Args:
        inputs: what the model was run on.
        outputs: what it made; the first of them is the model's output.
        batch: the number of samples.
        run: the model: ``inputs -> outputs``.
    """
    leaves, spec = tree_flatten((inputs.args, inputs.kwargs))
    fits = [_fits(v, batch) for v in leaves]
    made = [_fits(v, batch) for v in outputs]
    guess = [f[0] if f else None for f in fits], [f[0] if f else None for f in made]
    if max(map(len, [*fits, *made]), default=0) < 2:
        return guess
    options: list[Dims] = [[*f, None] if len(f) > 1 else [*f] or [None] for f in fits]
    for dims in islice(product(*options), TRIALS):
        if all(d is None for d in dims):
            continue
        args, kwargs = tree_unflatten([_grown(v, d) for v, d in zip(leaves, dims, strict=True)], spec)
        try:
            grown = run(Inputs(args, kwargs))
        except Exception:  # a model may refuse a wrong guess in any way it likes
            continue
        found = [_growing(v, w, f) for v, w, f in zip(outputs, grown, made, strict=False)]
        if found and found[0] is not None:
            return list(dims), found
    return guess


def _fits(v: Any, batch: int) -> list[int]:
    return [d for d, size in enumerate(v.shape) if size == batch] if isinstance(v, Tensor) else []


def _grown(v: Any, dim: int | None) -> Any:
    return v if dim is None else torch.cat([v, v.narrow(dim, 0, 1)], dim)


def _growing(v: Any, grown: Any, fits: list[int]) -> int | None:
    if not isinstance(grown, Tensor) or grown.dim() != v.dim():
        return None
    return next((d for d in fits if grown.shape[d] == v.shape[d] + 1), None)
