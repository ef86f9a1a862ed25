"""What a gradient watcher found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import UnknownNameError, did_you_mean
from ..graph.describe import table

SECTIONS = ("modules", "edges", "ports")


@dataclass(frozen=True)
class Gradient:
    """One module, edge or port.

    Attributes:
        norm: mean over updates of the 2-norm.
        max_abs: largest magnitude of all.
        zero_fraction: share of exact zeros; what no gradient reached counts as zeros.
        updates: how many there were.
        elements: numbers looked at; 0 where there is nothing to learn.
        handed_back: of an edge, mean over updates of the 2-norm of what it hands back to its source: exactly zero where
            it stops the gradient. None of others.
    """

    norm: float
    max_abs: float
    zero_fraction: float
    updates: int
    elements: int
    handed_back: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields; without ``handed_back`` where there is none."""
        return {k: v for k, v in vars(self).items() if v is not None}


@dataclass(frozen=True, repr=False)
class GradientSummary:
    """Gradients by module, edge and port; printing it gives tables.

    Attributes:
        modules: of the parameters of each module's proto.
        edges: of each edge's projection, by the edge's name.
        ports: with respect to what a port emits (``enc.out``) or takes in (``enc.in``).
        updates: the most that any of them had.
        left_out: how many of each section ``top_k`` left out.

    >>> print(GradientSummary({"enc": Gradient(0.5, 0.25, 0.125, 2, 8)}, {}, {}, updates=2))
    gradients over 2 updates
    module  norm  max |g|  zeros
    ------  ----  -------  -----
    enc      0.5     0.25  12.5%
    """

    modules: Mapping[str, Gradient]
    edges: Mapping[str, Gradient]
    ports: Mapping[str, Gradient]
    updates: int
    left_out: Mapping[str, int] = field(default_factory=dict)

    def section(self, name: str) -> Mapping[str, Gradient]:
        """``"modules"``, ``"edges"`` or ``"ports"``.

        Raises:
            UnknownNameError: there is no such section.
        """
        if name not in SECTIONS:
            raise UnknownNameError("gradient summary", f"unknown section {name!r}", fix=did_you_mean(name, SECTIONS))
        return {"modules": self.modules, "edges": self.edges, "ports": self.ports}[name]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers: ``{section: {name: {norm, max_abs, …}}, "updates": …}``."""
        made: dict[str, Any] = {s: {n: g.to_dict() for n, g in self.section(s).items()} for s in SECTIONS}
        return {**made, "updates": self.updates}

    def __repr__(self) -> str:
        parts = [f"gradients over {self.updates} update{'s' * (self.updates != 1)}"]
        parts += [_section(name, self.section(name), self.left_out.get(name, 0)) for name in SECTIONS
                  if self.section(name)]  # fmt: skip
        return "\n".join([parts[0], "\n\n".join(parts[1:])]).rstrip()


def _section(name: str, gradients: Mapping[str, Gradient], left_out: int) -> str:
    edges = name == "edges"
    rows = [(name.removesuffix("s"), "norm", "max |g|", "zeros", *["handed back"] * edges)]
    for key, g in gradients.items():
        own = (_short(g.norm), _short(g.max_abs), f"{g.zero_fraction:.1%}") if g.elements else ("-", "-", "-")
        rows.append((key, *own, *[_short(g.handed_back or 0.0)] * edges))
    made = table(rows, right=[1, 2, 3, 4])
    return f"{made}\n… and {left_out} more" if left_out else made


def _short(value: float) -> str:
    return f"{value:.3g}"
