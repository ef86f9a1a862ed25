"""Comparing nested states, bit by bit."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Every leaf of a nested state by its path."""
    if isinstance(value, dict):
        return {k: v for key, part in value.items() for k, v in flat(part, f"{path}.{key}").items()}
    if isinstance(value, list | tuple):
        return {k: v for i, part in enumerate(value) for k, v in flat(part, f"{path}.{i}").items()}
    return {path: value.detach().clone() if isinstance(value, Tensor) else value}


def differences(a: Any, b: Any, ignore: tuple[str, ...] = ()) -> list[str]:
    """Paths whose leaves differ in any bit, or that only one has; `ignore` names last parts of paths."""
    a, b = flat(a), flat(b)
    found = sorted(a.keys() ^ b.keys())
    found += [k for k in a if k in b and not _same(a[k], b[k])]
    return [k for k in found if k.rpartition(".")[2] not in ignore]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    return type(a) is type(b) and a == b
