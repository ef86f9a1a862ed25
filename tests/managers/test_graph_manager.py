"""The manager of a graph: when it learns, what it leaves alone, and how it lets go."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import imprint
from imprint import Auto, Graph, InPort, InPortGroup, Module, Ports, Source, Targets, attach, protos
from imprint.credit import Instant, Unrolled, Window

from references.graph_kept import everything, untouched
from references.graph_small import CLASSES, batch, chain, one, ragged, varied
from references.states import differences

RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "local": ("local", {}),
    "local_ce": ("local_ce", {}),
    "local_ce, two ticks": ("local_ce", {"update": 2}),
    "local_ce, rollout": ("local_ce", {"update": "rollout"}),
    "local_ce, window": ("local_ce", {"credit": Window(2)}),
    "local_ce, unrolled": ("local_ce", {"credit": Unrolled()}),
    "predict_input": ("predict_input", {}),
    "predict_input, rollout": ("predict_input", {"update": "rollout"}),
    "sigprop": ("sigprop", {}),
    "sigprop, two ticks": ("sigprop", {"update": 2}),
    "backprop": ("backprop", {}),
    "backprop, window": ("backprop", {"credit": Window(2), "update": 4}),
}
LEARNED = [name for name in RULES if RULES[name][0] != "backprop"]


def attached(graph: Graph, name: str, **more: Any) -> imprint.GraphManager:
    rule, options = RULES[name]
    return attach(graph, rule, num_classes=CLASSES, optimizer=lambda p: torch.optim.Adam(p, 0.01), **options, **more)


def weights(graph: Graph) -> dict[str, Any]:
    return {k: v.clone() for k, v in graph.state_dict().items() if k != "_extra_state"}


def moved(graph: Graph, before: dict[str, Any]) -> set[str]:
    """Names of modules and edges with a weight that is not what it was."""
    found = differences(before, weights(graph))
    return {k.split(".")[2] for k in found}


# -- attaching


@pytest.mark.parametrize("name", RULES)
def test_attached_before_bind_or_after(name: str) -> None:
    """Bit by bit the same training."""
    graphs = [varied(bind=False), varied(bind=False)]
    for graph, early in zip(graphs, (True, False), strict=True):
        torch.manual_seed(1)
        if early:
            attached(graph, name)
            graph.rollout(ragged(1))
        else:
            graph.bind(ragged(1))
            attached(graph, name)
            graph.manager.step(ragged(1))
        for seed in (2, 3):
            graph.rollout(ragged(seed))
    assert differences(everything(graphs[0]), everything(graphs[1])) == []
    assert moved(graphs[0], weights(varied())) >= {"enc", "mid", "head"}


def test_attached_before_anything_is_connected() -> None:
    """The groups are formed at the first rollout that learns, and eval mode and no_learning are none."""
    graph = chain(False)
    manager = attach(graph, "local_ce")
    with imprint.no_learning():
        graph.rollout(batch())
    with torch.no_grad():
        graph.rollout(batch())
    manager.predict({"x": batch()["x"]})  # without labels: heads must not be filled in as if there were none
    assert graph.learning is None and graph.bound
    manager.step(batch())
    assert list(manager.filled) == ["enc.head"] and list(manager.propagators) == ["enc", "head"]


def test_labels_are_only_looked_for_where_they_are_needed() -> None:
    """No warning of inferred classes (warnings are errors here) for rules that fill nothing in with labels."""
    for rule, options in (("predict_input", {}), ("local", {"fill": None}), ("frozen", {})):
        graph = one(protos.GRUStack(hidden=3))[0].bind(batch())
        attach(graph, rule, **options).step(batch())
    graph = one(protos.MLP([2, 2]))[0]
    graph["m"].objectives.mse(target=Targets.shifted_input(graph["x"]))
    attach(graph, "sigprop").step(batch())


def test_number_of_classes() -> None:
    """Of a head that a rule fills in, of an Auto width, of a signal; the graph has none of its own afterwards."""
    graph = one(protos.GRUStack(hidden=4))[0].bind(batch())
    manager = attach(graph, "local_ce", num_classes=7).bind(batch())
    assert manager.filled["m.head"].objective.linear.weight.shape == (7, 4) and manager.labels.num_classes == 7
    manager.detach()
    assert graph.num_classes is None
    signal = attach(graph, "sigprop", num_classes=6).bind(batch()).signal
    assert signal is not None and signal.x.shape == (6, 2)
    graph, _, module = one(protos.MLP([2, Auto]))
    module.objectives.ce(target=Targets.batch_key("y"))
    attach(graph, num_classes=5).step(batch())
    assert graph.sizes["m.out"] == 5


# -- when it learns


@pytest.mark.parametrize("name", ["local_ce", "local_ce, window", "sigprop", "backprop"])
@pytest.mark.parametrize("how", ["eval", "no_grad", "inference_mode", "no_learning", "predict"])
def test_nothing_learns_unless_all_is_on(name: str, how: str) -> None:
    graph = varied()
    manager = attached(graph, name)
    manager.step(ragged(1))
    before, metrics = weights(graph), manager.metrics(reset=False)
    optimizers = manager.state_dict()["groups"]
    if how == "eval":
        graph.eval().rollout(ragged(2))
        graph.train()
    elif how == "predict":
        manager.predict(ragged(2))
    else:
        block = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode, "no_learning": imprint.no_learning}
        with block[how]():
            graph.rollout(ragged(2))
    statistics = {k for k in before if "running" in k or "num_batches" in k}
    kept = {k for k in before if k not in statistics or how in ("eval", "predict")}
    after = weights(graph)
    assert differences({k: before[k] for k in kept}, {k: after[k] for k in kept}) == []
    assert manager.steps == 1 and differences(metrics, manager.metrics(reset=False)) == []
    assert differences(optimizers, manager.state_dict()["groups"]) == []
    graph.rollout(ragged(2))
    assert manager.steps == 2 and moved(graph, before) >= {"enc", "head"}


@pytest.mark.parametrize("name", RULES)
def test_predict_changes_nothing(name: str) -> None:
    """Not the weights, statistics, random numbers, modes, losses, or the clock: what follows is as it would be."""
    graph, twin = varied(), varied()
    for each in (graph, twin):
        torch.manual_seed(4)
        attached(each, name).step(ragged(1))
        each["mid"].eval()  # a module that rests in its own mode
    with untouched(graph):
        losses = graph.manager.losses()
        out = graph.manager.predict({"x": ragged(2)["x"]}, keep="last")
        assert graph.manager.losses() == losses and not graph["mid"].training and graph["enc"].training
    assert out["head"].shape == (4, 1, CLASSES) and not out["head"].requires_grad
    torch.manual_seed(5)
    graph.manager.step(ragged(3))
    torch.manual_seed(5)
    twin.manager.step(ragged(3))
    assert differences(everything(graph), everything(twin)) == []


def test_predict_equals_the_graph_in_eval_mode() -> None:
    graph = varied()
    attached(graph, "local_ce").step(ragged(1))
    want = copy.deepcopy(graph).eval().rollout(ragged(2))
    got = graph.manager.predict(ragged(2))
    assert torch.equal(got["head"], want["head"]) and torch.equal(got["enc.out"], want["enc"])


@pytest.mark.parametrize("rule", ["local_ce", "sigprop"])
def test_predict_inside_a_stream(rule: str) -> None:
    graph, twin = chain(), chain()
    ticks = [{"x": torch.randn(4, 2), "y": torch.randint(CLASSES, (4,))} for _ in range(4)]
    for each in (graph, twin):
        torch.manual_seed(0)
        attach(each, rule, num_classes=CLASSES).bind(batch())
        for tick in ticks:
            out = each.step(tick)["head"]
            if each is graph:
                each.manager.predict(batch(rows=2))
    assert torch.equal(out, graph.run.signals["head.out"].latest[:, None])
    assert differences(everything(graph), everything(twin)) == []


# -- groups, orphans, regularisers


def test_groups_and_the_optimizers_of_their_members() -> None:
    """Modules joined by an open edge are one group, with an optimizer each, over weights of its own."""
    graph = varied()
    graph.edges["mid_out__head_in"].set_stop_grad(False)
    manager = attach(graph, "local_ce", optimizer=lambda p: torch.optim.SGD(p, 0.1)).bind(ragged(1))
    assert list(manager.propagators) == ["enc", "mid+head"]
    assert {n: len(o) for n, o in manager.optimizers.items()} == {"enc": 1, "mid+head": 2}
    for name, prop in manager.propagators.items():
        names = {id(p): k for k, p in prop.params.items()}
        shares = [[names[id(p)] for g in o.param_groups for p in g["params"]] for o in manager.optimizers[name]]
        assert sorted(k for share in shares for k in share) == sorted(prop.params), name
        if name == "mid+head":
            assert all(k.split(".")[1] in ("mid", "enc_out__mid_in") for k in shares[0])
            assert all(k.split(".")[1] in ("head", "mid_out__head_in") for k in shares[1])


def test_an_optimizer_moves_its_own_member_alone() -> None:
    graph = chain()
    graph.edges["enc_out__head_in"].set_stop_grad(False)
    rates = iter([0.0, 0.1])
    manager = attach(graph, optimizer=lambda p: torch.optim.SGD(p, next(rates))).bind(batch())
    before = weights(graph)
    manager.step(batch())
    assert moved(graph, before) == {"head", "enc_out__head_in"}


def test_no_optimizer_no_learning() -> None:
    graph = chain()
    chosen = iter([None, "sgd"])
    manager = attach(
        graph, "local_ce", num_classes=CLASSES,
        optimizer=lambda p: torch.optim.SGD(p, 0.1) if next(chosen) else None,
    )  # fmt: skip
    before = weights(graph)
    manager.step(batch())
    assert not any(k.startswith(("nodes.enc", "edges.x_out")) for k in changed(before, graph))
    assert any(k.startswith("nodes.head") for k in changed(before, graph))
    assert set(manager.losses()) == {"head"} and set(manager.metrics()) == {"head"}


def changed(before: dict[str, Any], graph: Graph) -> list[str]:
    after = weights(graph)
    return [k for k in before if not torch.equal(before[k], after[k])]


@pytest.mark.parametrize("credit", [Instant(), Window(2), Unrolled()], ids=repr)
def test_regularisers_alone_move_nothing(credit: Any) -> None:
    """Not even with weight decay; the module is listed as an orphan, and goes on running."""
    graph = chain()
    objectives = graph["enc"].objectives
    for declare in (objectives.activity_l1, objectives.activity_l2, objectives.params_l1, objectives.params_l2,
                    objectives.state_l1, objectives.state_l2):  # fmt: skip
        declare(weight=0.5)
    objectives.add(lambda view: view.h.square().mean(), data=False)
    manager = attach(
        graph, "local", fill=None, credit=credit, optimizer=lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.5)
    )
    before = weights(graph)
    out = [manager.step(batch(seed=i))["enc"] for i in range(3)]
    assert not any(k.startswith(("nodes.enc", "edges.x_out")) for k in changed(before, graph))
    assert any(k.startswith("nodes.head") for k in changed(before, graph))
    assert manager.orphans == ["enc"] and "orphans: enc" in repr(manager) and set(manager.losses()) == {"head"}
    assert not torch.equal(out[0], out[1])


def test_orphans_of_each_rule() -> None:
    """What nothing trains: all of them, or modules that a group's only loss does not reach."""
    graph = varied()
    assert attach(graph, "frozen").bind(ragged(1)).orphans == ["enc", "mid", "head"]
    graph = varied()
    manager = attach(graph, "local", fill=None).bind(ragged(1))
    assert manager.orphans == ["mid"] and set(manager.propagators) == {"enc", "head"}
    graph = chain()
    for p in graph["enc"].parameters():
        p.requires_grad_(False)
    for p in graph.edges["x_out__enc_in"].parameters():
        p.requires_grad_(False)
    manager = attach(graph, "local_ce").bind(batch())
    assert manager.orphans == ["enc"] and not manager.filled  # a classifier on what never moves would be for nothing
    graph = chain()
    graph.connect(graph["head"]["out"], Module("after", protos.MLP([3, 2]))["in"])
    manager = attach(graph, "backprop").bind(batch())
    assert manager.orphans == ["after"]


