"""Plans of graphs that learn, and what users do besides: freezing, schedules, monitors, checkpoints, predictions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from imprint import Auto, Graph, Module, Source, Targets, protos
from imprint.errors import LabelError, NonFiniteError
from imprint.managers import attach
from imprint.runtime import blocks as blocks_of_ticks
from imprint.runtime.capture import capture

from references.graph_small import CLASSES, batch
from references.plan_runs import EMULATED, Pair, adam, close, compiled, pair, same, sgd, small, weights


def belongs(weight: str, module: str) -> bool:
    """Is it the module's own, or that of an edge into it?"""
    return weight.startswith(f"nodes.{module}.") or f"__{module}_in." in weight


def test_a_group_is_frozen_and_learns_again() -> None:
    both = pair(small, optimizer=adam)
    for i, what in enumerate(("", "freeze", "", "unfreeze", "")):
        before = weights(both.graph)
        for each in (both.eager, both.graph) if what else ():
            getattr(each.manager, what)("enc")
        both.roll(batch(seed=i))
        both.same_weights()
        moved = [name for name, v in weights(both.graph).items() if not torch.equal(v, before[name])]
        assert any(belongs(name, "enc") for name in moved) == (i in (0, 3, 4)), moved
        assert any(belongs(name, "head") for name in moved)


@pytest.mark.parametrize("clip", [1e-3, 0.05, 1e6])
def test_clipping(clip: float) -> None:
    """A small limit slows learning down, a large one does nothing; the numbers are those of the graph's own engine."""
    both = pair(small, optimizer=sgd, grad_clip=clip)
    before = weights(both.graph)
    for i in range(2):
        both.roll(batch(seed=i))
    both.same_weights()
    moved = sum((v - before[k]).square().sum().item() for k, v in weights(both.graph).items()) ** 0.5
    assert (moved < 0.01) == (clip == 1e-3), moved


