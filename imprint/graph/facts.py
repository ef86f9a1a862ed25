"""What a tick is, before it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Facts:
    """What is known of a tick before it runs.

    Attributes:
        tick: its number in the rollout; in a captured tick a tensor.
        steps, emits, resets: names of the modules that do.
    """

    tick: Any
    steps: frozenset[str]
    emits: frozenset[str]
    resets: frozenset[str] = frozenset()
