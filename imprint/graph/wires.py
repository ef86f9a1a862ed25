"""Edges of a picture: curves between columns, and ways back in time under them."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from . import look
from .describe import wire_text
from .layout import Layout, Point, Wire

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_wire(axes: Axes, wire: Wire, layout: Layout, scale: float) -> None:
    """One edge with its arrow and label: dashed where the gradient stops."""
    from matplotlib.patches import PathPatch, Polygon
    from matplotlib.path import Path

    points, codes, place = _forward(wire) if wire.lane is None else _back(wire, layout)
    stopped = wire.edge.stop_grad
    color, order = (look.STOPPED, 2.0) if stopped else (look.OPEN, 2.1)
    style: dict[str, Any] = {
        "linestyle": look.DASHES if stopped else "-",
        "linewidth": (1.1 if stopped else 1.7) * scale,
    }
    axes.add_patch(PathPatch(Path(points, codes), fill=False, edgecolor=color, zorder=order, **style))
    x, y = points[-1]
    tip = [(x - 0.1, y - 0.04), (x, y), (x - 0.1, y + 0.04)]
    axes.add_patch(Polygon(tip, facecolor=color, zorder=order))
    if wire_text(wire.edge):
        white = {"facecolor": "white", "edgecolor": "none", "pad": 1.2 * scale}
        axes.text(*place, wire_text(wire.edge), fontsize=look.TEXT * scale, color=color, ha="center", va="center",
                  bbox=white, zorder=2.5)  # fmt: skip


def _forward(wire: Wire) -> tuple[list[Point], list[Any], Point]:
    """Level through the columns, curved between them; with the place of the label."""
    from matplotlib.path import Path

    points: list[Point] = [wire.start]
    codes: list[Any] = [Path.MOVETO]
    for box in wire.stops[1:]:
        last = box is wire.stops[-1]
        (x0, y0), (x1, y1) = points[-1], wire.end if last else (box.x, box.y)
        middle = (x0 + x1) / 2
        points += [(middle, y0 + wire.bend), (middle, y1 + wire.bend), (x1, y1)]
        codes += [Path.CURVE4] * 3
        if not last:
            points.append((box.x + box.width, box.y))
            codes.append(Path.LINETO)
    (x0, y0), (x1, y1) = points[0], points[3]
    return points, codes, ((x0 + x1) / 2, (y0 + y1) / 2 + 0.75 * wire.bend)


def _back(wire: Wire, layout: Layout) -> tuple[list[Point], list[Any], Point]:
    """Down at the right, along its lane under all boxes, and up at the left."""
    from matplotlib.path import Path

    assert wire.lane is not None
    (x0, y0), (x1, y1), (out, into) = wire.start, wire.end, wire.turns
    lane = layout.floor + look.LANE * (wire.lane + 0.5)
    way = [(x0, y0), (x0 + out, y0), (x0 + out, lane), (x1 - into, lane), (x1 - into, y1), (x1, y1)]
    points: list[Point] = [way[0]]
    codes: list[Any] = [Path.MOVETO]
    for (before, corner), (_, after) in pairwise(pairwise(way)):
        points += [_toward(corner, before), corner, _toward(corner, after)]
        codes += [Path.LINETO, Path.CURVE3, Path.CURVE3]
    return [*points, way[-1]], [*codes, Path.LINETO], ((x0 + x1) / 2, lane)


def _toward(a: Point, b: Point, r: float = 0.08) -> Point:
    """At most `r` from a on the level or upright way to b."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    share = min(0.5, r / max(abs(dx) + abs(dy), 1e-9))
    return a[0] + dx * share, a[1] + dy * share
