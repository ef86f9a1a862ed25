"""Modules, ports, rates, objectives and edges in a few words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from ..objectives import BatchKey, ParameterTerm, PortDrive, PortOutput, ShiftedInput, Term
from ..protos.auto import Auto
from .edge import Edge
from .masked_linear import MaskedLinear
from .module import Module
from .ports import Nodes
from .source import Source

if TYPE_CHECKING:
    from .structure import Structure

DEFAULTS = re.compile(r",? ?\b\w+=(None|False|Auto|0\.0)(?=,|$)")


def proto_text(module: Module) -> str:
    """What it computes, without the options that are left as they are.

    >>> from imprint.protos import GRUStack
    >>> proto_text(Module("enc", GRUStack(hidden=8)))
    'GRUStack(hidden=8, layers=1)'
    """
    if isinstance(module, Source):
        hidden = "" if module.hidden is None else f", mask={module.hidden.share:g}"
        return f"Source({module.batch_key!r}{hidden})"
    proto = module.proto
    if proto is None:
        return "-"
    options = DEFAULTS.sub("", proto.extra_repr()).removeprefix(", ")
    return f"{type(proto).__name__}({options or ', '.join(type(m).__name__ for m in proto.children())})"


def rate_text(module: Module) -> str:
    """When it emits and how it steps.

    >>> from imprint.graph import Rate
    >>> rate_text(Module("enc", None, schedule=Rate(inner_steps=4, emit_every=2)))
    'every 2 ticks, 4 inner steps'
    """
    rate = module.schedule
    if rate.follows is not None:
        words = [f"follows {rate.follows}"]
    else:
        words = ["every tick" if rate.emit_every == 1 else f"every {rate.emit_every} ticks"]
        words += [f"offset {rate.offset}"] * bool(rate.offset)
    words += [f"{rate.inner_steps} inner steps"] * (rate.inner_steps > 1)
    words += ["rests between"] * rate.step_when_emits
    return ", ".join(words)


def size_text(size: Any) -> str:
    """``192``, ``3×8×8`` or ``Auto``."""
    return "×".join(map(str, size)) if isinstance(size, tuple) else str(size)


def port_sizes(graph: Structure, module: Module) -> tuple[dict[str, str], dict[str, str]]:
    """Sizes of its input and its output ports; declared ones, or ``Auto``, before bind."""
    sizes = graph.sizes
    inputs = {p: size_text(sizes.get(f"{module.name}.{p}:drive", port.size)) for p, port in module.ports.inputs.items()}
    outputs = {}
    for port, nodes in module.nodes.items():
        declared = module.ports.out if nodes is None else _width(nodes)
        outputs[port] = size_text(sizes.get(f"{module.name}.{port}", declared))
    return inputs, outputs


def _width(nodes: Nodes) -> Any:
    """Of a custom port, where its declaration alone says it."""
    if nodes.indices is not None:
        return len(nodes.indices)
    part = nodes.slice
    if part is None or part.stop is None or part.stop < 0 or (part.start or 0) < 0:
        return Auto
    return len(range(part.start or 0, part.stop, part.step or 1))


def port_labels(graph: Structure, module: Module) -> tuple[dict[str, str], dict[str, str]]:
    """Names with sizes of what edges arrive at and leave from; drives that others read among the latter."""
    inputs, outputs = ({p: f"{p} {size}" for p, size in ports.items()} for ports in port_sizes(graph, module))
    for edge in graph.all_edges:
        if edge.source.module is module and edge.source.kind == "drive":
            outputs[leaving(edge)] = f"drive of {edge.source.name}"
    return inputs, outputs


def leaving(edge: Edge) -> str:
    """What an edge leaves from, among the labels of its module."""
    return edge.source.name + (":drive" if edge.source.kind == "drive" else "")


def wire_text(edge: Edge) -> str:
    """What stands on an edge: its delay, if it has one."""
    return f"delay {edge.delay}" if edge.delay else ""


def objective_texts(module: Module) -> list[str]:
    """One a declared objective: ``mse(x[t+1])``, ``activity_l1 × 0.0002``."""
    return [*map(_term_text, module.objectives), *map(_params_text, module.objectives.params)]


def _term_text(term: Term) -> str:
    inside = [f"on {term.on}"] * (term.on != "out")
    target = term.target
    if isinstance(target, BatchKey):
        inside.append(target.key)
    elif isinstance(target, ShiftedInput):
        inside.append(f"{target.source.name}[{_tick(target.shift)}]")
    elif isinstance(target, PortDrive):
        inside.append(f"drive of {target.module.name}.{target.port}")
    elif isinstance(target, PortOutput):
        inside.append(f"{target.module.name}.{target.port}[{_tick(target.shift)}]")
    inside += ["last"] * (term.at == "last")
    return term.name + (f"({', '.join(inside)})" if inside else "") + _weight(term.weight)


def _params_text(term: ParameterTerm) -> str:
    return f"{term.name}({term.tag}){_weight(term.weight)}"


def _tick(shift: int) -> str:
    return f"t{shift:+d}" if shift else "t"


def _weight(weight: float) -> str:
    return "" if weight == 1 else f" × {weight:g}"


def port_text(key: str) -> str:
    """A port's key in words: ``enc.in:drive`` is the drive of ``enc.in``."""
    return f"drive of {key.removesuffix(':drive')}" if key.endswith(":drive") else key


def projection_text(edge: Edge) -> str:
    """``linear 80→192``, with what constrains it; before bind as declared."""
    if edge.proj is None:
        return "Auto" if not isinstance(edge.projection, str) else edge.projection
    if not isinstance(edge.proj, MaskedLinear):
        return "identity"
    proj = edge.proj
    bound = "" if proj.max_abs is None else f", |w| ≤ {proj.max_abs:g}"
    masked = "" if proj.mask is None else ", masked"
    return f"linear {proj.in_features}→{proj.out_features}{masked}{bound}"


def count(*owners: nn.Module | None) -> int:
    """Parameters of these modules."""
    return sum(p.numel() for owner in owners if owner is not None for p in owner.parameters())


def table(rows: Sequence[Sequence[str | Sequence[str]]], right: Sequence[int] = ()) -> str:
    """Rows in columns, the first one as a head; a cell may have several lines.

    Args:
        right: numbers of the columns that are set to the right.

    >>> print(table([("name", "size"), ("a", "7"), (["b", "c"], "12")], right=[1]))
    name  size
    ----  ----
    a        7
    b       12
    c
    """
    lines: list[list[str]] = []
    for row in rows:
        cells = [[cell] if isinstance(cell, str) else list(cell) for cell in row]
        height = max(1, *map(len, cells))
        lines += [[cell[i] if i < len(cell) else "" for cell in cells] for i in range(height)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(rows[0]))]
    lines.insert(1, ["-" * w for w in widths])
    made = (
        [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]
        for line in lines
    )
    return "\n".join("  ".join(cells).rstrip() for cells in made)
