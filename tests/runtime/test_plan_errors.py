"""What a plan refuses, what it says, and that nothing is lost by it."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from imprint import Auto, GradientWatcher, Graph, Module, Source, Targets, protos, record
from imprint.errors import ArgumentError, CaptureError, CompileError, StateError, UnknownNameError
from imprint.managers import attach

from references.graph_small import CLASSES, batch
from references.plan_runs import CALLS, adam, close, compiled, pair, sgd, small, weights


class Reads(nn.Module):
    """Brings a number to the host at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * (1 + x.abs().max().item())


class Branches(Reads):
    """Branches on a tensor."""

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) if x.sum() > 0 else -self.linear(x)


class Masks(Reads):
    """A shape depends on data."""

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + x[x > 0].sum()


def with_part(part: type[nn.Module]) -> Graph:
    torch.manual_seed(0)
    graph, src = Graph(), Source("x")
    odd = Module("odd", protos.TorchModule(part()))
    head = Module("head", protos.MLP([Auto, Auto]))
    graph.connect(src["out"], odd["in"], projection="identity")
    graph.connect(odd["out"], head["in"])
    head.objectives.ce(target=Targets.batch_key("y"), num_classes=CLASSES)
    return graph.bind(batch())


@pytest.mark.parametrize("rule", [None, "local"])
@pytest.mark.parametrize("part", [Reads, Branches])
def test_a_module_that_cannot_be_captured_is_named(part: type[nn.Module], rule: str | None) -> None:
    both = pair(lambda: with_part(part), rule, **({"optimizer": sgd} if rule else {}))
    before = weights(both.graph)
    with pytest.raises(CaptureError, match="odd") as caught:
        both.plan.rollout(batch(seed=1))
    assert part.__name__ in str(caught.value) and "fallback=True" in str(caught.value)
    assert all(torch.equal(v, before[k]) for k, v in weights(both.graph).items())
    out, theirs = both.eager.rollout(batch(seed=1)), both.graph.rollout(batch(seed=1))  # nothing is lost
    close(theirs["head"], out["head"], "head")
    both.same_weights()


def test_a_shape_that_depends_on_data_is_refused_with_the_call() -> None:
    both = pair(lambda: with_part(Masks), optimizer=sgd)
    with pytest.raises(CaptureError, match="aten::index"):
        both.plan.rollout(batch(seed=1))
    out, theirs = both.eager.rollout(batch(seed=1)), both.graph.rollout(batch(seed=1))
    close(theirs["head"], out["head"], "head")
    both.same_weights()


def test_with_a_fallback_it_runs_on_the_graphs_own_engine_and_says_so() -> None:
    both = pair(lambda: with_part(Reads), options={"fallback": True}, optimizer=adam)
    for i in range(2):
        both.roll(batch(seed=i))
    both.same_weights()
    assert "odd" in both.plan.explain() and "own engine" in both.plan.explain()
    other = pair(small, options={"fallback": True}, optimizer=adam)
    other.roll(batch(seed=0))
    assert "own engine" not in other.plan.explain()


def test_hooks_are_refused_by_name_with_what_to_use_instead() -> None:
    graph = small()
    handle = graph["enc"].register_forward_hook(lambda *_: None)
    with pytest.raises(CaptureError, match="'enc'") as caught:
        compiled(graph, batch())
    assert "monitors=" in str(caught.value)
    handle.remove()
    plan = compiled(graph, batch())
    plan.rollout(batch())
    graph["head"].proto.register_forward_pre_hook(lambda *_: None)
    with pytest.raises(CaptureError, match=r"'head\.proto'"):
        plan.rollout(batch())


def test_what_looks_at_edges_is_refused() -> None:
    graph = small()
    plan = compiled(graph, batch())
    plan.rollout(batch())
    with GradientWatcher(graph), pytest.raises(CaptureError, match=r"looks at what passes"):
        plan.rollout(batch())
    plan.rollout(batch())


def by_tick(view: Any) -> Tensor:
    """Depends on the number of the tick."""
    return view.h.square().mean() * (1 + view.tick)


