"""What is captured of a tick could be replayed by a device: no waiting, no data of the host, no new memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from imprint import Graph, Module, Rate, Source, Targets, protos, record
from imprint.credit import ETrace, Instant, Window
from imprint.managers import attach
from imprint.rules import Local
from imprint.runtime import audits, codegen
from imprint.runtime.emulation import EmulatedGraph
from imprint.runtime.store import undone

BUDGET = {"tick": 480, "chunk": 650, "window": 900, "traces": 900}
"""Calls of a block that are no views; more is a change to be looked at."""
CREDITS: dict[str, tuple[Any, Any]] = {
    "tick": (Instant(), "tick"), "chunk": (Instant(), 4), "window": (Window(4), 4),
    "traces": (ETrace("d_rtrl"), "tick"),
}  # fmt: skip


def world(credit: Any, update: Any) -> tuple[Graph, dict[str, Any]]:
    """Two recurrent modules of different paces, a readout, and a batch."""
    torch.manual_seed(0)
    graph, before = Graph(), Source("x")
    for i in range(2):
        module = Module(f"m{i}", protos.GRUStack(hidden=3), schedule=Rate(emit_every=i + 1))
        graph.connect(before["out"], module["in"])
        before = module
    head = Module("head", protos.MLP([3, 2]))
    graph.connect(before["out"], head["in"])
    head.objectives.ce(target=Targets.batch_key("y"), num_classes=2)
    batch = {"x": torch.randn(2, 12, 2), "y": torch.tensor([0, 1])}
    graph.bind(batch)
    attach(graph, "local_ce", credit=credit, update=update, num_classes=2, optimizer=torch.optim.Adam)
    graph.manager.bind(batch)
    return graph, batch


def paces() -> tuple[Graph, dict[str, Any]]:
    """Five modules whose emissions meet in ever other ways; one of them learns."""
    torch.manual_seed(0)
    graph, src = Graph(), Source("x")
    head = Module("head", protos.MLP([2, 2]))
    for i, every in enumerate((2, 3, 5, 7, 11)):
        module = Module(f"m{i}", protos.MLP([2, 2]), schedule=Rate(emit_every=every))
        graph.connect(src["out"], module["in"])
        graph.connect(module["out"], head["in"])
    head.objectives.ce(target=Targets.batch_key("y"), num_classes=2)
    batch = {"x": torch.randn(2, 100, 2), "y": torch.tensor([0, 1])}
    graph.bind(batch)
    attach(graph, Local(None), update="tick", optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    graph.manager.bind(batch)
    return graph, batch


def captured(graph: Graph, batch: Any, **options: Any) -> tuple[Any, list[Any]]:
    """A plan that has run, and its captured blocks."""
    with record(graph) as trace, torch.no_grad():
        graph.rollout(batch)
    plan = trace.compile("inductor", **({"codegen": "eager"} | options))
    plan.rollout(batch)
    found = [each for some in plan.backend.programs.values() for program in some for each in program.captured]
    return plan, [block for _, block in found]


@pytest.mark.parametrize("kind", CREDITS)
def test_a_block_holds_nothing_a_device_could_not(kind: str) -> None:
    """Statically, of every captured block."""
    _, blocks = captured(*world(*CREDITS[kind]))
    assert blocks
    for block in blocks:
        assert audits.syncs(block.module) == []
        assert audits.host_data(block.module) == []
        assert audits.over_budget(block.module, BUDGET[kind]) == []


@pytest.mark.parametrize("kind", CREDITS)
def test_what_crosses_blocks_is_at_fixed_addresses(kind: str) -> None:
    """Call by call: whatever is read before it is written was there before; and nothing moves in later rollouts."""
    graph, batch = world(*CREDITS[kind])
    plan, blocks = captured(graph, batch)
    for block in blocks:
        emulated = EmulatedGraph()
        with undone(block.tensors):
            emulated.capture(block)
        assert audits.allocated(emulated, block.tensors) == []
    tensors = [v for block in blocks for v in block.tensors]
    assert audits.addresses(lambda: plan.rollout(batch), tensors, n=3) == []
    program = next(program for some in plan.backend.programs.values() for program in some)
    assert all(v is not None for v in program.store.held.values())
    moments = [(p, v) for os in graph.manager.optimizers.values() for o in os for p, s in o.state.items()
               for v in s.values() if v.shape == p.shape]  # fmt: skip
    assert len(moments) >= 8
    assert audits.strides(moments) == []


def test_a_block_a_due_set_and_no_recompile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over twenty due sets: each is compiled once, whatever torch's limit of recompiles of one function is."""

    def once(block: Any) -> Any:
        compiled = torch.compile(block.module, backend="aot_eager", fullgraph=True, dynamic=False)

        def run() -> None:
            with torch.no_grad():
                compiled(*block.tensors)

        return run

    monkeypatch.setitem(codegen.generators, "inductor", once)
    graph, batch = paces()
    other, _ = paces()
    torch._dynamo.reset()
    counters.clear()
    plan, blocks = captured(graph, batch, codegen="inductor")
    due = {plan.schedule.at(t) for t in range(100)}
    assert len(blocks) == len(due) >= 20
    assert counters["stats"]["unique_graphs"] == len(due)
    other.rollout(batch)
    plan.rollout(batch)
    other.rollout(batch)
    assert counters["stats"]["unique_graphs"] == len(due)
    assert not counters["graph_break"]
    for (name, p), q in zip(graph.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5, msg=name)
