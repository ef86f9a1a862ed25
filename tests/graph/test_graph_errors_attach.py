"""What cannot be attached, and what comes too late."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import imprint
from imprint import (
    Auto,
    Clock,
    Graph,
    Labels,
    Module,
    Rate,
    Source,
    Targets,
    attach,
    protos,
)
from imprint.credit import Instant, Unrolled, Window
from imprint.errors import (
    ArgumentError,
    CoverageError,
    ImprintError,
    StateError,
    UnknownNameError,
)

from references.graph_kept import refused, untouched
from references.graph_small import TICKS, Case, batch, chain, cut, join, one, y
from references.states import differences

# -- attaching


@pytest.mark.parametrize("update", ["tick", 1, 2, 3, 4, 6, "rollout", None, Auto])
@pytest.mark.parametrize("credit", [Instant(), Window(2), Window(3), Unrolled()], ids=repr)
def test_credit_and_update(credit: Any, update: Any) -> None:
    """Instant with any, a window with its multiples, Unrolled with the rollout alone."""
    legal: dict[Any, list[Any]] = {
        Instant(): ["tick", 1, 2, 3, 4, 6, "rollout"], Window(2): [2, 4, 6, "rollout"],
        Window(3): [3, 6, "rollout"], Unrolled(): ["rollout"],
    }  # fmt: skip
    own = {Instant(): "tick", Window(2): 2, Window(3): 3, Unrolled(): "rollout"}[credit]
    graph = chain()
    if update is None or update is Auto:
        assert attach(graph, credit=credit, update=update).update == own
    elif update in legal[credit]:
        assert attach(graph, credit=credit, update=update).update == update
    else:
        with untouched(graph):
            words = ("'rollout'" if credit == Unrolled() else f"a multiple of {credit.k}, or 'rollout'", repr(update))
            refused(lambda: attach(graph, credit=credit, update=update), ArgumentError, repr(credit), *words)


UNATTACHABLE: dict[str, Case] = {
    "update of no ticks": (lambda g: attach(g, update=0), ArgumentError, ("counts ticks", "0")),
    "update below zero": (lambda g: attach(g, update=-2), ArgumentError, ("counts ticks", "-2")),
    "update of True": (lambda g: attach(g, update=True), ArgumentError, ("unknown update=", "True")),
    "update of a half": (lambda g: attach(g, update=0.5), ArgumentError, ("unknown update=", "0.5")),
    "unknown update": (lambda g: attach(g, update="ticks"), ArgumentError, ("unknown update=", "'ticks'", "'rollout'")),
    "credit as text": (
        lambda g: attach(g, credit="instant"), ArgumentError, ("not a credit", "Window(k)", "'instant'")
    ),
    "credit's class": (lambda g: attach(g, credit=Window), ArgumentError, ("not a credit", "Window")),
    "unknown rule": (lambda g: attach(g, "locl"), UnknownNameError, ("did you mean 'local'",)),
    "patterns": (lambda g: attach(g, {"enc": "local"}), ArgumentError, ("not a rule", "for layers")),
    "no rule": (lambda g: attach(g, 3), ArgumentError, ("not a rule", "3")),
    "unknown option of the rule": (lambda g: attach(g, "local", fil=None), ArgumentError, ("'fil'", "options fill")),
    "unknown fill": (lambda g: attach(g, "local", fill="x"), ArgumentError, ("auto | ce | predict | None", "'x'")),
    "no classes": (lambda g: attach(g, num_classes=0), ArgumentError, ("num_classes=", "0")),
    "classes of True": (lambda g: attach(g, num_classes=True), ArgumentError, ("num_classes=", "True")),
    "classes as text": (lambda g: attach(g, num_classes="3"), ArgumentError, ("num_classes=", "'3'")),
    "more classes than declared": (lambda g: attach(g, num_classes=5), ArgumentError, ("batch['y']", "3", "5")),
    "clipping at zero": (lambda g: attach(g, grad_clip=0), ArgumentError, ("grad_clip=", "0")),
    "clipping as text": (lambda g: attach(g, grad_clip="a"), ArgumentError, ("grad_clip=", "'a'")),
    "unknown monitor": (lambda g: attach(g, monitors="los"), UnknownNameError, ("did you mean 'loss'",)),
    "two monitors of a name": (
        lambda g: attach(g, monitors=["loss", "loss"]), ArgumentError, ("two are called 'loss'",)
    ),
    "contrast over a window": (
        lambda g: attach(g, "sigprop", credit=Window(2)), ArgumentError, ("within a tick", "Window")
    ),
    "contrast unrolled": (
        lambda g: attach(g, "sigprop", credit=Unrolled()), ArgumentError, ("within a tick", "Unrolled")
    ),
    "an optimizer for a function": (
        lambda g: attach(g, optimizer=torch.optim.SGD([torch.zeros(1)], 0.1)),
        ArgumentError, ("optimizer=", "not callable"),
    ),
    "no scheduler": (lambda g: attach(g, scheduler=3), ArgumentError, ("scheduler=", "not callable")),
    **{
        f"rule {name}": (
            lambda g, name=name: attach(g, name), ArgumentError, (f"'{name}' is not for graphs", "local_ce")
        )
        for name, rule in imprint.rules.registry.items() if "graph" not in rule.worlds
    },
    **{
        f"monitor {name}": (
            lambda g, name=name: attach(g, monitors=name), UnknownNameError, ("not for graphs", "grad_norm")
        )
        for name in imprint.monitors.metric.registry if name not in ("loss", "grad_norm", "update_ratio")
    },
    **{
        f"option {name}": (
            lambda g, name=name, value=value: attach(g, **{name: value}), ArgumentError, (name, "for layers of a model")
        )
        for name, value in {
            "labels": Labels(3), "layers": "enc", "exclude": "enc", "signal": nn.Linear(1, 1), "context_at": "enc",
            "task_loss": nn.MSELoss(), "example": torch.ones(1), "accumulate": 2, "strict": False,
        }.items()
    },
}  # fmt: skip


@pytest.mark.parametrize("name", UNATTACHABLE)
def test_what_cannot_be_attached(name: str) -> None:
    call, kind, words = UNATTACHABLE[name]
    graph = chain()
    with untouched(graph):
        refused(lambda: call(graph), kind, *words)
    attach(graph, "local_ce").step(batch())


TOKENS = {
    "local": (lambda g: attach(g, "local"), ("source 'x'", "tokens", "num_classes=", "fill=None")),
    "predict_input": (lambda g: attach(g, "predict_input"), ("source 'x'", "tokens", "num_classes=")),
    "sigprop": (lambda g: attach(g, "sigprop", num_classes=2), ("source 'x'", "integers", "signal", "'local_ce'")),
}


@pytest.mark.parametrize("name", TOKENS)
def test_tokens_are_no_values(name: str) -> None:
    """Nobody predicts them by a mean square error, and a random number is no token."""
    call, words = TOKENS[name]
    graph, _, _ = one(protos.TorchModule(nn.Embedding(9, 4)))
    data = {"x": torch.randint(9, (3, 5)), "y": torch.tensor([0, 1, 1])}
    graph.bind(data)
    call(graph)
    if name != "sigprop":
        data.pop("y")
    with untouched(graph):
        refused(lambda: graph.rollout(data), ArgumentError, *words)
    graph.manager.detach()
    attach(graph, "local", num_classes=2).step({**data, "y": torch.tensor([0, 1, 1])})
    assert set(graph.losses()) == {"m"}


@pytest.mark.parametrize("rule", [n for n, r in imprint.rules.registry.items() if "layers" not in r.worlds])
def test_rules_of_graphs_are_not_for_layers(rule: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    refused(lambda: attach(model, rule), ArgumentError, f"'{rule}' is for graphs", "Sequential")
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize("option,why", [("credit", "they are for graphs"), ("update", "those of a graph")])
def test_options_of_graphs_are_not_for_layers(option: str, why: str) -> None:
    model, given = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)), {"credit": Instant(), "update": "tick"}
    refused(lambda: attach(model, "local_ce", **{option: given[option]}), ArgumentError, option, why)


@pytest.mark.parametrize("options", [{"update": "summed"}, {"block_size": 2}], ids=["update", "block_size"])
def test_options_of_layers_are_not_for_graphs(options: dict[str, Any]) -> None:
    graph = encoder()
    refused(lambda: attach(graph, "local_ce", num_classes=3, **options), ArgumentError, next(iter(options)))
    assert graph.manager is None


def encoder(bind: bool = True) -> Graph:
    graph = one(protos.GRUStack(hidden=4))[0]
    return graph.bind(batch()) if bind else graph


def shared() -> Graph:
    """Two modules around one linear layer."""
    graph, src, linear = Graph(), Source("x"), nn.Linear(2, 2)
    a, b = (Module(n, protos.TorchModule(linear)) for n in "ab")
    graph.connect(src["out"], a["in"])
    graph.connect(a["out"], b["in"])
    return graph


def late() -> Graph:
    graph = encoder(False)
    graph.connect(graph["m"]["out"], Module("b", protos.GRUStack(hidden=4))["in"])
    return graph


def stepping(p: list[Tensor], made: list[int]) -> Any:
    """An optimizer for the first module, and none for the second."""
    made.append(1)
    return torch.optim.SGD(p, 0.1) if len(made) % 2 else 3


UNREADY: dict[str, tuple[Callable[[], Graph], Callable[[Graph], Any], type[ImprintError], tuple[str, ...]]] = {
    "no labels": (
        encoder, lambda g: attach(g, "local_ce").bind(cut(batch(), "y")),
        ArgumentError, ("'m' needs labels", "num_classes=N"),
    ),
    "values for labels": (
        encoder, lambda g: attach(g, "local_ce").bind(y(torch.randn(4))), ArgumentError, ("'m' needs labels",)
    ),
    "no labels to contrast": (
        encoder, lambda g: attach(g, "sigprop").bind(cut(batch(), "y")), ArgumentError, ("'m' needs labels",)
    ),
    "an optimizer that is none": (
        chain, lambda g: attach(g, "local_ce", optimizer=lambda p, made=[]: stepping(p, made)).bind(batch()),
        ArgumentError, ("optimizer= of module 'head'", "int"),
    ),
    "an optimizer of all weights": (
        chain, lambda g: attach(g, "local_ce", optimizer=lambda p: torch.optim.SGD(g.parameters(), 0.1)).bind(batch()),
        ArgumentError, ("module 'enc'", "parameters of other units"),
    ),
    "an optimizer with a closure": (
        chain, lambda g: attach(g, optimizer=torch.optim.LBFGS).bind(batch()), ArgumentError, ("module 'enc'", "LBFGS")
    ),
    "shared weights": (
        shared, lambda g: attach(g, "predict_input").bind(batch()),
        CoverageError, ("module 'b'", "weights with module 'a'"),
    ),
    "a target after its window": (
        late, lambda g: attach(g, "predict_input", credit=Window(2)).bind(batch()),
        ArgumentError, ("1 ticks late", "Window"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNREADY)
def test_what_cannot_form_groups(name: str) -> None:
    """Nothing half made stays behind, and another rule can be attached."""
    make, call, kind, words = UNREADY[name]
    graph = make()
    if not graph.bound:
        graph.bind(batch())
    weights = {k: v.clone() for k, v in graph.state_dict().items() if k != "_extra_state"}
    refused(lambda: call(graph), kind, *words)
    manager = graph.manager
    assert manager is not None and graph.learning is None
    assert not manager.props and not manager.filled and not manager.orphans and manager.signal is None
    refused(lambda: manager.propagators, StateError, "manager.bind(batch) first")
    manager.detach()
    assert differences(weights, {k: v for k, v in graph.state_dict().items() if k != "_extra_state"}) == []
    attach(graph, "frozen").step(batch())


def attached(ready: bool, **options: Any) -> Graph:
    graph = chain()
    manager = attach(graph, "local_ce", **options)
    if ready:
        manager.bind(batch())
    return graph


AFTER: dict[str, Case] = {
    "attach": (lambda g: attach(g), StateError, ("attached already", "detach()")),
    "connect": (lambda g: join(g), StateError, ("graph.connect", "manager.detach() first")),
    "add": (lambda g: g.add(Module("z", protos.MLP([2, 3]))), StateError, ("graph.add", "manager.detach() first")),
    "set_schedule": (lambda g: g.set_schedule("enc", Rate()), StateError, ("graph.set_schedule",)),
    "set_stop_grad": (
        lambda g: g.edges["enc_out__head_in"].set_stop_grad(False),
        StateError, ("'enc_out__head_in'", "gradient groups"),
    ),
    "open_edges": (lambda g: g.open_edges(), StateError, ("gradient groups",)),
    "step in eval mode": (lambda g: (g.eval(), g.manager.step(batch()))[1], StateError, ("eval mode", "predict")),
    "unknown group": (lambda g: g.manager.bind(batch()).freeze("ecn"), UnknownNameError, ("did you mean 'enc'",)),
    "unknown group to thaw": (
        lambda g: g.manager.bind(batch()).unfreeze("ecn"), UnknownNameError, ("did you mean 'enc'",)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", AFTER)
@pytest.mark.parametrize("ready", [False, True], ids=["attached", "ready"])
def test_what_comes_too_late(name: str, ready: bool) -> None:
    call, kind, words = AFTER[name]
    graph = attached(ready)
    if name == "step in eval mode":
        graph.eval()
    if "unknown group" in name:
        graph.manager.bind(batch())
    with untouched(graph):
        refused(lambda: call(graph), kind, *words)
    graph.train().rollout(batch())
    assert graph.manager.steps == 1


def test_objectives_are_declared_before_groups_are_made() -> None:
    """Until then they are part of them; after a detach they are free again."""
    graph = attached(False)
    graph["enc"].objectives.ce(target=Targets.batch_key("y"))
    graph.rollout(batch())
    assert not graph.manager.filled
    for declare in (
        lambda: graph["enc"].objectives.ce(target=Targets.batch_key("y")),
        lambda: graph["enc"].objectives.activity_l2(),
        lambda: graph["enc"].objectives.params_l2(),
        lambda: graph["enc"].objectives.remove(next(iter(graph["enc"].objectives))),
    ):
        with untouched(graph):
            refused(declare, StateError, "enc.objectives.", "manager.detach(), declare it, attach again")
    graph.manager.detach()
    graph["enc"].objectives.activity_l2()


def test_what_needs_groups_says_so() -> None:
    manager = attached(False).manager
    for call, name in (
        (lambda: manager.propagators, "propagators"), (lambda: manager.optimizers, "optimizers"),
        (lambda: manager.freeze("enc"), "freeze"), (lambda: manager.unfreeze("enc"), "unfreeze"),
        (manager.state_dict, "state_dict"), (manager.step_schedulers, "step_schedulers"),
    ):  # fmt: skip
        with untouched(manager.graph):
            refused(call, StateError, f"manager.{name}", "manager.bind(batch) first")
    refused(manager.losses, StateError, "nothing has been rolled out")
    assert manager.metrics() == {}


def test_a_manager_that_was_detached_does_nothing_more() -> None:
    graph = attached(True)
    old = graph.manager
    state = old.state_dict()
    old.detach()
    new = attach(graph, "local_ce").bind(batch())
    for call, name in (
        (old.detach, "detach"), (lambda: old.step(batch()), "step"), (lambda: old.bind(batch()), "bind"),
        (lambda: old.propagators, "propagators"), (lambda: old.load_state_dict(state), "load_state_dict"),
        (lambda: old.freeze("enc"), "freeze"),
    ):  # fmt: skip
        with untouched(graph):
            refused(call, StateError, f"manager.{name}", "detached from its graph")
    assert graph.manager is new
    new.step(batch())


def test_gradients_off() -> None:
    graph = attached(True)
    with torch.no_grad(), untouched(graph):
        refused(lambda: graph.manager.step(batch()), StateError, "gradients are off")


def test_a_clock_is_shared() -> None:
    """Not an error: what the refusals above leave to say yes to."""
    clock = Clock()
    graph = Graph(clock)
    graph.connect(Source("x")["out"], Module("m", protos.MLP([2, 3]))["in"])
    graph.rollout(batch())
    assert clock.tick == TICKS