@pytest.mark.parametrize("make", [sgd, adam, lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.5, eps=1e-4)])
def test_a_learning_rate_that_is_scheduled(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Captured ticks read the rate anew: nothing is captured again, and where it is 0 nothing moves."""
    both = pair(
        small, optimizer=make, scheduler=lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda n: [1, 0.1, 0][n])
    )
    blocks, captured = [], []
    monkeypatch.setattr(blocks_of_ticks, "capture", lambda *args: captured.append(1) or capture(*args))
    for i in range(3):
        before = weights(both.graph)
        both.roll(batch(seed=i))
        both.same_weights()
        moved = max((v - before[k]).abs().max().item() for k, v in weights(both.graph).items())
        assert (moved == 0) == (i == 2), moved
        blocks.append(len(captured))
        if i < 2:
            for each in (both.eager, both.graph):
                each.manager.step_schedulers()
    assert blocks[0] == blocks[1] == blocks[2] > 0
    assert {o.param_groups[0]["lr"] for own in both.graph.manager.optimizers.values() for o in own} == {0.0}


def limited() -> Any:
    """`small` with weights that are held to a limit, which its steps run into."""
    graph = small()
    graph.all_edges[0].constrain(max_abs=0.2)
    return graph


@pytest.mark.parametrize("options", [{}, EMULATED], ids=["calls", "emulated"])
def test_an_optimizer_that_is_no_maths_steps_by_itself_and_limits_hold(options: dict[str, Any]) -> None:
    both = pair(limited, optimizer=lambda p: torch.optim.Adagrad(p, lr=0.3), options=options)
    for i in range(2):
        both.roll(batch(ticks=3, seed=i))
        assert both.graph.all_edges[0].proj.weight.abs().max() <= 0.2
    both.same_weights()
    told = both.plan.explain()
    assert "Adagrad" in told and "by itself" in told


def test_optimizers_of_both_kinds() -> None:
    """One module's steps are maths, another's are not."""
    kinds = iter([torch.optim.Adagrad, torch.optim.SGD] * 2)
    both = pair(small, optimizer=lambda p: next(kinds)(p, lr=0.1), update=2)
    for i in range(2):
        both.roll(batch(seed=i))
    both.same_weights()


def test_maths_hold_limits_too() -> None:
    both = pair(limited, optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    for i in range(2):
        both.roll(batch(seed=i))
    both.same_weights()
    assert both.graph.all_edges[0].proj.weight.abs().max() == 0.2  # it was run into


@pytest.mark.parametrize("saved_by", ["plan", "graph"])
@pytest.mark.parametrize("goes_on", ["plan", "graph"])
def test_a_checkpoint_goes_on_exactly(saved_by: str, goes_on: str) -> None:
    """Weights, optimizers and random numbers of a plan are those of the graph, and the other way round."""
    both = pair(small, optimizer=adam, scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5))
    first = both.plan if saved_by == "plan" else both.graph
    for i in range(2):
        torch.manual_seed(i)
        both.eager.rollout(batch(seed=i))
        torch.manual_seed(i)
        first.rollout(batch(seed=i))
        for each in (both.eager, both.graph):
            each.manager.step_schedulers()
    state = both.graph.manager.state_dict()
    drawn = torch.get_rng_state()
    fresh = small().to(torch.float64)
    manager = attach(fresh, "local", optimizer=adam, scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5))
    manager.load_state_dict(state)
    assert torch.equal(drawn, torch.get_rng_state())
    run = compiled(fresh, batch()) if goes_on == "plan" else fresh
    for i in range(2, 4):
        torch.manual_seed(i)
        both.eager.rollout(batch(seed=i))
        torch.manual_seed(i)
        run.rollout(batch(seed=i))
    Pair(both.eager, fresh, None).same_weights()


def test_a_state_loaded_into_the_plans_own_manager() -> None:
    """Addresses of optimizer state change: the plan says so, and goes on after refresh()."""
    both = pair(small, optimizer=adam)
    both.roll(batch(seed=0))
    states = [each.manager.state_dict() for each in (both.eager, both.graph)]
    both.roll(batch(seed=1))
    for each, state in zip((both.eager, both.graph), states, strict=True):
        each.manager.load_state_dict(state)
    if both.plan.stale():
        both.plan.refresh()
    assert both.plan.stale() == []
    both.roll(batch(seed=2))
    both.same_weights()


@pytest.mark.parametrize("learning", [{}, {"update": 3}], ids=str)
def test_monitors_gather_the_same_numbers(learning: dict[str, Any]) -> None:
    both = pair(small, optimizer=adam, monitors=["loss", "grad_norm", "update_ratio"], **learning)
    for i in range(4):
        both.roll(batch(ticks=7, seed=i))
        if i != 1:  # two rollouts gathered together, too
            theirs, ours = both.eager.manager.metrics(), both.graph.manager.metrics()
            assert theirs.keys() == {"enc", "head"} and all(len(v) >= 3 for v in theirs.values())
            same(ours, theirs, f"metrics {i}")
    both.eager.rollout(batch(seed=9))
    both.graph.rollout(batch(seed=9))
    same(both.graph.manager.metrics(), both.eager.manager.metrics(), "metrics of the engine afterwards")


def test_losses_of_graph_plan_and_manager_are_one() -> None:
    both = pair(small, optimizer=sgd)
    both.roll(batch(seed=3))
    for name, want in both.eager.manager.losses().items():
        assert want > 0
        close(both.graph.manager.losses()[name], want, name)
        close(both.graph.losses()[name], both.plan.losses()[name], name, 0.0)
    close(both.plan.loss(), both.eager.loss(), "loss")
    assert both.graph.manager.steps == both.eager.manager.steps == 1


def test_predictions_between_rollouts() -> None:
    """They disturb neither a stream nor what was gathered, and are those of the weights of now."""
    both = pair(small, optimizer=sgd, update=3)
    for i in range(3):
        both.roll(batch(ticks=4, seed=i), reset=i == 0)
        found = [each.manager.predict(batch(seed=8))["head"] for each in (both.eager, both.graph)]
        close(found[1], found[0], "prediction")
    both.same_weights()


# -- losses that are not finite


def refused(both: Pair, bad: Any) -> str:
    """Graph and plan refuse the batch with the same words, which are returned."""
    said = []
    for run in (both.eager, both.plan):
        with pytest.raises(NonFiniteError) as caught:
            run.rollout(bad)
        said.append(str(caught.value))
    assert said[0].split(", tick")[0] == said[1].split(", tick")[0], said
    assert all(v.isfinite().all() for v in weights(both.graph).values())
    return said[1]


def test_an_input_that_is_no_number() -> None:
    both = pair(small, optimizer=adam)
    both.roll(batch(seed=0))
    bad = batch(seed=1)
    bad["x"][1, 3, 0] = float("nan")
    assert "source 'x'" in refused(both, bad)
    both.same_weights()
    both.roll(batch(seed=2))
    both.same_weights()


def regression() -> Graph:
    """x -> enc -> head, which has to say ``z``: a square that overflows where that is 1e200."""
    torch.manual_seed(0)
    graph, src = Graph(), Source("x")
    enc, head = Module("enc", protos.Leaky(4)), Module("head", protos.MLP([4, Auto]))
    graph.connect(src["out"], enc["in"])
    graph.connect(enc["out"], head["in"])
    head.objectives.mse(target=Targets.batch_key("z"))
    return graph.bind(regressed(5, 0))


def regressed(ticks: int, seed: int) -> dict[str, Any]:
    own = torch.Generator().manual_seed(seed)
    return {k: torch.randn(4, ticks, 2, generator=own, dtype=torch.float64) for k in "xz"}


def first(data: Any, ticks: int) -> dict[str, Any]:
    return {k: v[:, :ticks] for k, v in data.items()}


@pytest.mark.parametrize(
    ("update", "tick", "options"), [("tick", 1, EMULATED), ("tick", 68, {}), (2, 3, {}), (2, 66, EMULATED)]
)
def test_a_loss_that_is_not_finite(update: Any, tick: int, options: dict[str, Any]) -> None:
    """Names group and tick, also beyond the first slots; weights and optimizers are those of before, and go on."""
    ticks, data = tick + 2, regressed(tick + 2, 1)
    bad = {**data, "z": data["z"].clone()}
    bad["z"][1, tick, 0] = 1e200
    known = {"rule": "predict_input", "optimizer": adam, "update": update, "data": regressed(5, 0)}
    both = pair(regression, options=options, **known)
    both.roll(regressed(ticks, 0))
    said = refused(both, bad)
    before = tick if update == "tick" else tick // 2 * 2  # the first tick of its update period
    assert "'head'" in said and f"tick {before}:" in said, said
    # enc comes before head in a tick; it predicts its next input, and learns nothing from the last one
    for name, done in (("enc", before + (2 if update == "tick" else 3)), ("head", before)):
        other = pair(regression, **known).eager
        other.rollout(regressed(ticks, 0))
        other.rollout(first(data, done))
        ours = dict(both.graph.named_parameters())
        for key, p in other.named_parameters():
            if belongs(key, name):
                close(ours[key], p, f"{name}: {key}")
    other.manager.load_state_dict(both.graph.manager.state_dict())
    after = Pair(other, both.graph, both.plan)
    if both.plan.stale():
        both.plan.refresh()
    after.roll(regressed(ticks, 2))
    after.same_weights()


def test_weights_that_explode() -> None:
    """The rate is far too large: soon a loss is not finite, and the weights of before it are there."""
    both = pair(small, optimizer=lambda p: torch.optim.SGD(p, lr=1e100))
    assert "'enc', tick 2" in refused(both, batch(seed=0))


def test_labels_out_of_range_are_refused_before_anything_runs() -> None:
    both = pair(small, optimizer=sgd)
    both.roll(batch(seed=0))
    bad = batch(seed=1)
    bad["y"][2] = CLASSES
    said = []
    for run in (both.eager, both.plan):
        with pytest.raises(LabelError, match="label is out of range") as caught:
            run.rollout(bad)
        said.append(str(caught.value))
    assert said[0] == said[1]
    both.roll(batch(seed=2))
    both.same_weights()