def host_tick(view: Any) -> Tensor:
    """Branches on it."""
    return view.h.square().mean() * (2.0 if view.tick > 1 else 1.0)


@pytest.mark.parametrize(("function", "refused"), [(by_tick, False), (host_tick, True)])
def test_an_objective_that_reads_the_tick(function: Any, refused: bool) -> None:
    """As a number of the device it is known; a branch on it is refused."""

    def make() -> Graph:
        graph = small(bind=False)
        graph["enc"].objectives.add(function)
        return graph.bind(batch())

    both = pair(make, optimizer=sgd)
    if refused:
        with pytest.raises(CaptureError):
            both.plan.rollout(batch(seed=0))
        both.graph.rollout(batch(seed=0))
        both.eager.rollout(batch(seed=0))
    else:
        for i in range(2):
            both.roll(batch(seed=i))
    both.same_weights()


def test_recording_twice_and_compiling_nothing() -> None:
    graph = small()
    with record(graph) as trace:
        with pytest.raises(StateError, match="being recorded already"), record(graph):
            pass
        with pytest.raises(StateError, match="nothing was rolled out"):
            trace.compile(**CALLS)
    with pytest.raises(StateError, match="nothing was rolled out"):
        trace.compile(**CALLS)


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"backend": "inducter"}, UnknownNameError, "inductor"),
        ({"backend": None}, UnknownNameError, "eager"),
        ({"codegen": "triton"}, ArgumentError, "'inductor'"),
        ({"on_shape": "grow"}, ArgumentError, "'pad'"),
        ({"on_stale": "ignore"}, ArgumentError, "'error'"),
        ({"fallback": "yes"}, ArgumentError, "True | False"),
        ({"fuse_projections": 1}, ArgumentError, "True | False"),
        ({"backend": "cuda_graph", "codegen": None}, StateError, "allow_emulation=True"),
        ({"backend": "cuda_graph", "codegen": "inductor", "allow_emulation": True}, ArgumentError, "codegen='eager'"),
    ],
)
def test_options_that_there_are_not(options: dict[str, Any], kind: type[Exception], said: str) -> None:
    with pytest.raises(kind) as caught:
        compiled(small(), batch(), **options)
    assert said in str(caught.value)


# -- staleness


def test_a_changed_structure_is_said_in_words_or_taken_in() -> None:
    """A module more, and its edge."""
    for policy in ("error", "recapture"):
        both = pair(small, None, options={"on_stale": policy})
        both.roll(batch(seed=0))
        for graph in (both.eager, both.graph):
            torch.manual_seed(5)
            more = Module("more", protos.MLP([Auto, 3]))
            graph.connect(graph["enc"]["out"], more["in"])
            graph.bind(batch()).to(torch.float64)
        assert any("module 'more' is new" in why for why in both.plan.stale())
        if policy == "error":
            with pytest.raises(StateError, match="module 'more' is new") as caught:
                both.plan.rollout(batch(seed=1))
            assert "plan.refresh()" in str(caught.value)
            both.plan.refresh()
        out, _ = both.roll(batch(seed=1))
        assert out["more"].abs().max() > 0 and both.plan.stale() == []


def test_a_manager_that_came_and_went() -> None:
    both = pair(small, None)
    both.roll(batch(seed=0))
    for graph in (both.eager, both.graph):
        torch.manual_seed(3)
        attach(graph, "local", optimizer=adam)
    assert both.plan.stale() == ["a manager was attached"]
    with pytest.raises(StateError, match="a manager was attached"):
        both.plan.rollout(batch(seed=1))
    both.plan.refresh()
    for i in range(2):
        torch.manual_seed(i)
        out = both.eager.rollout(batch(seed=i))
        torch.manual_seed(i)
        close(both.plan.rollout(batch(seed=i))["head"], out["head"], "head")
    both.same_weights()
    for graph in (both.eager, both.graph):
        graph.manager.detach()
    assert both.plan.stale() == ["the manager was detached"]
    both.plan.refresh()
    both.roll(batch(seed=4))


