"""``print(graph.summary())``: what a graph is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .describe import count, objective_texts, port_sizes, port_text, projection_text, proto_text, rate_text, table
from .module import Module

if TYPE_CHECKING:
    from .structure import Structure


def summary(graph: Structure) -> str:
    """See :meth:`imprint.Graph.summary`."""
    modules, edges = graph.modules_by_name, graph.all_edges
    inner = len(modules) - len(graph.sources)
    about = ", ".join([_plural(inner, "module"), _plural(len(graph.sources), "source"), _plural(len(edges), "edge")])
    if graph.bound:
        total, trained = count(graph), sum(p.numel() for p in graph.parameters() if p.requires_grad)
        about += f", {total:,} parameters" + (f", {total - trained:,} of them frozen" if trained < total else "")
    else:
        about += "; not bound: parameters are made at bind"
    parts = [about]
    if modules:
        head = ("module", "proto", "in", "out", "rate", "parameters", "objectives")
        parts += ["", table([head, *(_module_row(graph, modules[n]) for n in graph.order)], right=[5])]
    if edges:
        head = ("edge", "from", "to", "delay", "gradient", "projection", "parameters")
        parts += ["", table([head, *_edge_rows(graph)], right=[3, 6])]
    return "\n".join(parts)


def _module_row(graph: Structure, module: Module) -> tuple[str | list[str], ...]:
    inputs, outputs = port_sizes(graph, module)
    made = module.proto is not None and module.proto.bound
    return (
        module.name, proto_text(module), [f"{p} {size}" for p, size in inputs.items()],
        [f"{p} {size}" for p, size in outputs.items()], rate_text(module), f"{count(module):,}" if made else "-",
        objective_texts(module),
    )  # fmt: skip


def _edge_rows(graph: Structure) -> list[tuple[str, ...]]:
    """By destination, in the order of a tick."""
    return [
        (
            edge.name, port_text(edge.source.key), edge.target.key, str(edge.delay),
            "stopped" if edge.stop_grad else "open", projection_text(edge),
            f"{count(edge):,}" if edge.proj is not None else "-",
        )
        for name in graph.order for edge in graph[name].incoming
    ]  # fmt: skip


def _plural(n: int, word: str) -> str:
    return f"{n} {word}{'s' * (n != 1)}"
