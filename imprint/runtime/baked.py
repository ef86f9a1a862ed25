"""What captures take for granted."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..graph import Graph
from ..graph.learning import Tally
from .settings import settings_of

GROUPS = "the groups of its manager"


@dataclass(frozen=True)
class Baked:
    """Addresses of weights and buffers, what modules and objectives are set to, and the groups.

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
            facts[f"weight {name!r} wants a gradient, or no longer does"] = v.requires_grad
        for name, module in graph.modules_by_name.items():
            parts = [p for owner in (module, *module.incoming) for p in owner.modules()]
            facts[f"a setting of module {name!r}, its objectives or its edges"] = (
                settings_of(parts),
                tuple([tuple(vars(p).values()) for p in module.objectives.params]),
            )
        learning = graph.learning
        if learning is not None:
            facts[GROUPS] = id(learning)
        for group in learning.groups if learning is not None else []:
            prop, name = group.prop, group.prop.name
            facts[f"the weights of group {name!r}"] = tuple([_place(p) for p in prop.params.values()])
            facts[f"the credit of group {name!r}"] = id(prop.credit)
            facts[f"grad_clip= or update= of group {name!r}"] = prop.grad_clip, group.update
            facts[f"a setting of what group {name!r} learns from"] = settings_of(_terms(group))
            facts[f"the monitors of group {name!r}"] = tuple([id(p) for p in prop.probes if not isinstance(p, Tally)])
            facts[f"the optimizers of group {name!r}"] = tuple([id(o) for o in graph.manager.optimizers[name]])
        return cls(facts)

    def differences(self, now: Baked) -> list[str]:
        """What is another way in `now`, in words; of many weights only how many.

        Groups that were formed since are no change: nothing was captured of them.
        """
        names = [name for name in {**self.facts, **now.facts} if self.facts.get(name) != now.facts.get(name)]
        if GROUPS not in self.facts:
            names = [name for name in names if name in self.facts or "group" not in name.split("'")[0]]
        weights = [name for name in names if name.startswith("weight ")]
        if len(weights) > 3:
            return [f"{len(weights)} weights are other tensors", *(n for n in names if n not in weights)]
        return names


def _terms(group: Any) -> list[Any]:
    unit = getattr(group.unit, "unit", group.unit)
    return [part for term in unit.terms.values() for part in term.modules()]


def _place(v: Tensor) -> Hashable:
    return v.data_ptr(), tuple(v.shape), tuple(v.stride()), v.dtype
