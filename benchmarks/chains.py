"""Graphs of GRUs with local heads, and their weights beside those of a loop by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from loops import CLASSES, Chain
from torch import Tensor

import imprint


@dataclass(frozen=True)
class Size:
    """Of a chain and its batch."""

    features: int
    hidden: int
    modules: int = 1
    rows: int = 16
    ticks: int = 64
    device: str = "cpu"

    def batch(self) -> dict[str, Tensor]:
        x, y = torch.randn(self.rows, self.ticks, self.features), torch.randint(CLASSES, (self.rows,))
        return {"x": x.to(self.device), "y": y.to(self.device)}


@dataclass(frozen=True)
class Case:
    """A chain that learns: ticks from step to step, who is responsible, and the ratios asked of a plan."""

    size: Size
    update: int = 1
    credit: Any = None
    asked: float | None = None
    by_hand: bool = True


class World:
    """A graph with a manager, bound; the same weights each time."""

    def __init__(self, case: Case, batch: dict[str, Tensor]) -> None:
        torch.manual_seed(0)
        self.graph, below, self.links, self.batch = imprint.Graph(), imprint.Source("x"), [], batch
        for i in range(case.size.modules):
            module = imprint.Module(f"m{i}", imprint.protos.GRUStack(hidden=case.size.hidden))
            self.links.append((self.graph.connect(below["out"], module["in"]), module))
            below = module
        self.graph.bind(batch)
        self.manager = imprint.attach(
            self.graph, "local_ce", credit=case.credit or imprint.credit.Instant(), num_classes=CLASSES,
            update="tick" if case.update == 1 else case.update, optimizer=lambda params: torch.optim.Adam(params, 1e-3),
        )  # fmt: skip
        self.manager.bind(batch)

    def step(self) -> Any:
        return self.manager.step(self.batch, keep="last")

    def plan(self, **options: Any) -> Callable[[], Any]:
        """A plan's rollout; one rollout is over then."""
        with imprint.record(self.graph) as trace:
            self.graph.rollout(self.batch, keep="last")
        made = trace.compile(**options)
        return lambda: made.rollout(self.batch, keep="last")

    def chain(self, size: Size) -> Chain:
        """By hand, with these weights."""
        chain = Chain(size.features, size.hidden, size.modules).to(size.device)
        for link, weights in zip(chain.links, self.weights(), strict=True):
            with torch.no_grad():
                for p, w in zip(link.parameters(), weights, strict=True):
                    p.copy_(w)
        return chain

    def weights(self) -> list[list[Tensor]]:
        """In the order of a link's."""
        found = []
        for edge, module in self.links:
            params = self.manager.propagators[module.name].params
            head = [p for name, p in params.items() if name.startswith("terms.")]
            found.append([p.detach() for p in (*edge.proj.parameters(), *module.proto.cells[0].parameters(), *head)])
        return found


def flat(weights: list[list[Tensor]]) -> Tensor:
    return torch.cat([w.flatten() for ws in weights for w in ws])
