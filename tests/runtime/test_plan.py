"""A plan rolls out as its graph does: what comes out, states, losses, weights and optimizers, batch after batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from imprint import Auto, Graph, Module, Ports, Rate, Source, Targets, no_learning, protos
from imprint.credit import ETrace, Instant, Unrolled, Window

from references.graph_small import CLASSES, batch, ragged
from references.plan_runs import CALLS, EMULATED, adam, close, pair, sgd, small, weights

BACKENDS = pytest.mark.parametrize("options", [CALLS, EMULATED], ids=["calls", "emulated"])


def micro() -> Graph:
    """Inner steps, a slow module and one that follows it."""
    torch.manual_seed(0)
    graph, src = Graph(), Source("x")
    enc = Module("enc", protos.Leaky(4), schedule=Rate(inner_steps=2, emit_every=2))
    head = Module("head", protos.MLP([4, Auto]), schedule=Rate.follow("enc"))
    graph.connect(src["out"], enc["in"])
    graph.connect(enc["out"], head["in"])
    head.objectives.ce(target=Targets.batch_key("y"), num_classes=CLASSES)
    return graph.bind(batch())


def normed() -> Graph:
    """BatchNorm, dropout, an edge with a limit and one that comes back a tick later; two rates."""
    torch.manual_seed(0)
    graph, src = Graph(), Source("x", mask=0.2)
    enc = Module("enc", protos.Leaky(4), Ports(in_default=2))
    head = Module("head", protos.MLP([4, 5, Auto], norm="batch", dropout=0.3), schedule=Rate(emit_every=2))
    graph.connect(src["out"], enc["in"])
    graph.connect(enc["out"], head["in"]).constrain(max_abs=0.3)
    graph.connect(head["out"], enc["in"], delay=1)
    enc.objectives.contrastive(target=Targets.shifted_input(src, 1))
    head.objectives.ce(target=Targets.batch_key("y"), num_classes=CLASSES)
    head.objectives.params_l2(weight=0.01)
    return graph.bind(batch())


@BACKENDS
@pytest.mark.parametrize("update", ["tick", 3])
def test_any_number_of_ticks(update: Any, options: dict[str, Any]) -> None:
    """Slots hold 64: fewer, as many, more; what is left over after the last whole update period counts too."""
    both = pair(small, update=update, optimizer=adam, options=options)
    for i, ticks in enumerate((1, 2, 7, 64, 65, 130) if options is CALLS else (2, 7, 65)):
        both.roll(batch(ticks=ticks, seed=i))
        both.same_weights()


@pytest.mark.parametrize(("update", "options"), [("tick", CALLS), (2, EMULATED), ("rollout", CALLS)])
def test_rows_that_end_at_ticks_of_their_own(update: Any, options: dict[str, Any]) -> None:
    both = pair(normed, update=update, optimizer=adam, options=options)
    for i in range(3):
        both.roll(ragged(i), seed=i)
    both.roll(batch(seed=7), seed=7)  # and all of them full
    both.same_weights()


@pytest.mark.parametrize("keep", ["all", "emissions", "last"])
def test_what_is_kept(keep: str) -> None:
    both = pair(small, optimizer=sgd)
    for i in range(2):
        out, theirs = both.roll(batch(seed=i), keep=keep)
        assert theirs["head"].shape == out["head"].shape and (theirs["head"].shape[1] == 1) == (keep == "last")
    both.same_weights()


def test_what_was_not_kept_cannot_be_read_and_nothing_of_one_rollout_stays_in_the_next() -> None:
    both = pair(small, optimizer=sgd)
    _, first = both.roll(batch(seed=0))
    held = first["head"].clone()
    both.roll(batch(seed=1), keep="emissions")
    assert torch.equal(first["head"], held)  # results are the user's own, no view of the plan's memory


@pytest.mark.parametrize(("credit", "options"), [(Instant(), EMULATED), (ETrace("d_rtrl"), CALLS)], ids=str)
def test_a_stream_goes_on(credit: Any, options: dict[str, Any]) -> None:
    """States, traces, gradients gathered so far, and the number of the tick."""
    both = pair(micro, credit=credit, update=3, optimizer=adam, options=options)
    for i, ticks in enumerate((4, 3, 5)):
        both.roll(batch(ticks=ticks, seed=i), reset=i == 0)
    both.same_weights()
    assert both.graph.run.offset == both.eager.run.offset == 7


def test_a_stream_that_started_anew_has_forgotten_everything() -> None:
    both = pair(small, credit=ETrace("d_rtrl"), optimizer=sgd)
    both.roll(batch(seed=0))
    both.roll(batch(seed=1), reset=False)
    both.roll(batch(seed=2), reset=True)
    both.same_weights()


@pytest.mark.parametrize(
    "learning",
    [{}, {"update": 3}, {"credit": ETrace("d_rtrl")}, {"credit": Window(2)}, {"credit": Unrolled()}],
    ids=str,
)
def test_graph_and_plan_in_turns(learning: dict[str, Any]) -> None:
    """Weights, optimizer state, states and traces are shared: it does not matter which of them ran before."""
    both = pair(small, optimizer=adam, **learning)
    for i in range(5):
        data, reset = batch(ticks=6, seed=i), i not in (2, 3)
        out = both.eager.rollout(data, reset=reset)
        run = both.graph if i % 2 else both.plan
        theirs = run.rollout(data, reset=reset)
        close(theirs["head"], out["head"], f"rollout {i}")
        for key, want in both.eager.losses().items():
            close(run.losses()[key], want, key)
    both.same_weights()


def test_eval_rollouts_and_such_without_gradients_between_training_ones() -> None:
    """They change nothing but statistics of BatchNorm in training mode, and a plan sees which mode it is in."""
    both = pair(normed, optimizer=adam, options=EMULATED)
    for i in range(2):
        both.roll(batch(seed=i), seed=i)
        before = weights(both.graph)
        for each in (both.eager, both.graph):
            each.eval()
        both.roll(batch(seed=5), seed=5)
        with torch.no_grad():
            both.roll(batch(seed=6), seed=6)
        for each in (both.eager, both.graph):
            each.train()
        with torch.no_grad():
            both.roll(batch(seed=7), seed=7)
        with no_learning():
            both.roll(batch(seed=8), seed=8)
        assert all(torch.equal(before[k], v) for k, v in weights(both.graph).items())
        both.same_weights()
    both.roll(batch(seed=9), seed=9)
    assert any(not torch.equal(before[k], v) for k, v in weights(both.graph).items())
    both.same_weights()


def test_dropout_and_batch_norm_with_the_same_seed() -> None:
    """The same units are dropped, the same statistics gathered; another seed drops others."""
    both = pair(normed, optimizer=sgd)
    for i in range(3):
        both.roll(batch(seed=i), seed=i)
    both.same_weights()
    data, found = batch(seed=9), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        with torch.no_grad():
            found.append(both.plan.rollout(data)["head"])
    assert torch.equal(found[0], found[1]) and not torch.allclose(found[0], found[2])
    torch.manual_seed(4)
    both.eager.rollout(data)
    after = torch.get_rng_state()
    torch.manual_seed(4)
    both.plan.rollout(data)
    assert torch.equal(after, torch.get_rng_state())  # as many random numbers were drawn


@pytest.mark.parametrize(("update", "options"), [("tick", EMULATED), (2, CALLS)])
def test_inner_steps(update: Any, options: dict[str, Any]) -> None:
    both = pair(micro, update=update, optimizer=adam, options=options)
    for i in range(3):
        both.roll(batch(ticks=6, seed=i))
    both.same_weights()


@pytest.mark.parametrize("rule", ["sigprop", "local_ce", "predict_input", "backprop", "frozen"])
def test_rules(rule: str) -> None:
    both = pair(small, rule, optimizer=adam, options=EMULATED if rule == "sigprop" else CALLS, num_classes=CLASSES)
    for i in range(3):
        both.roll(batch(seed=i), seed=i)
    both.same_weights()


def test_a_plain_graph_without_a_manager() -> None:
    both = pair(normed, None)
    for i in range(3):
        both.roll(batch(seed=i), seed=i)
        for run in (both.eager, both.plan):
            run.loss().backward()
    for (name, p), q in zip(both.eager.named_parameters(), both.graph.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            close(q.grad, p.grad, name)
