"""A small graph, its batches, and how tables of refusals are written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from imprint import Auto, Graph, Module, Ports, Rate, Source, Targets, protos
from imprint.errors import ImprintError

ROWS, TICKS, WIDTH, CLASSES = 4, 5, 2, 3
Case = tuple[Callable[[Graph], Any], type[ImprintError], tuple[str, ...]]


def batch(rows: int = ROWS, ticks: int = TICKS, width: int = WIDTH, seed: int = 0, **more: Any) -> dict[str, Any]:
    own = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, ticks, width, generator=own)
    return {"x": x, "y": torch.randint(CLASSES, (rows,), generator=own), **more}


def chain(bind: bool = True) -> Graph:
    """x -> enc (GRU) -> head (MLP) with a cross entropy."""
    torch.manual_seed(0)
    graph, src = Graph(), Source("x")
    enc, head = Module("enc", protos.GRUStack(hidden=4, layers=2)), Module("head", protos.MLP([4, Auto]))
    graph.connect(src["out"], enc["in"])
    graph.connect(enc["out"], head["in"])
    head.objectives.ce(target=Targets.batch_key("y"), num_classes=CLASSES)
    return graph.bind(batch()) if bind else graph


def one(
    proto: protos.proto.Proto | None = None, ports: Ports | None = None, schedule: Rate | None = None, **edge: Any
) -> tuple[Graph, Source, Module]:
    """x -> m, unbound."""
    torch.manual_seed(0)
    graph, src, module = Graph(), Source("x"), Module("m", proto or protos.MLP([Auto, 3]), ports, schedule)
    graph.connect(src["out"], module["in"], **edge)
    return graph, src, module


def two(*proto: Any, **ports: Any) -> Graph:
    """x and z -> m, unbound: into one port, or into a group of two."""
    graph, a, b = Graph(), Source("x"), Source("z")
    module = Module("m", proto[0] if proto else protos.MLP([Auto, 3]), Ports(**ports))
    names = list(module.ports.inputs) * (1 if module.ports.group else 2)
    graph.connect(a["out"], module[names[0]])
    graph.connect(b["out"], module[names[1]])
    return graph


def join(graph: Graph, *ends: str, **options: Any) -> Any:
    source, out, target, into = ends or ("x", "out", "head", "in")
    return graph.connect(graph[source][out], graph[target][into], **options)


def y(value: Any) -> dict[str, Any]:
    return batch(y=value)


def cut(data: dict[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in data.items() if k != key}


def varied(seed: int = 0, bind: bool = True) -> Graph:
    """x -> enc -> mid -> head: masked input, LayerNorm, BatchNorm, dropout, an objective with weights, two rates."""
    torch.manual_seed(seed)
    graph, src = Graph(), Source("x", mask=0.2)
    enc = Module("enc", protos.GRUStack(hidden=4, layernorm=True), Ports(in_default=3))
    mid = Module("mid", protos.MLP([4, 5, 4], norm="batch", dropout=0.3), schedule=Rate(emit_every=2))
    head = Module("head", protos.MLP([4, Auto]), schedule=Rate.follow("mid"))
    graph.connect(src["out"], enc["in"])
    graph.connect(enc["out"], mid["in"]).constrain(max_abs=0.3)
    graph.connect(mid["out"], head["in"])
    graph.connect(head["out"], enc["in"], delay=1)
    enc.objectives.contrastive(target=Targets.shifted_input(src, 1))
    enc.objectives.activity_l2(weight=0.1)
    head.objectives.ce(target=Targets.batch_key("y"), num_classes=CLASSES)
    head.objectives.params_l2(weight=0.01)
    return graph.bind(batch()) if bind else graph


def ragged(seed: int) -> dict[str, Any]:
    """A batch whose rows end at different ticks."""
    return batch(seed=seed, length=[[5, 3, 4, 2], [2, 5, 5, 4], [4, 4, 2, 4]][seed % 3])