# -- freezing


@pytest.mark.parametrize("name", ["local_ce", "local_ce, window", "sigprop"])
def test_a_frozen_group_rests_and_goes_on_where_it_was(name: str) -> None:
    graph, twin = varied(), varied()
    for each in (graph, twin):
        attached(each, name).step(ragged(1))
    own = ("nodes.head", "edges.mid_out__head_in")
    before, count = weights(graph), taken(graph, "head")
    graph.manager.freeze("head")
    graph.manager.freeze("he.d")  # twice is once
    assert set(graph.manager.frozen) == {"head"} and "frozen: Adam" in repr(graph.manager)
    for _ in range(2):
        graph.rollout(ragged(2))
    found = changed(before, graph)
    assert found and not any(k.startswith(own) for k in found) and "head" not in graph.manager.losses()
    graph.manager.unfreeze(".*")
    before = weights(graph)
    graph.rollout(ragged(3))
    assert any(k.startswith(own) for k in changed(before, graph)) and not graph.manager.frozen
    assert taken(graph, "head") > count  # the same optimizer, its moments kept


def taken(graph: Graph, name: str) -> float:
    optimizer = (graph.manager.frozen.get(name) or graph.manager.optimizers[name])[0]
    return max(float(state["step"]) for state in optimizer.state.values())


