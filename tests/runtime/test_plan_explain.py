"""``plan.explain()``: of each module how it learns, what was joined, who steps by itself, and why."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from imprint import Auto, Graph, Module, Source, Targets, protos
from imprint.credit import Unrolled
from imprint.runtime import codegen

from references.graph_small import CLASSES, batch
from references.plan_runs import CALLS, EMULATED, adam, pair, small


@pytest.fixture
def lowered(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Blocks are lowered as for a compiler, and then run call by call: no compiler is needed."""
    monkeypatch.setitem(codegen.generators, "inductor", codegen.call_by_call)
    return {"codegen": "inductor"}


def fan() -> Graph:
    """Two encoders of one source, into one port."""
    torch.manual_seed(0)
    graph, src, head = Graph(), Source("x"), Module("head", protos.MLP([4, Auto]))
    for name in ("a", "b"):
        encoder = Module(name, protos.Leaky(4))
        graph.connect(src["out"], encoder["in"])
        graph.connect(encoder["out"], head["in"])
    head.objectives.ce(target=Targets.batch_key("y"), num_classes=CLASSES)
    return graph.bind(batch())


def line(text: str, start: str) -> str:
    (found,) = [each for each in text.splitlines() if each.startswith(start)]
    return found


def test_each_module_says_how_it_learns_and_what_was_joined(lowered: dict[str, Any]) -> None:
    both = pair(fan, optimizer=adam, update=2, options=lowered)
    assert "nothing has been captured yet" in both.plan.explain()
    both.roll(batch(ticks=4, seed=0))
    both.same_weights()
    told = both.plan.explain()
    assert line(told, "x:") == "x: a source, brought to its slots 64 ticks at a time"
    for name in ("a", "b", "head"):
        assert line(told, f"{name}: ").startswith(f"{name}: group '{name}', Instant(), update=2; Adam in the block; ")
    assert "once for several ticks" in line(told, "a:")  # weights rest for two ticks
    assert "captured, learning: blocks of at most 16 ticks" in told
    assert re.search(r"^  ticks 0 to 1: \d+ calls$", told, re.MULTILINE)
    assert re.search(r"^    2 products with edges\.x_out__a_in\.proj\.weight in one: \(8, 2\) @", told, re.MULTILINE)


@pytest.mark.parametrize("fused", [True, False])
def test_notes_count_what_the_options_did(fused: bool, lowered: dict[str, Any]) -> None:
    options = {"fuse_projections": fused, "fuse_port_sums": fused}
    both = pair(fan, optimizer=adam, options=lowered | options)
    both.roll(batch(ticks=2, seed=0))
    both.same_weights()
    told = both.plan.explain()
    joined = "2 projections of" in told
    assert joined == fused
    said = line(told, f"fuse_projections={fused}:")
    assert (int(re.findall(r": (\d+) joined products", said)[0]) > 0) if fused else said.endswith("not asked for")
    assert ("shared with other matrices" in line(told, "a:")) == fused


def test_call_by_call_nothing_is_joined() -> None:
    for options in (CALLS, EMULATED):
        both = pair(fan, optimizer=adam, options=options)
        both.roll(batch(ticks=2, seed=0))
        told = both.plan.explain()
        assert "fuse_projections=True: no effect call by call" in told
        assert line(told, "a:").endswith("call by call") and "joined products" not in told


def test_an_optimizer_that_steps_by_itself_says_why() -> None:
    kinds = iter([torch.optim.Adagrad, torch.optim.SGD] * 2)
    both = pair(small, optimizer=lambda p: next(kinds)(p, lr=0.1))
    both.roll(batch(ticks=2, seed=0))
    told = both.plan.explain()
    assert "Adagrad by itself after each block that updates: its type Adagrad has no step as maths" in line(
        told, "enc:"
    )
    assert "SGD in the block" in line(told, "head:")


def test_frozen_groups_and_those_without_a_manager() -> None:
    both = pair(small, optimizer=adam)
    both.graph.manager.freeze("enc")
    both.plan.rollout(batch(ticks=2))
    assert "frozen: it runs and does not learn" in line(both.plan.explain(), "enc:")
    plain = pair(small, None)
    plain.roll(batch(ticks=2))
    told = plain.plan.explain()
    assert "runs without a manager" in line(told, "enc:") and "  forward, ticks 0 to 1:" in told
    assert "  backward, ticks 0 to 1:" in told


def test_the_credit_is_the_one_that_was_asked_for() -> None:
    both = pair(small, optimizer=adam, credit=Unrolled())
    both.roll(batch(ticks=2, seed=0))
    assert "Unrolled()" in line(both.plan.explain(), "enc:") and "update='rollout'" in line(both.plan.explain(), "enc:")
