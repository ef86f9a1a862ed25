"""Rules on a graph equal plain loops over tensors: every weight after several rollouts, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import imprint
from imprint import Graph, Module, Source, Targets, attach, protos
from imprint.credit import ETrace, Instant, Unrolled, Window
from imprint.managers import GraphManager

from references import descent
from references.graph_rules_naive import (
    Batch,
    Cell,
    cells_of,
    grouped,
    local_ce,
    predict_input,
    projected,
    sigprop,
)

F64 = torch.float64
ROWS, TICKS, WIDTH, CLASSES, LR = 5, 6, 2, 3, 0.05
ORDERS = [("gru", "mlp"), ("mlp", "gru")]
OPTIMIZERS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "adam": (lambda p: torch.optim.Adam(p, LR), descent.Adam),
    "sgd": (lambda p: torch.optim.SGD(p, LR), descent.SGD),
}
PROTOS: dict[str, Callable[[], Any]] = {
    "gru": lambda: protos.GRUStack(hidden=4), "mlp": lambda: protos.MLP([3, 5, CLASSES], act="tanh")
}  # fmt: skip


def batches(ragged: bool) -> list[Batch]:
    own = torch.Generator().manual_seed(3)
    made = []
    for i in range(3):
        x = torch.randn(ROWS, TICKS, WIDTH, dtype=F64, generator=own)
        length = [[6, 3, 5, 1, 6], [4, 4, 2, 5, 3], [6, 6, 5, 6, 2]][i] if ragged else [TICKS] * ROWS
        made.append(Batch(x, torch.tensor([0, 2, 1, 2, 0]).roll(i), length))
    return made


def built(order: tuple[str, str], declared: bool) -> Graph:
    """x -> first -> second, with a cross entropy on the second if `declared`."""
    torch.manual_seed(0)
    graph, src = Graph(), Source("x")
    first, second = Module("first", PROTOS[order[0]]()), Module("second", PROTOS[order[1]]())
    graph.connect(src["out"], first["in"])
    graph.connect(first["out"], second["in"])
    if declared:
        second.objectives.ce(target=Targets.batch_key("y"), num_classes=CLASSES)
    return graph.bind(fed(batches(False)[0]))


def fed(batch: Batch) -> dict[str, Any]:
    return {"x": batch.x, "y": batch.y, "length": batch.length}


def attached(graph: Graph, rule: Any, optimizer: str, update: Any) -> tuple[GraphManager, list[Cell]]:
    """The manager, and the same weights for the plain loops."""
    make, plain = OPTIMIZERS[optimizer]
    manager = attach(graph, rule, num_classes=CLASSES, optimizer=make, update=update)
    manager.bind(fed(batches(False)[0]))
    kinds = ["gru" if isinstance(graph[n].proto, protos.GRUStack) else "mlp" for n in ("first", "second")]
    return manager, cells_of(graph, kinds, plain, manager.filled, LR)


def distance(manager: GraphManager, cells: list[Cell]) -> float:
    """Largest difference of any weight: of modules, projections and what the rule filled in."""
    others = cells_of(
        manager.graph, ["gru" if "weight_hh" in c.w else "mlp" for c in cells], descent.SGD, manager.filled, LR
    )
    assert all(a.w.keys() == b.w.keys() for a, b in zip(others, cells, strict=True))
    return max((a.w[k] - b.w[k]).detach().abs().max().item() for a, b in zip(others, cells, strict=True) for k in a.w)


def least_move(graph: Graph, before: dict[str, Tensor]) -> float:
    """How far the weight that moved least has come; no comparison of weights that rest."""
    return min((v - before[k]).abs().max().item() for k, v in graph.state_dict().items() if k != "_extra_state")


def weights(graph: Graph) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in graph.state_dict().items() if k != "_extra_state"}


def case(order: tuple[str, str], optimizer: str, update: Any, ragged: bool, *more: str) -> Any:
    """One row of a table, with a readable name."""
    words = ["-".join(order), optimizer, str(update), *["ragged"] * ragged, *more]
    return pytest.param(order, optimizer, update, ragged, *more, id=" ".join(words))


UPDATES = ("tick", 2, 4, "rollout")
CASES = [(o, a, u, r) for o in ORDERS for a in OPTIMIZERS for u in UPDATES for r in (False, True)]
TARGETS = [case(*c, how) for c in CASES for how in ("filled", "declared") if how == "filled" or c[0][1] == "mlp"]
CONTRASTS = [case(*c, how) for c in CASES for how in ("v1", "v14", "declared") if how != "declared" or c[0][1] == "mlp"]


@pytest.mark.parametrize(("order", "optimizer", "update", "ragged", "how"), TARGETS)
def test_local_ce(order: tuple[str, str], optimizer: str, update: Any, ragged: bool, how: str) -> None:
    """A linear head a module, zero at first; the head learns with the module."""
    declared = how == "declared"
    graph = built(order, declared)
    manager, cells = attached(graph, "local_ce", optimizer, update)
    heads = {"first.head"} if declared else {"first.head", "second.head"}
    assert set(manager.filled) == heads and all(
        float(p.detach().abs().max()) == 0 for t in manager.filled.values() for p in t.parameters()
    )
    before = weights(graph)
    for batch in batches(ragged):
        graph.rollout(fed(batch))
        local_ce(cells, batch, update, declared)
    assert distance(manager, cells) < 1e-9 and least_move(graph, before) > 1e-8


def losses_of(rule: str, manager: GraphManager) -> list[Any]:
    """Of both modules, by hand."""
    if rule == "cwcomp":
        return [grouped, grouped]
    found = [manager.filled.get(f"{n}.head") for n in ("first", "second")]
    return [None if term is None else projected(term.objective.feedback) for term in found]


@pytest.mark.parametrize("rule", ["cwcomp", "drtp"])
@pytest.mark.parametrize(("order", "optimizer", "update", "ragged", "how"), TARGETS)
def test_objectives_without_a_head(
    rule: str, order: tuple[str, str], optimizer: str, update: Any, ragged: bool, how: str
) -> None:
    declared = how == "declared"
    graph = built(order, declared)
    manager, cells = attached(graph, rule, optimizer, update)
    before = weights(graph)
    for batch in batches(ragged):
        graph.rollout(fed(batch))
        local_ce(cells, batch, update, declared, losses_of(rule, manager))
    assert distance(manager, cells) < 1e-9 and least_move(graph, before) > 1e-8


CREDITS = {"instant": Instant(), "window": Window(2), "traces": ETrace("d_rtrl"), "unrolled": Unrolled()}


@pytest.mark.parametrize("rule", ["local", "local_ce", "cwcomp", "drtp", "predict_input"])
@pytest.mark.parametrize("credit", CREDITS)
def test_every_rule_takes_every_credit(rule: str, credit: str) -> None:
    """On one tick all credits are the same gradient; on more they are not, where there is a state."""

    def learned(credit: str, ticks: int) -> dict[str, Tensor]:
        graph = built(("gru", "mlp"), True)
        sgd = lambda p: torch.optim.SGD(p, LR)
        torch.manual_seed(1)
        manager = attach(graph, rule, num_classes=CLASSES, optimizer=sgd, credit=CREDITS[credit], update="rollout")
        manager.bind(fed(batches(False)[0]))
        for batch in batches(False):
            graph.rollout(fed(Batch(batch.x[:, :ticks], batch.y, [ticks] * ROWS)))
        return weights(graph)

    first = 2 if rule == "predict_input" else 1  # it has nothing to predict on one tick
    one, other = learned(credit, first), learned("instant", first)
    far = lambda a, b: max(float((a[k] - b[k]).abs().max()) for k in a)
    if first == 1:
        assert far(one, other) < 1e-12
    more = far(learned(credit, TICKS), learned("instant", TICKS))
    assert more < 1e-12 if credit == "instant" else more > 1e-7


@pytest.mark.parametrize(("order", "optimizer", "update", "ragged"), [case(*c) for c in CASES])
def test_predict_input(order: tuple[str, str], optimizer: str, update: Any, ragged: bool) -> None:
    """The source's next value is in the batch; that of a module comes a tick later, and so does the update."""
    graph = built(order, False)
    manager, cells = attached(graph, "predict_input", optimizer, update)
    assert set(manager.filled) == {"first.predict_x_out__first_in", "second.predict_first_out__second_in"}
    before = weights(graph)
    for batch in batches(ragged):
        graph.rollout(fed(batch))
        predict_input(cells, batch, update)
    assert distance(manager, cells) < 1e-9 and least_move(graph, before) > 1e-8