# -- letting go


@pytest.mark.parametrize("name", RULES)
def test_detach_gives_the_graph_back(name: str) -> None:
    """With trained weights, edges as they were, free to change, and as any other graph."""
    graph, plain = varied(), varied()
    graph.edges["mid_out__head_in"].set_stop_grad(False)
    stops = {n: e.stop_grad for n, e in graph.edges.items()}
    manager = attached(graph, name)
    manager.step(ragged(1))
    assert all(not e.stop_grad for e in graph.all_edges) == (RULES[name][0] == "backprop")
    trained = weights(graph)
    assert manager.detach() is graph and graph.manager is None and graph.learning is None and graph.num_classes is None
    assert {n: e.stop_grad for n, e in graph.edges.items()} == stops and "detached" in repr(manager)
    assert differences(trained, weights(graph)) == []
    plain.edges["mid_out__head_in"].set_stop_grad(False)
    plain.load_state_dict(graph.state_dict())
    results = []
    for each in (graph, plain):
        torch.manual_seed(2)
        each.rollout(ragged(2))
        each.loss().backward()
        results.append([each.losses(), {n: p.grad for n, p in each.named_parameters() if p.grad is not None}])
        each["enc"].objectives.activity_l1()
        each.all_edges[0].set_stop_grad(False)
        each.add(Module("new", protos.MLP([2, 2])))
    assert differences(*results) == []
    attach(graph, "local_ce")


