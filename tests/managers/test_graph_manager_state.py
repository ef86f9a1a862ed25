"""Checkpoints of a graph's manager: going on bit by bit where it was, or refusing and leaving everything as it is."""

from __future__ import annotations

import copy
import functools
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch

import imprint
from imprint import Graph, Targets, attach
from imprint.credit import Unrolled, Window
from imprint.errors import CheckpointError

from references.graph_kept import everything, refused, untouched
from references.graph_small import CLASSES, chain, ragged, varied
from references.states import differences

RULES: dict[str, tuple[Any, dict[str, Any]]] = {
    "local": ("local", {}),
    "local_ce": (imprint.rules.LocalCE(zero_init=False), {"update": 2}),
    "window": ("local_ce", {"credit": Window(2), "update": 4}),
    "unrolled": ("local", {"credit": Unrolled(), "fill": None}),
    "predict_input": ("predict_input", {}),
    "sigprop": ("sigprop", {"loss": "v14"}),
    "backprop": ("backprop", {}),
}


def build(name: str, seed: int = 0, bind: bool = True, ready: bool = True) -> Graph:
    """A graph with everything that has a state: masks, statistics, dropout, moments, schedules, heads, a signal."""
    graph = varied(seed, bind)
    rule, options = RULES[name]
    manager = attach(
        graph, rule, num_classes=CLASSES, grad_clip=1.0, optimizer=lambda p: torch.optim.Adam(p, 0.02),
        scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.7), **options,
    )  # fmt: skip
    if bind and ready:
        manager.bind(ragged(1))
    return graph


