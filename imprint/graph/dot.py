"""``graph.to_dot()``: the same picture as text for Graphviz."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from .describe import leaving, objective_texts, port_labels, proto_text, rate_text, wire_text
from .layout import layers
from .look import LEARNS, OPEN, OTHER, SOURCE, STOPPED
from .module import Module
from .source import Source

if TYPE_CHECKING:
    from .structure import Structure


def to_dot(graph: Structure) -> str:
    """See :meth:`imprint.Graph.to_dot`."""
    lines = [
        "digraph imprint {",
        '  rankdir=LR; nodesep=0.4; ranksep=0.8; node [shape=plain, fontname="Helvetica"];',
        '  edge [fontname="Helvetica", fontsize=10];',
    ]
    ports = {name: port_labels(graph, graph[name]) for name in graph.order}
    for name in graph.order:
        lines.append(f"  {_quoted(name)} [label=<{_node(graph[name], *ports[name])}>];")
    depth = layers(graph)
    for edge in graph.all_edges:
        source, target = edge.source.module.name, edge.target.module.name
        out, into = list(ports[source][1]).index(leaving(edge)), list(ports[target][0]).index(edge.target.name)
        look = f'style={"dashed" if edge.stop_grad else "solid"}, color="{STOPPED if edge.stop_grad else OPEN}"'
        if wire_text(edge):
            look += f", label={_quoted(wire_text(edge))}"
        if depth[source] >= depth[target]:  # it leads back, and says nothing about who stands before whom
            look += ", constraint=false"
        lines.append(f"  {_quoted(source)}:o{out}:e -> {_quoted(target)}:i{into}:w [{look}];")
    return "\n".join([*lines, "}"])


def _node(module: Module, inputs: dict[str, str], outputs: dict[str, str]) -> str:
    """A table: what the module is, then a row for every pair of ports."""
    color = SOURCE if isinstance(module, Source) else LEARNS if module.objectives.has_data else OTHER
    about = [f"<B>{html.escape(module.name)}</B>"]
    about += map(html.escape, (proto_text(module), rate_text(module), *(f"loss: {t}" for t in objective_texts(module))))
    align = '<BR ALIGN="LEFT"/>'
    rows = [f'<TR><TD COLSPAN="2" BALIGN="LEFT" ALIGN="LEFT">{align.join(about)}</TD></TR>']
    for i in range(max(len(inputs), len(outputs))):
        cells = [
            f'<TD PORT="{side}{i}" ALIGN="{where}">{html.escape(list(texts.values())[i])}</TD>' if i < len(texts)
            else "<TD></TD>"
            for side, where, texts in (("i", "LEFT", inputs), ("o", "RIGHT", outputs))
        ]  # fmt: skip
        rows.append(f"<TR>{''.join(cells)}</TR>")
    look = f'BORDER="1" CELLBORDER="0" CELLSPACING="0" CELLPADDING="4" BGCOLOR="{color}"'
    return f"<TABLE {look}>{''.join(rows)}</TABLE>"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
