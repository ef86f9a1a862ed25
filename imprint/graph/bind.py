"""From declared ports, edges and one batch to sizes, projections and parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import ArgumentError, DtypeError, ImprintError, ShapeError, StateError
from ..protos.auto import Auto
from .module import Module
from .source import Source
from .width import auto_width

if TYPE_CHECKING:
    from .graph import Graph

Size = int | torch.Size


def infer(graph: Graph, batch: dict[str, Any]) -> dict[str, Any]:
    """What a batch tells: sizes, dtype and device of the sources; what is bound already stays as it is.

    Raises:
        ShapeError: a source has other features than those the graph was bound with.
    """
    if not graph.sources:
        raise StateError("graph", "it has no source", fix="graph.add(imprint.Source('x'))")
    known: dict[str, Any] = {"sources": {}, "widths": {}, "dtype": None, "device": None}
    if graph.known is not None:
        known = {**graph.known, "sources": dict(graph.known["sources"]), "widths": dict(graph.known["widths"])}
    for source in graph.sources.values():
        x = source.read(batch)
        if source.name in known["sources"]:
            check_bound_size(graph, source, x)
        known["sources"][source.name] = x.shape[2] if x.dim() == 3 and x.is_floating_point() else list(x.shape[2:])
        if x.is_floating_point() and known["dtype"] is None:
            known["dtype"], known["device"] = str(x.dtype).removeprefix("torch."), str(x.device)
    if known["dtype"] is None:
        known["dtype"], known["device"] = str(torch.get_default_dtype()).removeprefix("torch."), str(x.device)
    return known


def build(graph: Graph, known: dict[str, Any], batch: dict[str, Any] | None) -> None:
    """Resolve every size and make what is not made yet.

    Raises:
        ShapeError: sizes that contradict each other; names all of them.
        StateError: an input port without an edge.
    """
    kind = {"dtype": getattr(torch, known["dtype"]), "device": torch.device(known["device"])}
    sizes = graph.sizes
    for name, size in known["sources"].items():
        sizes[f"{name}.out"] = size if isinstance(size, int) else torch.Size(size)

    def width(module: Module) -> int:
        if module.name not in known["widths"]:
            known["widths"][module.name] = auto_width(graph, module, batch)
        return known["widths"][module.name]

    waiting = [graph.modules_by_name[n] for n in graph.order if n not in graph.sources]
    for module in waiting:
        _promise(module, sizes)
    while waiting:
        ready = [m for m in waiting if all(e.source.key in sizes for e in m.incoming)]
        if not ready:
            names = ", ".join(repr(m.name) for m in waiting)
            raise ShapeError(
                "graph.bind", f"the sizes of modules {names} depend on each other",
                expected="one explicit size a cycle",
                fix="give Ports(out_default=…) or an InPort(size=…) inside the cycle",
            )  # fmt: skip
        for module in ready:
            _bind_module(module, sizes, width, kind)
        waiting = [m for m in waiting if m not in ready]


def _promise(module: Module, sizes: dict[str, Any]) -> None:
    """The output width that is known before the inputs are: inside a cycle others wait for it."""
    assert module.proto is not None
    natural = module.proto.output_dim if module.ports.out is Auto else module.ports.out
    if natural is not None:
        sizes.setdefault(f"{module.name}.out", natural)


def _bind_module(module: Module, sizes: dict[str, Any], width: Callable[[Module], int], kind: dict[str, Any]) -> None:
    ports = {port: _port_size(module, port, sizes) for port in module.ports.inputs}
    for port, size in ports.items():
        sizes[f"{module.name}.{port}:drive"] = size
    _check_group(module, ports)
    proto = module.proto
    assert proto is not None
    inputs = _proto_sizes(module, ports)
    if not proto.bound:
        _bind_proto(module, inputs, _declared_width(module, width), **kind)
    elif proto.input_dim != inputs:
        raise ShapeError(
            f"module {module.name!r}", "its proto is bound to other sizes", expected=proto.input_dim, got=inputs,
            fix="give each module a proto of its own, and leave binding to the graph",
        )  # fmt: skip
    _make_views(module, sizes)
    for edge in module.incoming:
        if edge.proj is None:
            size = sizes[edge.source.key]
            concat = module.ports.inputs[edge.target.name].combine == "concat"
            edge.bind(size, size if concat else ports[edge.target.name], **kind)
    module.project_()


def _bind_proto(module: Module, inputs: Any, width: int | None, **kind: Any) -> None:
    assert module.proto is not None
    try:
        module.proto.bind(inputs, width, **kind)
    except ImprintError as error:
        error.where = f"module {module.name!r}, {error.where}"
        several = not isinstance(inputs, (int, dict))
        error.fix = error.fix or (
            "x.float() for values; a proto that takes tokens or images, or x.flatten(2), for others" if several
            else f"other ports or another proto for module {module.name!r}"
        )  # fmt: skip
        raise


def _port_size(module: Module, port: str, sizes: dict[str, Any]) -> Size:
    """The table of Auto for input ports."""
    where = f"port {module.name}.{port}"
    edges = [e for e in module.incoming if e.target.name == port]
    declared, bound = module.ports.inputs[port], sizes.get(f"{module.name}.{port}:drive")
    if not edges:
        raise StateError(where, "no edge arrives at it", fix=f"graph.connect(<source>['out'], {module.name}[{port!r}])")
    arriving = {e.source.key: sizes[e.source.key] for e in edges}
    assert module.proto is not None
    fixed = module.proto.input_dim if module.ports.group is None and isinstance(module.proto.input_dim, int) else None
    explicit: Any = next((s for s in (bound, declared.size, fixed) if s is not None and s is not Auto), None)
    if fixed is not None and explicit != fixed and bound is None:
        raise ShapeError(
            where, "its size contradicts the proto's", expected=fixed, got=explicit,
            fix="leave one of the two Auto",
        )  # fmt: skip
    if declared.combine == "concat":
        widths = [sizes[e.source.key] for e in edges]  # one an edge: a port may arrive twice, with another delay
        if any(not isinstance(s, int) for s in widths):
            raise ShapeError(where, "only vectors can be concatenated", got=arriving, fix="combine='sum'")
        total = sum(widths)
        if explicit is not None and explicit != total:
            raise ShapeError(
                where, "the sizes of its edges do not add up to its own", expected=explicit, got=arriving,
                fix=f"InPort(size={total}, combine='concat'), or leave it Auto",
            )  # fmt: skip
        return total
    if explicit is not None:
        return explicit
    if len(set(arriving.values())) > 1:
        raise ShapeError(
            where, "its edges bring different sizes", expected="one size, or a declared one", got=arriving,
            fix="InPort(size=…), or InPort(combine='concat')",
        )  # fmt: skip
    return next(iter(arriving.values()))


def _check_group(module: Module, ports: dict[str, Size]) -> None:
    group = module.ports.group
    if group is None:
        if module.proto is not None and module.proto.grouped:
            raise ArgumentError(
                f"module {module.name!r}", f"{type(module.proto).__name__} needs named sub-ports",
                fix="Ports(in_=InPortGroup(a=InPort(), b=InPort()))",
            )  # fmt: skip
        return
    if module.proto is not None and module.proto.grouped and group.layout != "disjoint":
        raise ArgumentError(
            f"module {module.name!r}", f"{type(module.proto).__name__} takes its operands apart",
            expected="layout='disjoint'", got=group.layout, fix="InPortGroup(a=…, b=…)",
        )  # fmt: skip
    if (group.layout == "shared" or module.compares_operands) and len(set(ports.values())) > 1:
        raise ShapeError(
            f"module {module.name!r}", "its sub-ports have to agree in size", expected="one size", got=ports,
            fix="the same InPort(size=…) for all, with projection='linear' where edges bring others",
        )  # fmt: skip


def _proto_sizes(module: Module, ports: dict[str, Size]) -> Any:
    group = module.ports.group
    if group is None:
        return ports["in"]
    if module.proto is not None and module.proto.grouped:
        return {k.removeprefix("in."): v for k, v in ports.items()}
    sizes = list(ports.values())
    return sum(s for s in sizes if isinstance(s, int)) if group.layout == "disjoint" else sizes[0]


def _declared_width(module: Module, width: Callable[[Module], int]) -> int | None:
    assert module.proto is not None
    if not module.proto.auto_output:
        return None
    return module.ports.out if isinstance(module.ports.out, int) else width(module)


def _make_views(module: Module, sizes: dict[str, Any]) -> None:
    proto = module.proto
    assert proto is not None
    deepest = proto.layer_dims[-1]
    out = module.ports.out
    if isinstance(out, int) and isinstance(deepest, int) and out > deepest:
        raise ShapeError(
            f"port {module.name}.out", "out_default is wider than the deepest layer", expected=f"at most {deepest}",
            got=out, fix="widen the proto, or leave it Auto",
        )  # fmt: skip
    for port, nodes in module.nodes.items():
        if nodes is None:
            whole = not isinstance(out, int) or out == deepest
            module.views[port] = (len(proto.layer_dims) - 1, None if whole else slice(0, out))
            sizes[f"{module.name}.{port}"] = deepest if whole else out
        else:
            layer, index, size = nodes.resolve(f"port {module.name}.{port}", proto.layer_dims)
            anchor = next(proto.parameters(), None)
            if isinstance(index, Tensor) and anchor is not None:
                index = index.to(anchor.device)
            module.views[port], sizes[f"{module.name}.{port}"] = (layer, index), size


def check_bound_size(graph: Graph, source: Source, x: Tensor) -> None:
    """Refuse a batch whose features are not those the graph was bound with."""
    bound = graph.sizes[f"{source.name}.out"]
    size = x.shape[2] if isinstance(bound, int) and x.dim() == 3 else torch.Size(x.shape[2:])
    if size != bound:
        expected = ("B", "T", *((bound,) if isinstance(bound, int) else bound))
        raise ShapeError(
            f"source {source.name!r}", "its input has other features than those the graph was bound with",
            expected=expected, got=tuple(x.shape), fix="the same features, or a new graph",
        )  # fmt: skip
    if isinstance(bound, int) and not x.is_floating_point():
        raise DtypeError(
            f"source {source.name!r}", "its input are integers, and the graph was bound with values",
            expected="floating values", got=x.dtype, fix="x.float()",
        )  # fmt: skip


def numel(size: Size) -> int:
    """Numbers in one row of a port."""
    return size if isinstance(size, int) else math.prod(size)