def begin(graph: Graph) -> dict[str, Any]:
    """Train, freeze a group, save as a file would."""
    torch.manual_seed(7)
    for seed in (1, 2):
        graph.manager.step(ragged(seed))
    graph.manager.freeze(_last(graph))
    graph.manager.step(ragged(3))
    graph.manager.step_schedulers()
    file = io.BytesIO()
    torch.save(graph.manager.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def _last(graph: Graph) -> str:
    return list(graph.manager.propagators)[-1]


def go_on(graph: Graph) -> Any:
    """The rest of the training, and all that is left of it."""
    found: list[Any] = []
    graph.manager.step(ragged(4))
    found.append(graph.losses())
    graph.manager.unfreeze(".*")
    for seed in (5, 6):
        graph.manager.step(ragged(seed))
        found.append(graph.losses())
        graph.manager.step_schedulers()
    return [everything(graph), found, repr(graph.manager)]


@pytest.mark.parametrize("where", ["bound", "ready", "unbound", "trained", "itself"])
@pytest.mark.parametrize("name", RULES)
def test_resumed_anywhere_it_ends_bit_by_bit_the_same(name: str, where: str) -> None:
    """In a graph of other weights, bound or not, ready or not, or in one that has gone on already."""
    straight = build(name)
    state = begin(straight)
    other = {
        "bound": lambda: build(name, seed=9, ready=False),
        "ready": lambda: build(name, seed=9),
        "unbound": lambda: build(name, seed=9, bind=False),
        "trained": lambda: build(name, seed=9),
        "itself": lambda: straight,
    }[where]()
    if where in ("trained", "itself"):
        go_on(other)
    if where != "itself":
        saved = torch.get_rng_state()
        want = go_on(_loaded(straight, state))
        torch.set_rng_state(saved)
    else:
        want = go_on(_loaded(build(name, seed=8), state))
    torch.manual_seed(99)
    assert differences(want, go_on(_loaded(other, state))) == []


def _loaded(graph: Graph, state: dict[str, Any]) -> Graph:
    graph.manager.load_state_dict(state)
    assert differences(state, graph.manager.state_dict()) == []
    return graph


@pytest.mark.parametrize("name", RULES)
def test_going_on_without_a_break_is_the_same(name: str) -> None:
    """The state holds all there is: saving and loading changes nothing; other random numbers do."""
    straight, resumed = build(name), build(name, seed=9)
    state = begin(straight)
    want = go_on(straight)
    got = go_on(_loaded(resumed, state))
    assert differences(want, got) == []
    other = _loaded(build(name, seed=9), state)
    torch.manual_seed(3)
    assert any("..weights" in k or ".weights" in k for k in differences(want, go_on(other)))


def test_a_state_is_a_copy() -> None:
    graph = build("local_ce")
    state = begin(graph)
    live = graph.manager.state_dict()
    kept = copy.deepcopy(live)
    go_on(graph)
    assert differences(kept, live) == []
    loaded = _loaded(build("local_ce"), state)
    kept = copy.deepcopy(state)
    go_on(loaded)
    assert differences(kept, state) == []


def test_a_stream_starts_anew_after_a_load() -> None:
    """What a stream held belongs to other weights."""
    graph = chain()
    manager = attach(graph, "local_ce", num_classes=CLASSES)
    tick = {"x": torch.ones(4, 2), "y": torch.zeros(4).long()}
    first = graph.step(tick)["head"]
    state = manager.state_dict()
    graph.step(tick)
    manager.load_state_dict(state)
    assert graph.run is None and graph.clock.tick == 1
    twin = chain()
    attach(twin, "local_ce", num_classes=CLASSES).load_state_dict(state)
    assert torch.equal(graph.step(tick)["head"], twin.step(tick)["head"]) and first.shape == (4, 1, CLASSES)


# -- what does not fit

Damage = Callable[[dict[str, Any]], Any]


def group(state: dict[str, Any], index: int = 0) -> dict[str, Any]:
    return state["groups"][list(state["groups"])[index]]


def moments(state: dict[str, Any]) -> dict[str, Any]:
    return group(state)["optimizers"][0]["state"]


def first(found: dict[str, Any]) -> str:
    return next(iter(found))


def put(found: dict[str, Any], key: str, value: Any) -> None:
    assert key in found
    found[key] = value


WEIGHT = "nodes.head.proto.layers.0.0.weight"
DAMAGES: dict[str, tuple[Damage, str]] = {
    "no rng": (lambda s: s.pop("rng"), "without 'rng'"),
    "one entry more": (lambda s: s.update(more=1), "with 'more'"),
    "another format": (lambda s: put(s, "format", 0), "another format"),
    "another rule": (lambda s: put(s["rule"], "name", "sigprop"), "another rule"),
    "another option": (lambda s: s["rule"].update(bias="no"), "another rule"),
    "another credit": (lambda s: put(s, "credit", "Window(k=7)"), "another credit"),
    "another update": (lambda s: put(s, "update", "rollout"), "another update"),
    "other orphans": (lambda s: s["orphans"].append("enc"), "other orphans"),
    "steps below zero": (lambda s: put(s, "steps", -1), "steps are damaged"),
    "tick as text": (lambda s: put(s, "tick", "1"), "tick are damaged"),
    "a weight less": (lambda s: s["graph"].pop(WEIGHT), "nodes.head"),
    "a weight more": (lambda s: s["graph"].update(more=torch.zeros(1)), "'more'"),
    "a weight's shape": (lambda s: put(s["graph"], WEIGHT, torch.zeros(1)), "another shape"),
    "a weight's dtype": (
        lambda s: put(s["graph"], WEIGHT, torch.zeros(3, 4).double()), "another dtype"
    ),
    "a weight that is none": (lambda s: put(s["graph"], WEIGHT, 3), "nodes.head"),
    "weights that are none": (lambda s: put(s, "graph", 3), "state"),
    "a head less": (lambda s: s["filled"].pop(first(s["filled"])), "what the rule filled in"),
    "a head's shape": (lambda s: put(s["filled"], first(s["filled"]), torch.zeros(9)), "another shape"),
    "a signal": (lambda s: put(s, "signal", {"x": torch.zeros(3, 2)}), "the signal"),
    "groups that are none": (lambda s: put(s, "groups", []), "without 'enc', 'head', 'mid'"),
    "a group less": (lambda s: s["groups"].pop("head"), "without 'head'"),
    "a group that is none": (lambda s: put(s["groups"], "head", None), "damaged"),
    "an optimizer less": (lambda s: group(s)["optimizers"].clear(), "number of optimizers"),
    "another optimizer": (lambda s: put(group(s)["optimizers"][0], "class", "SGD"), "another optimizer"),
    "other parameter groups": (lambda s: group(s)["optimizers"][0]["groups"][0]["params"].pop(), "parameter groups"),
    "moments of nothing": (lambda s: moments(s).update(w=moments(s).pop(first(moments(s)))), "state of 'w'"),
    "moments of another shape": (
        lambda s: put(moments(s)[first(moments(s))], "exp_avg", torch.zeros(1)), "another shape"
    ),
    "moments that are none": (lambda s: put(moments(s), first(moments(s)), 3), "damaged"),
    "no rate": (lambda s: put(group(s)["optimizers"][0], "groups", [{"params": 3}]), "damaged"),
    "a schedule less": (lambda s: group(s)["schedulers"].clear(), "number of schedulers"),
    "another schedule": (lambda s: put(group(s)["schedulers"][0], "class", "ExponentialLR"), "another scheduler"),
    "a schedule that is none": (lambda s: put(group(s)["schedulers"][0], "state", 3), "another scheduler"),
    "random numbers that are none": (lambda s: put(s, "rng", 3), "damaged"),
    "random numbers of another size": (lambda s: put(s["rng"], "cpu", torch.zeros(3, dtype=torch.uint8)), "damaged"),
    "no python numbers": (lambda s: s["rng"].pop("python"), "damaged"),
    "a target that is none": (lambda s: put(s, "target", 3), "target"),
    "another target": (lambda s: put(s["target"], "key", "z"), "another target"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.parametrize("where", ["unbound", "bound", "trained"])
def test_what_is_damaged_is_not_loaded(name: str, where: str) -> None:
    """Nothing of it, whatever it is; afterwards the whole one is loaded, or the training goes on."""
    damage, words = DAMAGES[name]
    if name == "a target that is none" and where != "trained":
        words = "damaged"  # found where it is needed
    whole, end = undamaged()
    state = copy.deepcopy(whole)
    damage(state)
    graph = build("local_ce", seed=5, bind=where != "unbound", ready=where == "trained")
    if where == "trained":
        begin(graph)
    with untouched(graph):
        refused(lambda: graph.manager.load_state_dict(state), CheckpointError, words)
    assert where == "trained" or (graph.learning is None and not graph.manager.props and not graph.manager.filled)
    assert graph.bound == (where != "unbound")
    if where != "bound":  # once is enough of two much alike
        assert differences(end, go_on(_loaded(graph, whole))) == []


@functools.cache
def undamaged() -> tuple[dict[str, Any], Any]:
    """A state, and the end of the training that goes on from it."""
    graph = build("local_ce")
    state = begin(graph)
    return state, go_on(graph)


@pytest.mark.parametrize("state", [None, 3, [], "state"], ids=repr)
def test_what_is_no_state(state: Any) -> None:
    graph = build("local_ce")
    with untouched(graph):
        refused(lambda: graph.manager.load_state_dict(state), CheckpointError, "not a state", type(state).__name__)


@pytest.mark.parametrize("name", [name for name in RULES if name != "local_ce"])
@pytest.mark.parametrize("bind", [True, False], ids=["bound", "unbound"])
def test_states_of_other_rules_are_refused(name: str, bind: bool) -> None:
    state = begin(build(name))
    graph = build("local_ce", bind=bind)
    with untouched(graph):
        refused(lambda: graph.manager.load_state_dict(state), CheckpointError, "another rule")


def test_states_of_other_graphs_are_refused() -> None:
    """Another graph, another objective, open edges that join other groups, another number of classes."""
    state = begin(build("window"))
    options: dict[str, Any] = {
        "grad_clip": 1.0, "optimizer": lambda p: torch.optim.Adam(p, 0.02), "credit": Window(2), "update": 4,
        "scheduler": lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.7),
    }  # fmt: skip
    small = chain()
    attach(small, "local_ce", num_classes=CLASSES, **options)
    joined = varied()
    joined.edges["mid_out__head_in"].set_stop_grad(False)
    attach(joined, "local_ce", num_classes=CLASSES, **options)
    declared = varied()
    declared["mid"].objectives.mse(target=Targets.port_output(declared["enc"]))
    attach(declared, "local_ce", num_classes=CLASSES, **options)
    other = varied()
    attach(other, "local_ce", num_classes=CLASSES, **{**options, "optimizer": lambda p: torch.optim.SGD(p, 0.1)})
    for graph, words in (
        (small, "weights"), (joined, "mid__head"), (declared, "what the rule filled in"), (other, "another optimizer"),
    ):  # fmt: skip
        with untouched(graph):
            refused(lambda graph=graph: graph.manager.load_state_dict(state), CheckpointError, words)
        graph.manager.step(ragged(1))


def test_a_failure_while_loading_is_undone() -> None:
    """Even where an optimizer of the user's own refuses only when it is written to."""

    class Moody(torch.optim.SGD):
        """Refuses to load once."""

        trouble = False

        def load_state_dict(self, state: Any) -> None:
            if Moody.trouble:
                Moody.trouble = False
                raise OSError("not now")
            super().load_state_dict(state)

    def make(seed: int) -> Graph:
        graph = varied(seed)
        attach(graph, "local_ce", num_classes=CLASSES, optimizer=lambda p: Moody(p, 0.1, momentum=0.9))
        graph.manager.step(ragged(seed))
        return graph

    state, graph = make(1).manager.state_dict(), make(2)
    Moody.trouble = True
    with untouched(graph), pytest.raises(OSError, match="not now"):
        graph.manager.load_state_dict(state)
    graph.manager.load_state_dict(state)
    assert differences(state, graph.manager.state_dict()) == []