def test_detach_through_the_package() -> None:
    graph = chain()
    attach(graph, "backprop")
    assert imprint.managers.detach(graph) is graph and graph.manager is None
    assert imprint.managers.detach(graph) is graph
    assert all(e.stop_grad for e in graph.all_edges)


class Declared(nn.Module):
    """A loss that can be pickled."""

    def __call__(self, view: Any) -> torch.Tensor:
        return view.h.square().mean()


@pytest.mark.parametrize("how", [copy.deepcopy, lambda g: pickle.loads(pickle.dumps(g))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("name", ["local_ce", "sigprop", "backprop"])
def test_a_copy_of_an_attached_graph_is_a_plain_graph(name: str, how: Any) -> None:
    graph = varied()
    graph["mid"].objectives.add(Declared())
    attached(graph, name).step(ragged(1))
    with untouched(graph):
        twin = how(graph)
    assert twin.manager is None and twin.learning is None and twin.run is None
    assert all(e.stop_grad for e in twin.all_edges) and differences(weights(graph), weights(twin)) == []
    assert not {id(p) for p in graph.parameters()} & {id(p) for p in twin.parameters()}
    before = weights(graph)
    twin["enc"].objectives.activity_l1()
    twin.all_edges[0].set_stop_grad(False)
    attach(twin, "local_ce", num_classes=CLASSES).step(ragged(2))
    assert differences(before, weights(graph)) == [] and changed(before, twin)
    graph.manager.step(ragged(2))
    assert changed(before, graph)


# -- checkpoints of the graph alone


@pytest.mark.parametrize("name", RULES)
def test_plain_checkpoints_load_both_ways(name: str) -> None:
    """The names of weights do not tell that a graph is attached; heads and signal are the manager's."""
    graph, plain = varied(), varied(seed=1)
    assert list(plain.state_dict()) == list(graph.state_dict())
    attached(graph, name).step(ragged(1))
    assert list(plain.state_dict()) == list(graph.state_dict())
    plain.load_state_dict(graph.state_dict(), strict=True)
    assert differences(weights(graph), weights(plain)) == []
    unbound = varied(seed=2, bind=False)
    unbound.load_state_dict(graph.state_dict(), strict=True)
    assert differences(weights(graph), weights(unbound)) == []
    assert torch.equal(unbound.eval().rollout(ragged(2))["head"], plain.eval().rollout(ragged(2))["head"])
    other = varied(seed=3)
    graph.load_state_dict(other.state_dict(), strict=True)
    assert differences(weights(graph), weights(other)) == []
    alone = {k: v for k, v in other.state_dict().items() if k != "_extra_state"}  # as safetensors would have it
    plain.load_state_dict(alone, strict=True)
    assert differences(weights(plain), weights(other)) == []


def test_limits_hold_after_a_load() -> None:
    graph = varied()
    state = graph.state_dict()
    state["edges.enc_out__mid_in.proj.weight"] = torch.full((4, 4), 2.0)
    graph.load_state_dict(state)
    assert torch.equal(graph.edges["enc_out__mid_in"].proj.weight, torch.full((4, 4), 0.3))


# -- elsewhere


@pytest.mark.parametrize("name", ["local_ce", "predict_input", "sigprop", "backprop"])
def test_a_graph_that_moves_takes_heads_signal_and_optimizers_along(name: str) -> None:
    """To double precision in the middle of a training; gathered states of a stream are forgotten."""
    graph = varied()
    manager = attached(graph, name)
    manager.step(ragged(1))
    graph.double()
    data = ragged(2)
    manager.step({**data, "x": data["x"].double()})
    kinds = {p.dtype for p in graph.parameters()} | {p.dtype for t in manager.filled.values() for p in t.parameters()}
    for optimizers in manager.optimizers.values():
        kinds |= {v.dtype for o in optimizers for s in o.state.values() for k, v in s.items() if k != "step"}
    if manager.signal is not None:
        kinds.add(manager.signal.x.dtype)
    assert kinds == {torch.float64} and manager.predict(data)["head"].dtype == torch.float64
    fresh = varied(bind=False)
    fresh.load_state_dict(graph.state_dict())
    assert {p.dtype for p in fresh.parameters()} == {torch.float64}


def test_the_table() -> None:
    graph = varied()
    graph.edges["mid_out__head_in"].set_stop_grad(False)
    manager = attach(graph, "local_ce", credit=Window(2), update=4, optimizer=lambda p: torch.optim.SGD(p, 0.25))
    assert repr(manager) == (
        "rule 'local_ce' on a graph; groups and optimizers are made at the first rollout that learns"
    )
    manager.bind(ragged(1))
    counts = {n: sum(p.numel() for p in prop.params.values()) for n, prop in manager.propagators.items()}
    assert repr(manager).splitlines() == [
        "rule 'local_ce' on a graph",
        "group     learns from               credit       update  optimizer     parameters",
        "--------  ------------------------  -----------  ------  ------------  ----------",
        f"enc       contrastive, activity_l2  Window(k=2)  4       SGD(lr=0.25)  {counts['enc']}",
        f"mid+head  ce, params_l2             Window(k=2)  4       SGD(lr=0.25)  {counts['mid+head']}",
        "orphans: none",
    ]


def test_nothing_to_learn_is_no_error() -> None:
    """A graph that has nothing to learn is no error: it runs."""
    graph, src = Graph(), Source("x")
    twice = Module("m", protos.Elementwise("add"), Ports(in_=InPortGroup(a=InPort(), b=InPort())))
    graph.connect(src["out"], twice["in.a"])
    graph.connect(src["out"], twice["in.b"])
    manager = attach(graph, "local", num_classes=2)
    out = manager.step(batch())
    assert torch.equal(out["m"], 2 * batch()["x"]) and manager.losses() == {} and manager.orphans == []
