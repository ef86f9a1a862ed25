"""A graph with a fixed schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import StateError
from ..graph import Graph, Result
from ..graph.rollout import Rollout
from .backend import Backend
from .blueprint import Blueprint
from .timetable import Timetable


class Plan:
    """Runs batches by a recorded schedule: it has the graph's ``rollout``, ``loss`` and ``losses``.

    Weights are the graph's own: an optimizer made for ``graph.parameters()`` trains the plan, and a manager attached
    before the recording learns in its rollouts. What was recorded may not change: modules, edges, rates, sizes, stopped
    gradients, and whether there is a manager; a plan that has become stale says so instead of running. Rows, ticks and
    lengths are those of each batch, unless the backend says otherwise.

    Made by :meth:`imprint.runtime.Recording.compile`.

    Attributes:
        graph: what it runs.
        schedule: who is due when.
        backend: what runs it.
    """

    def __init__(self, graph: Graph, blueprint: Blueprint, schedule: Timetable, backend: Backend) -> None:
        self.graph, self.blueprint, self.schedule, self.backend = graph, blueprint, schedule, backend
        self._run: Rollout | None = None
        self._closed = False

    def rollout(self, batch: Mapping[str, Any], reset: bool = True, keep: str = "all") -> Result:
        """As :meth:`imprint.Graph.rollout`.

        Raises:
            StateError: the graph is no longer what was recorded; says what has changed.
        """
        self.check()
        self.backend.check()
        out = self.backend.rollout(batch, reset, keep)
        self._run = self.graph.run
        return out

    def loss(self) -> Tensor:
        """The sum of :meth:`losses` of the plan's last rollout."""
        return self._rolled("loss").loss()

    def losses(self) -> dict[str, Tensor]:
        """Weighted loss of every objective over the plan's last rollout."""
        return self._rolled("losses").losses()

    def explain(self) -> str:
        """The schedule, the backend, what became of each option, and what was made of each module."""
        notes = self.backend.notes()
        options = [f"{k}={v}: {notes.get(k, 'honoured')}" for k, v in vars(self.backend.options).items()]
        return "\n".join([f"{self!r}", *options, *self.backend.modules(), "", repr(self.schedule)])

    def stale(self) -> list[str]:
        """What has changed since it was compiled, in words; nothing if it can run."""
        if not self.graph.bound:
            return ["modules or edges were added, and the graph is not bound"]
        changed = self.blueprint.differences(Blueprint.of(self.graph))
        return changed or self.backend.stale()

    def refresh(self) -> None:
        """Take the graph as it is now: its structure, its manager, its optimizers."""
        if self._closed:
            raise StateError("plan.refresh", "it is closed", fix="record a rollout and compile again")
        self.blueprint = Blueprint.of(self.graph)
        self.schedule = self.backend.schedule = Timetable(self.blueprint)
        self.backend.refresh()

    def close(self) -> None:
        """Let go of all memory that it holds; it does not run any more."""
        self.backend.close()
        self._closed, self._run = True, None

    def check(self) -> None:
        """Refuse a graph that is no longer what was recorded."""
        if self._closed:
            raise StateError("plan.rollout", "it is closed", fix="record a rollout and compile again")
        if self.graph.bound:
            changed = self.blueprint.differences(Blueprint.of(self.graph))
        else:
            changed = ["modules or edges were added, and the graph is not bound"]
        if changed and self.graph.bound and self.backend.options.on_stale == "recapture":
            self.refresh()
        elif changed:
            raise StateError(
                "plan.rollout", "the graph is not the one that was recorded", got="; ".join(changed),
                fix="plan.refresh(), or compile(on_stale='recapture')",
            )  # fmt: skip

    def _rolled(self, what: str) -> Graph:
        if self._run is None:
            raise StateError(f"plan.{what}", "nothing has been rolled out", fix="plan.rollout(batch)")
        if self.graph.run is not self._run:
            raise StateError(
                f"plan.{what}", "the graph has rolled out something else since", fix=f"graph.{what}(), or plan.rollout"
            )
        return self.graph

    def __repr__(self) -> str:
        modules, edges = len(self.blueprint.modules), len(self.blueprint.edges)
        return f"Plan(backend={self.backend.name!r}, modules={modules}, edges={edges}, period={self.schedule.period})"
