"""All that a refused call must leave as it was, and the refusal itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from imprint.errors import ImprintError
from imprint.graph import Graph

from references.states import differences, flat


def everything(graph: Graph) -> dict[str, Any]:
    """Weights, optimizers, structure, declarations, modes, counters and random numbers; copies."""
    modules, manager = graph.modules_by_name, graph.manager
    return flat({
        "weights": graph.state_dict(),
        "manager": manager.state_dict() if graph.learning is not None else None,
        "attached": manager is not None,
        "steps": 0 if manager is None else manager.steps,
        "ready": graph.learning is not None,
        "bound": graph.bound,
        "sizes": {k: repr(v) for k, v in graph.sizes.items()},
        "clock": graph.clock.tick,
        "num_classes": graph.num_classes,
        "modes": [m.training for m in graph.modules()],
        "modules": {n: [repr(v) for v in (m.schedule, m.ports, [*m.nodes], m.constraints, m.input_constraints)]
                    for n, m in modules.items()},
        "objectives": {n: [t.name for t in [*m.objectives.terms, *m.objectives.params]] for n, m in modules.items()},
        "edges": {n: [e.extra_repr(), repr(e.constraints), repr(e.proj), e.frozen_by] for n, e in graph.edges.items()},
        "random": torch.get_rng_state(),
        "grads": [p is None or p.grad is None for m in graph.modules() for p in m._parameters.values()],
    })  # fmt: skip


@contextmanager
def untouched(*graphs: Graph) -> Iterator[None]:
    """Nothing of these graphs changes inside, bit by bit."""
    before = [everything(g) for g in graphs]
    yield
    for graph, was in zip(graphs, before, strict=True):
        assert differences(was, everything(graph)) == []


def refused(call: Callable[[], Any], kind: type[ImprintError], *words: str) -> ImprintError:
    """The error of `call`: of that kind, with where, what and fix, and with these words in its text."""
    with pytest.raises(kind) as caught:
        call()
    error, text = caught.value, str(caught.value)
    assert isinstance(error, ImprintError) and type(error) is kind, text
    assert error.where and error.what and error.fix, f"an error in three parts at least:\n{text}"
    missing = [word for word in words if word not in text]
    assert not missing, f"{missing} missing in\n{text}"
    return error
