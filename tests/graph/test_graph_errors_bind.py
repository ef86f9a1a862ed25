"""What cannot be bound: which error, what it says, and that nothing half made stays behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from imprint import (
    Auto,
    Graph,
    InPort,
    InPortGroup,
    Module,
    Nodes,
    Ports,
    Rate,
    Source,
    Targets,
    attach,
    protos,
)
from imprint.errors import (
    ArgumentError,
    CheckpointError,
    DataError,
    ImprintError,
    ShapeError,
    StateError,
    UnknownNameError,
)

from references.graph_kept import everything, refused, untouched
from references.graph_small import CLASSES, ROWS, TICKS, batch, chain, join, one, two
from references.states import differences

# -- what cannot be bound


def grouped(proto: Any, *sizes: int, layout: str = "disjoint") -> Graph:
    return two(proto, in_=InPortGroup(layout, a=InPort(), b=InPort()))


def declared(graph: Graph, declare: Callable[[Module, Source], Any]) -> Graph:
    declare(graph["m"], graph["x"])
    return graph


def simple(declare: Callable[[Module, Source], Any], **options: Any) -> Graph:
    return declared(one(**options)[0], declare)


def ported(nodes: Nodes) -> Graph:
    graph, _, module = one(protos.GRUStack(hidden=4, layers=2))
    module.define_port("p", nodes)
    return graph


def constrained(mask: Any, **edge: Any) -> Graph:
    graph, _, _ = one(protos.MLP([2, 3]), **edge)
    graph.edges["x_out__m_in"].constrain(mask)
    return graph


def loop() -> Graph:
    graph, src = Graph(), Source("x")
    a = Module("a", protos.Elementwise("add"), Ports(in_=InPortGroup(u=InPort(), v=InPort())))
    b = Module("b", protos.MLP([Auto, Auto]))
    graph.connect(src["out"], a["in.u"])
    graph.connect(a["out"], b["in"])
    graph.connect(b["out"], a["in.v"], delay=1)
    b.objectives.mse(target=Targets.port_output(a))
    return graph


def followers() -> Graph:
    graph, src = Graph(), Source("x")
    a = Module("a", protos.MLP([2, 3]), schedule=Rate.follow("b"))
    b = Module("b", protos.MLP([3, 3]), schedule=Rate.follow("a"))
    graph.connect(src["out"], a["in"])
    graph.connect(a["out"], b["in"])
    return graph


def twice() -> Graph:
    """Two modules of different inputs with one proto."""
    graph, src, proto = Graph(), Source("x"), protos.Aggregator("concat->linear", 3)
    a, b = (Module(n, proto, Ports(in_=InPortGroup(u=InPort(), v=InPort()))) for n in "ab")
    for port in ("in.u", "in.v"):
        graph.connect(src["out"], a[port])
        graph.connect(a["out"], b[port])
    return graph


OTHER = chain()
Z = torch.randn(ROWS, TICKS, 5)
UNBINDABLE: dict[str, tuple[Callable[[], Graph], type[ImprintError], tuple[str, ...]]] = {
    "no source": (lambda: Graph().add(Module("m", protos.MLP([2, 3]))), StateError, ("no source", "Source('x')")),
    "dangling input": (
        lambda: chain(False).add(Module("extra", protos.MLP([4, 3]))), StateError, ("port extra.in", "no edge arrives")
    ),
    "dangling sub-port": (
        lambda: half_a_group(), StateError, ("port m.in.b", "no edge arrives")
    ),
    "port against proto": (
        lambda: one(protos.MLP([7, 3]), Ports(in_default=5))[0], ShapeError, ("port m.in", "7", "5", "leave one")
    ),
    "wider than its layer": (
        lambda: one(protos.GRUStack(hidden=4), Ports(out_default=5))[0], ShapeError, ("port m.out", "at most 4", "5")
    ),
    "edges of two sizes": (lambda: two(), ShapeError, ("port m.in", "'x.out': 2", "'z.out': 5", "InPort(size=…)")),
    "edges that do not add up": (
        lambda: two(in_default=InPort(size=9, combine="concat")),
        ShapeError, ("9", "'x.out': 2", "'z.out': 5", "size=7"),
    ),
    "shared group of two sizes": (
        lambda: grouped(protos.MLP([Auto, 3]), layout="shared"), ShapeError, ("agree in size", "'in.a': 2, 'in.b': 5")
    ),
    "operands of two sizes": (
        lambda: grouped(protos.Elementwise("sub->abs")), ShapeError, ("module 'm'", "'in.a': 2, 'in.b': 5")
    ),
    "operands in one port": (
        lambda: two(protos.Elementwise("sub->abs")), ShapeError, ("different sizes",)
    ),
    "operands without a group": (
        lambda: one(protos.Elementwise("sub->abs"))[0], ArgumentError, ("named sub-ports", "InPortGroup")
    ),
    "operands that are shared": (
        lambda: grouped(protos.Elementwise("add"), layout="shared"), ArgumentError, ("layout='disjoint'", "shared")
    ),
    "identity between sizes": (
        lambda: one(protos.MLP([7, 3]), projection="identity")[0], ShapeError, ("x_out__m_in", "7", "2", "'linear'")
    ),
    "sizes in a circle": (loop, ShapeError, ("'a', 'b' depend on each other",)),
    "no such layer": (lambda: ported(Nodes.of(2, slice=slice(0, 2))), ShapeError, ("port m.p", "layers 0..1", "2")),
    "no such layer below": (lambda: ported(Nodes.of(-3, slice=slice(0, 2))), ShapeError, ("layers 0..1", "-3")),
    "slice too long": (lambda: ported(Nodes.of(slice=slice(0, 9))), ShapeError, ("within 0..4", "slice(0, 9, None)")),
    "slice behind": (lambda: ported(Nodes.of(slice=slice(9, None))), ShapeError, ("within 0..4",)),
    "slice before": (lambda: ported(Nodes.of(slice=slice(-9, 2))), ShapeError, ("within 0..4",)),
    "unit too high": (lambda: ported(Nodes.of(indices=[0, 4])), ShapeError, ("within 0..3", "(0, 4)")),
    "no unit": (lambda: ported(Nodes.of(indices=[])), ShapeError, ("within 0..3", "()")),
    "mask of another shape": (
        lambda: constrained(torch.ones(3, 2)), ShapeError, ("edge 'x_out__m_in'", "(2, 2)", "(3, 2)")
    ),
    "mask on an identity": (
        lambda: constrained(torch.ones(2, 2), projection="identity"), ArgumentError, ("no weights to constrain",)
    ),
    "recurrent mask of another shape": (
        lambda: recurrent_mask(torch.ones(2, 2)), ShapeError, ("recurrent_params", "(4, 4)", "(2, 2)")
    ),
    "follows nobody": (
        lambda: one(schedule=Rate.follow("mm"))[0], UnknownNameError, ("module 'm'", "follows 'mm'", "did you mean 'm'")
    ),
    "follow each other": (followers, ArgumentError, ("a -> b -> a",)),
    "one proto, two inputs": (twice, ShapeError, ("module 'b'", "bound to other sizes")),
    "objective on an unknown port": (
        lambda: simple(lambda m, s: m.objectives.activity_l2(on="ot")),
        UnknownNameError, ("'activity_l2'", "'ot'", "'out'"),
    ),
    "objective on an input": (
        lambda: simple(lambda m, s: m.objectives.activity_l2(on="in")),
        UnknownNameError, ("no output port", "There are: out"),
    ),
    "drive of an unknown port": (
        lambda: simple(lambda m, s: m.objectives.mse(target=Targets.port_drive(m, "inn"))),
        UnknownNameError, ("the drive of 'inn'", "did you mean 'in'"),
    ),
    "drive of an output": (
        lambda: simple(lambda m, s: m.objectives.mse(target=Targets.port_drive(m, "out"))),
        UnknownNameError, ("no input port",),
    ),
    "drive of a name": (
        lambda: simple(lambda m, s: m.objectives.mse(target=Targets.port_drive("m", "in"))),
        ArgumentError, ("no module of this graph", "x, m", "port_drive('m', 'in')"),
    ),
    "drive in another graph": (
        lambda: simple(lambda m, s: m.objectives.mse(target=Targets.port_drive(OTHER["enc"], "in"))),
        ArgumentError, ("no module of this graph", "port_drive('enc', 'in')"),
    ),
    "output of an unknown port": (
        lambda: simple(lambda m, s: m.objectives.mse(target=Targets.port_output(m, "ot"))),
        UnknownNameError, ("'ot'", "'out'"),
    ),
    "shift of a module": (
        lambda: simple(lambda m, s: m.objectives.mse(target=Targets.shifted_input(m, 1))),
        ArgumentError, ("no source of this graph", "shifted_input('m', 1)"),
    ),
    "shift of another source": (
        lambda: simple(lambda m, s: m.objectives.mse(target=Targets.shifted_input(Source("z"), 1))),
        ArgumentError, ("no source of this graph", "one of x"),
    ),
    "next input of another width": (
        lambda: simple(lambda m, s: m.objectives.mse(target=Targets.shifted_input(s, 1))),
        ShapeError, ("'mse'", "(3,)", "(2,) of shifted_input('x', 1)"),
    ),
    "drive of another width": (
        lambda: simple(lambda m, s: m.objectives.mse(target=Targets.port_drive(m, "in"))), ShapeError, ("(3,)", "(2,)")
    ),
    "fewer units than classes": (
        lambda: simple(lambda m, s: m.objectives.ce(target=Targets.batch_key("y"), num_classes=5)),
        ShapeError, ("fewer units", "at least 5", "3"),
    ),
    "class weights that do not fit": (
        lambda: simple(lambda m, s: m.objectives.ce(target=Targets.batch_key("y"), class_weight=torch.ones(2))),
        ShapeError, ("class_weight", "3", "2"),
    ),
    "no parameters of that tag": (
        lambda: simple(lambda m, s: m.objectives.params_l2("recurrent_params")),
        ArgumentError, ("recurrent_params", "MLP"),
    ),
    "unknown parameters": (
        lambda: simple(lambda m, s: m.objectives.params_l2("recurent")),
        UnknownNameError, ("'recurent'", "recurrent_params"),
    ),
    "states of a proto without": (
        lambda: simple(lambda m, s: m.objectives.state_l2()), ArgumentError, ("'state_l2'", "keeps no state")
    ),
    "unknown states": (
        lambda: simple(lambda m, s: m.objectives.state_l2("membrane"), proto=protos.GRUStack(hidden=3)),
        ArgumentError, ("'membrane'", "'recurrent'"),
    ),
    "a width nobody knows": (
        lambda: without_y(one(protos.MLP([2, Auto]))[0]), ShapeError, ("output width is Auto", "num_classes")
    ),
    "a width from a missing key": (
        lambda: simple(lambda m, s: m.objectives.mse(target=Targets.batch_key("w")), proto=protos.MLP([2, Auto])),
        DataError, ("no key 'w'", "['x', 'y', 'z']"),
    ),
}  # fmt: skip


def half_a_group() -> Graph:
    graph, src = Graph(), Source("x")
    module = Module("m", protos.Elementwise("add"), Ports(in_=InPortGroup(a=InPort(), b=InPort())))
    graph.connect(src["out"], module["in.a"])
    return graph


def recurrent_mask(mask: Tensor) -> Graph:
    graph, _, module = one(protos.GRUStack(hidden=4))
    module.constrain(mask=mask)
    return graph


def without_y(graph: Graph) -> Graph:
    graph.sources["x"].batch_key = "z"  # whose batch has no labels
    return graph


@pytest.mark.parametrize("name", UNBINDABLE)
@pytest.mark.parametrize("how", ["bind", "rollout", "manager"])
def test_what_cannot_be_bound(name: str, how: str) -> None:
    make, kind, words = UNBINDABLE[name]
    graph = make()
    data = batch(z=Z)
    if name == "a width nobody knows":
        del data["y"]
    calls = {"bind": graph.bind, "rollout": graph.rollout, "manager": lambda b: graph.manager.bind(b)}
    if how == "manager":
        attach(graph)
    with untouched(graph):
        refused(lambda: calls[how](data), kind, *words)
    assert not graph.bound and not graph.sizes and not any(m.views for m in graph.modules_by_name.values())


def test_a_bind_that_fails_halfway_leaves_no_trace() -> None:
    """Encoder and head are made before the objective is refused; another batch then binds as if there had been none."""
    first, second = one(protos.GRUStack(hidden=4))[0], one(protos.GRUStack(hidden=4))[0]
    for graph in (first, second):
        graph["m"].objectives.mse(target=Targets.shifted_input(graph["x"]))
    torch.manual_seed(1)
    with untouched(first):
        refused(lambda: first.rollout(batch(width=3)), ShapeError, "(4,)", "(3,)")
    assert differences(everything(first.bind(batch(width=4))), everything(seeded(second).bind(batch(width=4)))) == []
    assert first.rollout(batch(width=4))["m"].shape == (ROWS, TICKS, 4)


def seeded(graph: Graph) -> Graph:
    torch.manual_seed(1)
    return graph


def test_an_objective_declared_later_is_refused_every_time() -> None:
    graph = chain()
    graph["head"].objectives.ce(target=Targets.batch_key("y"), num_classes=7)
    for _ in range(2):  # the second time, too
        with untouched(graph):
            refused(lambda: graph.rollout(batch()), ShapeError, "at least 7", "3")
    term = list(graph["head"].objectives)[1]
    graph["head"].objectives.remove(term)
    assert graph.rollout(batch())["head"].shape == (ROWS, TICKS, CLASSES)


def test_new_edges_keep_the_sizes_and_the_precision_there_are() -> None:
    graph = chain()
    join(graph)
    with untouched(graph):
        refused(lambda: graph.rollout(batch(width=3)), ShapeError, "('B', 'T', 2)", "(4, 5, 3)")
    doubles = batch()
    graph.rollout({**doubles, "x": doubles["x"].double()})
    assert {p.dtype for p in graph.parameters()} == {torch.float32}


def test_parameters_before_bind() -> None:
    graph, sources = chain(False), two(in_default=InPort(combine="concat")).bind(batch(z=Z)).state_dict()
    for call in (lambda: list(graph.parameters()), lambda: torch.optim.Adam(graph.parameters())):
        with untouched(graph):
            refused(call, StateError, "graph.parameters", "graph.bind(batch) first")
    with untouched(graph):
        refused(lambda: graph.load_state_dict({}), StateError, "neither it nor the checkpoint is bound")
        refused(lambda: graph.load_state_dict(sources), CheckpointError, "other sources", "['x']", "['x', 'z']")
        refused(lambda: graph.load_state_dict({"_extra_state": {"known": {"dtype": 3}}}), CheckpointError, "damaged")


def test_a_checkpoint_of_another_graph_leaves_an_unbound_one_unbound() -> None:
    graph, other = chain(False), one(protos.GRUStack(hidden=4))[0].bind(batch()).state_dict()
    with untouched(graph):
        refused(lambda: graph.load_state_dict(other), CheckpointError, "other weights")
    graph.load_state_dict(chain().state_dict())
    assert differences(dict(graph.state_dict()), dict(chain().state_dict())) == []
