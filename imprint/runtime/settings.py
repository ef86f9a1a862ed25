"""What modules are set to, as far as it is no tensor."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

from torch import Tensor, nn

from ..objectives import Labels

PASSING = ("training", "frozen_by", "borrowed")
"""Attributes that say what a module is doing, not what it is."""


def settings_of(modules: Iterable[nn.Module]) -> tuple[Hashable, ...]:
    """Numbers, words and choices in the attributes of modules, and whether somebody put another forward in place.

    >>> drop = nn.Dropout(0.5)
    >>> before = settings_of([drop])
    >>> drop.p = 0.1
    >>> settings_of([drop]) == before
    False
    """
    return tuple(
        [tuple([(k, _told(v)) for k, v in vars(m).items() if k not in PASSING and _tells(k, v)]) for m in modules]
    )


def _tells(name: str, value: Any) -> bool:
    if name == "forward":
        return True
    return not name.startswith("_") and isinstance(value, bool | int | float | str | tuple | list | Labels | type(None))


def _told(value: Any) -> Hashable:
    """What is compared of a value; of what is no plain value only which it is."""
    if isinstance(value, Labels):
        weight = None if value.weight is None else (id(value.weight), value.weight._version)
        return value.num_classes, value.ignore_index, value.label_smoothing, weight
    if isinstance(value, tuple | list):
        return tuple([_told(v) for v in value])
    if isinstance(value, bool | int | float | str | type(None)):
        return value
    return (id(value), value._version) if isinstance(value, Tensor) else id(value)