@pytest.mark.parametrize(("order", "optimizer", "update", "ragged", "how"), CONTRASTS)
def test_sigprop(order: tuple[str, str], optimizer: str, update: Any, ragged: bool, how: str) -> None:
    """A pair (h, t) on every port, t through the same modules with states of its own."""
    declared, kind = how == "declared", "v14" if how == "v14" else "v1"
    graph = built(order, declared)
    manager, cells = attached(graph, imprint.rules.SigProp(loss=kind), optimizer, update)
    assert manager.signal is not None and manager.signal.x.shape == (CLASSES, WIDTH)
    before = weights(graph)
    for batch in batches(ragged):
        graph.rollout(fed(batch))
        sigprop(cells, batch, update, manager.signal.x, declared, kind)
    assert distance(manager, cells) < 1e-9 and least_move(graph, before) > 1e-8


def whole(batch: Batch) -> Batch:
    """No row ends."""
    return Batch(batch.x, batch.y, [TICKS] * ROWS)


Wrong = Callable[[list[Cell], Batch, Tensor], None]
CONTROLS: dict[str, tuple[str, Any, Wrong]] = {
    "local_ce, another period": ("local_ce", 2, lambda c, b, s: local_ce(c, b, 3, False)),
    "cwcomp, another period": ("cwcomp", 2, lambda c, b, s: local_ce(c, b, 3, False, [grouped, grouped])),
    "cwcomp, padding counts": ("cwcomp", 2, lambda c, b, s: local_ce(c, whole(b), 2, False, [grouped, grouped])),
    "local_ce, padding counts": (
        "local_ce", 2, lambda c, b, s: local_ce(c, whole(b), 2, False)
    ),
    "predict_input, at once": ("predict_input", 2, lambda c, b, s: predict_input(c, b, 2, postponed=False)),
    "predict_input, another period": ("predict_input", 2, lambda c, b, s: predict_input(c, b, 3)),
    "sigprop, a signal without state": ("sigprop", 2, lambda c, b, s: sigprop(c, b, 2, s, False, mixed=True)),
    "sigprop, another contrast": ("sigprop", 2, lambda c, b, s: sigprop(c, b, 2, s, False, "v14")),
    "sigprop, another signal": ("sigprop", 2, lambda c, b, s: sigprop(c, b, 2, s.roll(1, 0), False)),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTROLS)
def test_the_comparison_notices(name: str) -> None:
    """The negative controls: what is nearly the rule ends elsewhere."""
    rule, update, wrong = CONTROLS[name]
    graph = built(ORDERS[0], False)
    manager, cells = attached(graph, rule, "sgd", update)
    signal = manager.signal.x if manager.signal is not None else torch.zeros(0)
    for batch in batches(True):
        graph.rollout(fed(batch))
        wrong(cells, batch, signal)
    assert distance(manager, cells) > 1e-5