@pytest.mark.parametrize("policy", ["error", "recapture"])
def test_a_state_loaded_into_the_manager(policy: str) -> None:
    """Its optimizers' tensors are others."""
    both = pair(small, optimizer=adam, options={"on_stale": policy})
    both.roll(batch(seed=0))
    states = [each.manager.state_dict() for each in (both.eager, both.graph)]
    both.roll(batch(seed=1))
    for each, state in zip((both.eager, both.graph), states, strict=True):
        each.manager.load_state_dict(state)
    assert both.plan.stale()
    if policy == "error":
        with pytest.raises(StateError, match="no longer so"):
            both.plan.rollout(batch(seed=2))
        both.plan.refresh()
    both.roll(batch(seed=2))
    both.same_weights()


@pytest.mark.parametrize("policy", ["error", "recapture"])
def test_weights_at_other_addresses_and_settings_of_optimizers(policy: str) -> None:
    both = pair(small, optimizer=sgd, options={"on_stale": policy})
    both.roll(batch(seed=0))
    for graph in (both.eager, both.graph):
        for optimizers in graph.manager.optimizers.values():
            optimizers[0].param_groups[0]["momentum"] = 0.3
        bias = graph["head"].proto.get_parameter("layers.0.0.bias")
        bias.data = bias.data.clone()
    said = both.plan.stale()
    assert any("bias' is another tensor" in why for why in said) and any("optimizer" in why for why in said), said
    if policy == "error":
        with pytest.raises(StateError, match="another tensor"):
            both.plan.rollout(batch(seed=1))
        both.plan.refresh()
    both.roll(batch(seed=1))
    both.same_weights()


def test_weights_that_are_frozen_by_hand() -> None:
    both = pair(small, optimizer=sgd, options={"on_stale": "recapture"})
    both.roll(batch(seed=0))
    for graph in (both.eager, both.graph):
        graph["head"].proto.get_parameter("layers.0.0.bias").requires_grad_(False)
    both.roll(batch(seed=1))
    both.same_weights()


def test_a_closed_plan_does_not_run_and_the_graph_does() -> None:
    both = pair(small, optimizer=sgd)
    both.roll(batch(seed=0))
    both.plan.close()
    for act in (lambda: both.plan.rollout(batch()), both.plan.refresh, both.plan.loss):
        with pytest.raises(StateError):
            act()
    close(both.graph.rollout(batch(seed=1))["head"], both.eager.rollout(batch(seed=1))["head"], "head")
    both.same_weights()


def test_losses_of_nothing_or_of_something_else_are_refused() -> None:
    graph = small()
    plan = compiled(graph, batch())
    with pytest.raises(StateError, match="nothing has been rolled out"):
        plan.loss()
    plan.rollout(batch())
    graph.rollout(batch())
    with pytest.raises(StateError, match="something else since"):
        plan.losses()


# -- no compiler


def broken(*_: Any, **__: Any) -> Any:
    raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found")


@pytest.mark.parametrize("rule", [None, "local"])
def test_without_a_compiler(rule: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compile error, and nothing has changed; call by call it runs, and with a fallback."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        monkeypatch.setattr(importlib.import_module("torch._inductor.compile_fx"), "compile_fx", broken)
    more = {"optimizer": adam} if rule else {}
    both = pair(small, rule, options={"codegen": "inductor"}, **more)
    before, drawn = weights(both.graph), torch.get_rng_state()
    with pytest.raises(CompileError, match="No working C") as caught:
        both.plan.rollout(batch(seed=0))
    assert "codegen='eager'" in str(caught.value) and "fallback=True" in str(caught.value)
    assert torch.equal(drawn, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in weights(both.graph).items())
    close(both.graph.rollout(batch(seed=0))["head"], both.eager.rollout(batch(seed=0))["head"], "head")
    both.same_weights()
    fell = pair(small, rule, options={"codegen": "inductor", "fallback": True}, **more)
    for i in range(2):
        fell.roll(batch(seed=i))
    fell.same_weights()
    assert "No working C" in fell.plan.explain() and "own engine" in fell.plan.explain()
