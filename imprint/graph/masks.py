"""Which weights of a projection exist: masks of shape ``[port, source]``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError, ShapeError

Mask = Callable[[int, int], Tensor]
"""``mask(rows, columns) -> [rows, columns]`` of zeros and ones; rows are units of the port, columns of the source."""


def band(bandwidth: float) -> Mask:
    r"""Weights near the (scaled) diagonal: :math:`|j - i\,(C-1)/(R-1)| \le b`.

    >>> band(1)(3, 3)
    tensor([[1., 1., 0.],
            [1., 1., 1.],
            [0., 1., 1.]])
    """
    _check("masks.band", "bandwidth", bandwidth, "a number of at least 0", _number(bandwidth) and bandwidth >= 0, 4)

    def mask(rows: int, columns: int) -> Tensor:
        i, j = _grid(rows, columns)
        return ((j - i * (columns - 1) / max(rows - 1, 1)).abs() <= bandwidth + 1e-9).float()

    return mask


def keep_every_kth(k: int) -> Mask:
    """Source columns 0, k, 2k, …

    >>> keep_every_kth(2)(1, 5)
    tensor([[1., 0., 1., 0., 1.]])
    """
    _check("masks.keep_every_kth", "k", k, "1, 2, …", _count(k), 2)
    return lambda rows, columns: (_grid(rows, columns)[1] % k == 0).float()


def random(density: float, seed: int = 0) -> Mask:
    """Each weight with probability `density`, the same ones for the same seed and shape."""
    _check("masks.random", "density", density, "a share, 0..1", _number(density) and 0 <= density <= 1, 0.1)

    def mask(rows: int, columns: int) -> Tensor:
        draw = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed))
        return (draw < density).float()

    return mask


def block(blocks: int) -> Mask:
    """Block diagonal: rows and columns are cut into `blocks` runs, and a row sees the columns of its own run.

    >>> block(2)(2, 4)
    tensor([[1., 1., 0., 0.],
            [0., 0., 1., 1.]])
    """
    _check("masks.block", "blocks", blocks, "1, 2, …", _count(blocks), 4)

    def mask(rows: int, columns: int) -> Tensor:
        i, j = _grid(rows, columns)
        return (
            (i * blocks).div(rows, rounding_mode="floor") == (j * blocks).div(columns, rounding_mode="floor")
        ).float()

    return mask


def diagonal() -> Mask:
    """Unit i sees unit i alone."""
    return lambda rows, columns: torch.eye(rows, columns)


def lower() -> Mask:
    """Unit i sees units 0..i."""
    return lambda rows, columns: torch.ones(rows, columns).tril()


def make_mask(mask: Mask | Tensor, rows: int, columns: int, where: str) -> Tensor:
    """The mask of a weight ``[rows, columns]``.

    Raises:
        ShapeError: it has another shape.
        ArgumentError: it is not a mask, or not of zeros and ones.
    """
    made = mask if isinstance(mask, Tensor) else mask(rows, columns) if callable(mask) else None
    if not isinstance(made, Tensor):
        raise _no_mask(where, mask)
    if tuple(made.shape) != (rows, columns):
        raise ShapeError(
            where, "the mask has another shape than the weight", expected=(rows, columns), got=tuple(made.shape),
            fix="rows are units of the port, columns of the source; or a function of both: masks.band(4)",
        )  # fmt: skip
    if not ((made == 0) | (made == 1)).all():
        raise ArgumentError(
            where, "a mask has zeros and ones only", expected="0 and 1", got=made.unique()[:4].tolist(),
            fix="(mask != 0).float()",
        )  # fmt: skip
    return made


def check_constraint(where: str, mask: Any, max_abs: Any) -> None:
    """Refuse what constrains no weights, before they are there.

    Raises:
        ArgumentError: neither mask nor bound, or what is none.
    """
    if mask is None and max_abs is None:
        raise ArgumentError(where, "there is nothing to hold", expected="mask= or max_abs=", fix="max_abs=0.3")
    if mask is not None and not isinstance(mask, Tensor) and not callable(mask):
        raise _no_mask(where, mask)
    expected = "a number of at least 0"
    _check(where, "max_abs", max_abs, expected, max_abs is None or (_number(max_abs) and max_abs >= 0), 0.3)


def _no_mask(where: str, mask: Any) -> ArgumentError:
    expected = "a tensor or f(rows, columns) -> tensor"
    return ArgumentError(where, "not a mask", expected=expected, got=repr(mask), fix="imprint.masks.band(4)")


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _check(where: str, name: str, value: Any, expected: str, fits: bool, example: float) -> None:
    if not fits:
        fix = f"for example {name}={example}"
        raise ArgumentError(where, f"{name}= does not fit", expected=expected, got=repr(value), fix=fix)


def _grid(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    return torch.arange(rows)[:, None].expand(rows, columns), torch.arange(columns)[None].expand(rows, columns)
