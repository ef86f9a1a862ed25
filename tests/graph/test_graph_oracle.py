"""Random port graphs against a naive rollout: emissions, drives, states, losses, gradients, and weights that learned."""

from __future__ import annotations

import os
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._pytree import tree_leaves

from imprint import Graph
from imprint.credit import Credit, Instant, Unrolled, Window
from imprint.errors import ArgumentError
from imprint.managers import attach
from imprint.rules import Local
from references.graph_draws import plans
from references.graph_learning import Adam, Momentum, NaiveLearning
from references.graph_losses import NaiveLosses
from references.graph_naive import NaiveGraph, World
from references.graph_plans import Plan, batch_of, bound

EXAMPLES = int(os.environ.get("IMPRINT_EXAMPLES", "60"))
TOLERANCE = {"rtol": 1e-10, "atol": 1e-10}
drawn = settings(
    max_examples=EXAMPLES, derandomize=True, deadline=None, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)  # fmt: skip


def assert_close(got: Tensor, want: Tensor, what: str) -> None:
    """Element by element, with the name of what differs."""
    torch.testing.assert_close(got, want, **TOLERANCE, msg=lambda text: f"{what}: {text}")


def compare_rollout(graph: Graph, out, naive: NaiveGraph, world: World) -> None:
    """Emissions and states everywhere, drives where a row lasts."""
    for key in graph.sizes:
        if ":" not in key:
            want = [v for t, v in world.emitted.get(key, {}).items() if t in world.ticks]
            got = out[key]
            assert got.shape[1] == len(want), key
            if want:
                assert_close(got, torch.stack(want, 1), key)
    for name in naive.order:
        module = graph[name]
        for port in module.ports.inputs:
            drives = {t: v for t, v in world.drives.get(f"{name}.{port}", {}).items() if t in world.ticks}
            got = module.state.input_drive[port]
            assert got.shape[1] == len(drives)
            for i, (t, drive) in enumerate(drives.items()):
                lasting = world.alive(t)
                assert_close(got[lasting, i], drive[lasting], f"drive of {name}.{port} at {t}")
        if module.proto.recurrent:
            for got, want in zip(tree_leaves(module.state.recurrent), tree_leaves(world.state[name]), strict=True):
                assert_close(got, want, f"state of {name}")


@drawn
@given(plans())
def test_plain_rollouts_agree(plan: Plan) -> None:
    """Without a manager: what comes out, what is lost, and every gradient of it."""
    batch = batch_of(plan)
    graph, naive = bound(plan, batch), NaiveGraph(bound(plan, batch))
    out, world = graph.rollout(batch), naive.rollout(batch)
    compare_rollout(graph, out, naive, world)
    losses, want = graph.losses(), NaiveLosses(naive, batch).all(world)
    assert losses.keys() == want.keys()
    for name in want:
        assert_close(losses[name].double(), want[name].double(), name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        loss = graph.loss()
    if not any(v.requires_grad for v in want.values()):
        return
    loss.backward()
    sum(want.values()).backward()
    theirs = dict(graph.named_parameters())
    for name, p in naive.graph.named_parameters():
        got, grad = theirs[name].grad, p.grad
        zero = torch.zeros_like(p)
        assert_close(zero if got is None else got, zero if grad is None else grad, f"gradient of {name}")


CREDITS = [
    (Instant(), "tick"), (Instant(), "tick"), (Instant(), 2), (Instant(), 3), (Instant(), "rollout"), (Window(2), 2),
    (Window(3), 3), (Window(2), 4), (Window(2), "rollout"), (Window(1), 1), (Unrolled(), "rollout"),
]  # fmt: skip
OPTIMIZERS = {
    "momentum": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), Momentum),
    "adam": (lambda p: torch.optim.Adam(p, lr=0.02, eps=1e-4), Adam),
}


def naive_block(credit: Credit) -> int | None:
    """Ticks that credit reaches over."""
    return None if isinstance(credit, Unrolled) else credit.k if isinstance(credit, Window) else 1


def late_for_window(naive: NaiveLearning, credit: Credit) -> bool:
    """Is there a target that comes after the window it belongs to? That is refused."""
    return credit.block is not None and isinstance(credit, Window) and any(g.lag for g in naive.groups)


@drawn
@given(
    plans(learns=True), st.sampled_from(CREDITS), st.sampled_from(sorted(OPTIMIZERS)),
    st.sampled_from([None, None, 0.05]), st.sampled_from([1, 2, 3, 64]), st.booleans(),
)  # fmt: skip
def test_learning_agrees(
    plan: Plan, how: tuple[Credit, str | int], optimizer: str, clip: float | None, chunk: int, reset: bool
) -> None:
    """Three rollouts that learn, under any credit and update: what comes out of each, and every weight at the end."""
    (credit, update), (torch_optimizer, descent) = how, OPTIMIZERS[optimizer]
    graph, theirs = bound(plan, batch_of(plan)), bound(plan, batch_of(plan))
    naive = NaiveLearning(theirs, naive_block(credit), update, descent(), clip)
    attach(graph, Local(fill=None), credit=credit, update=update, optimizer=torch_optimizer, grad_clip=clip)
    if late_for_window(naive, credit):
        with pytest.raises(ArgumentError, match="ticks late, after a window is over"):
            graph.rollout(batch_of(plan))
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("imprint.graph.learning.CHUNK", chunk)
        for i in range(3):
            batch = batch_of(plan, i, 0 if reset or i == 0 else world.ticks.stop)
            out = graph.rollout(batch, reset=reset or i == 0)
            world = naive.rollout(batch, reset=reset or i == 0)
            compare_rollout(graph, out, naive.naive, world)
            for group in naive.groups:
                if group.period_losses:
                    got = graph.losses()["+".join(group.names)]
                    assert_close(got, torch.stack(group.period_losses).mean(), f"loss of {group.names} in rollout {i}")
    want = dict(theirs.named_parameters())
    for name, p in graph.named_parameters():
        assert_close(p.detach(), want[name].detach(), f"weight {name}")
