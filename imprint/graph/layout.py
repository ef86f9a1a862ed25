"""Where modules and edges of a picture stand: layers from left to right, few crossings, straight edges.

Reference: Sugiyama, Tagawa & Toda, Methods for visual understanding of hierarchical system structures (1981).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from . import look
from .describe import leaving, objective_texts, port_labels, proto_text, rate_text, wire_text
from .edge import Edge
from .module import Module
from .order import tick_order
from .placing import set_heights, set_order

if TYPE_CHECKING:
    from .structure import Structure

Measure = Callable[[str, float, bool], float]
"""Width in inches of a text of so many points, bold or not."""
Point = tuple[float, float]


@dataclass(eq=False)
class Box:
    """A module, or (without `module`) the place where an edge passes a layer.

    Attributes:
        lines: what stands in it under its name.
        x, y: left edge and middle, in inches; y grows downwards.
        inputs, outputs: text and height of each port relative to the middle.
    """

    module: Module | None = None
    lines: list[str] = field(default_factory=list)
    layer: int = 0
    x: float = 0.0
    y: float = 0.0
    width: float = 0.0
    height: float = 0.12
    inputs: dict[str, tuple[str, float]] = field(default_factory=dict)
    outputs: dict[str, tuple[str, float]] = field(default_factory=dict)

    def port(self, name: str, out: bool) -> float:
        """Height of a port relative to the middle."""
        ports = self.outputs if out else self.inputs
        return ports[name][1] if name in ports else 0.0


@dataclass(eq=False)
class Wire:
    """An edge on its way.

    Attributes:
        stops: boxes it passes, its ends among them.
        lane: number of its lane under the boxes, for edges that lead back in time; None for others.
        turns: how far from its ends such an edge turns.
        bend: by how much it bends away from another one between the same ports.
    """

    edge: Edge
    stops: list[Box]
    lane: int | None = None
    turns: Point = (0.0, 0.0)
    bend: float = 0.0

    @property
    def start(self) -> Point:
        """Where it leaves."""
        box = self.stops[0]
        return box.x + box.width, box.y + box.port(leaving(self.edge), True)

    @property
    def end(self) -> Point:
        """Where it arrives: the tip of an arrow before the dot of the port."""
        box = self.stops[-1]
        return box.x - look.DOT, box.y + box.port(self.edge.target.name, False)


@dataclass
class Layout:
    """A picture, in inches."""

    boxes: dict[str, Box]
    wires: list[Wire]
    width: float
    height: float
    floor: float
    """Height under which the lanes are."""


def lay_out(graph: Structure, measure: Measure) -> Layout:
    """Place all modules and edges."""
    boxes = {name: _box(graph, graph[name], measure) for name in graph.order}
    depth = layers(graph)
    wires = []
    for name, box in boxes.items():
        box.layer = depth[name]
    for edge in graph.all_edges:
        source, target = boxes[edge.source.module.name], boxes[edge.target.module.name]
        passed = [Box(layer=i) for i in range(source.layer + 1, target.layer)]
        wires.append(Wire(edge, [source, *passed, target]))
    back = [w for w in wires if w.stops[0].layer >= w.stops[-1].layer]
    columns: list[list[Box]] = [[] for _ in range(max(depth.values(), default=0) + 1)]
    for box in (*boxes.values(), *(b for w in wires for b in w.stops[1:-1])):
        columns[box.layer].append(box)
    links = [
        (a, b, leaving(w.edge) if i == 0 else "", w.edge.target.name if i == len(w.stops) - 2 else "")
        for w in wires
        if w not in back
        for i, (a, b) in enumerate(pairwise(w.stops))
    ]
    set_order(columns, links)
    set_heights(columns, links)
    width = _widths(columns, wires, measure)
    _lanes(back)
    above = 0.0
    for i, wire in enumerate(wires):
        if wire not in back and len(wire.stops) == 2:
            wire.bend = -look.BEND * sum(w.start == wire.start and w.end == wire.end for w in wires[:i])
            above = max(above, 0.1 - (wire.start[1] + wire.end[1]) / 2 - 0.75 * wire.bend)
    for box in (b for column in columns for b in column):
        box.y += above
    floor = max((b.y + b.height / 2 for c in columns for b in c), default=0.0) + 0.1
    return Layout(boxes, wires, width, floor + look.LANE * len(back), floor)


def _box(graph: Structure, module: Module, measure: Measure) -> Box:
    lines = [proto_text(module), rate_text(module), *(f"loss: {text}" for text in objective_texts(module))]
    box = Box(module, lines)
    inputs, outputs = port_labels(graph, module)
    rows = max(len(inputs), len(outputs))
    head = 1.25 * look.LINE + look.LINE * len(lines)
    box.height = 2 * look.PAD + head + 0.06 + look.PORT_LINE * rows
    top = -box.height / 2 + look.PAD + head + 0.06
    for ports, made in ((inputs, box.inputs), (outputs, box.outputs)):
        made |= {p: (text, top + look.PORT_LINE * (i + 0.5)) for i, (p, text) in enumerate(ports.items())}
    sides = [
        max((measure(text, look.PORT, False) for text in ports.values()), default=0.0) for ports in (inputs, outputs)
    ]
    texts = [measure(module.name, look.TITLE, True), *(measure(line, look.TEXT, False) for line in lines)]
    box.width = max(*texts, sum(sides) + 0.3) + 2.5 * look.PAD
    return box


def layers(graph: Structure) -> dict[str, int]:
    """The longest way of each module from where a graph begins; delayed edges count unless they close a cycle."""
    after: dict[str, set[str]] = {name: set() for name in graph.order}
    for edge in sorted(graph.all_edges, key=lambda e: e.delay > 0):
        source, target = edge.source.module.name, edge.target.module.name
        if edge.delay == 0 or source not in _reached(after, target):
            after[source].add(target)
    depth = dict.fromkeys(after, 0)
    for name in tick_order(after, {n: [m for m in after if n in after[m]] for n in after}):
        for target in after[name]:
            depth[target] = max(depth[target], depth[name] + 1)
    return depth


def _reached(after: Mapping[str, set[str]], start: str) -> set[str]:
    found, fresh = {start}, [start]
    while fresh:
        fresh = [n for m in fresh for n in after[m] if n not in found]
        found.update(fresh)
    return found


def _lanes(back: list[Wire]) -> None:
    """Short ways back run inside long ones."""
    left: dict[int, int] = {}
    right: dict[int, int] = {}
    for lane, wire in enumerate(sorted(back, key=lambda w: (w.stops[0].layer - w.stops[-1].layer, w.edge.name))):
        a, b = wire.stops[0].layer, wire.stops[-1].layer
        right[a], left[b] = right.get(a, 0) + 1, left.get(b, 0) + 1
        wire.lane, wire.turns = lane, (look.TURN * right[a], look.TURN * left[b])


def _widths(columns: list[list[Box]], wires: list[Wire], measure: Measure) -> float:
    """Columns from left to right, with room for labels between them; returns the whole width."""
    back = [w for w in wires if w.stops[0].layer >= w.stops[-1].layer]
    x = 0.0
    for i, column in enumerate(columns):
        arriving = [w for w in back if w.stops[-1].layer == i]
        x += look.TURN * len(arriving)
        width = max((b.width for b in column), default=0.0)
        for box in column:
            box.x, box.width = x, width
        labels = [
            measure(wire_text(w.edge), look.TEXT, False) for w in wires if w.stops[0].layer == i and w not in back
        ]
        leaves = [w for w in back if w.stops[0].layer == i]
        x += width + look.TURN * len(leaves)
        if i < len(columns) - 1:
            x += max([look.GAP_X, *(0.35 + text for text in labels if text)])
    return x
