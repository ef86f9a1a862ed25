"""What captures take for granted."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..graph import Graph


@dataclass(frozen=True)
class Baked:
    """Addresses of weights and buffers, and the groups; never a number.

    Attributes:
        facts: by words for it.
    """

    facts: dict[str, Hashable]

    @classmethod
    def of(cls, graph: Graph) -> Baked:
        """Now."""
        facts: dict[str, Any] = {}
        for name, v in [*graph.named_parameters(), *graph.named_buffers()]:
            facts[f"weight {name!r} is another tensor"] = _place(v)
        learning = graph.learning
        if learning is not None:
            facts["the groups of its manager were formed anew"] = id(learning)
        for group in learning.groups if learning is not None else []:
            prop = group.prop
            facts[f"group {prop.name!r} has other weights"] = tuple(_place(p) for p in prop.params.values())
            facts[f"group {prop.name!r} has another credit"] = (id(prop.credit), prop.grad_clip, group.update)
        return cls(facts)

    def differences(self, now: Baked) -> list[str]:
        """What is another way in `now`, in words; of what is new nothing was taken for granted."""
        return [name for name, fact in self.facts.items() if now.facts.get(name) != fact]


def _place(v: Tensor) -> Hashable:
    return v.data_ptr(), tuple(v.shape), tuple(v.stride()), v.dtype, v.requires_grad
