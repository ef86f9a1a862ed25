"""Pictures of a comparison; they need matplotlib, which is optional."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.atomic import atomic_save
from .contestants import BASELINES
from .rows import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MISSING = (
    'There are no plots: matplotlib is not installed (`pip install "imprint[plots]"`, then the same command again).'
)
BLACK = {"backprop": "-", "deep_supervision": "--", "frozen": ":"}
"""Baselines are drawn in black, and how."""


def draw(rows: Sequence[Row], folder: Path, name: str = "") -> dict[str, str] | str:
    """Save all pictures as ``<name>accuracy.png``, ``layers``, ``cosine`` and ``cost``.

    Args:
        rows: one a rule; those without figures are left out.
        folder: where to.
        name: in front of the files' names.

    Returns:
        File names by title; or a sentence that says why there are none.
    """
    try:
        from matplotlib.figure import Figure  # noqa: F401
    except ImportError:
        return MISSING
    rows = [row for row in rows if row.runs]
    if not rows:
        return "There are no plots: no run came to its end."
    made = {
        "Accuracy over the epochs": ("accuracy", curves(rows)),
        "Accuracy of each layer": ("layers", heat(rows, "layers", 100, "accuracy of a linear readout, %")),
        "Cosine with backpropagation's gradient": (
            "cosine",
            heat(rows, "cosines", 1, "cosine with backprop's gradient, mean"),
        ),
        "Seconds and memory": ("cost", costs(rows)),
    }
    found = {}
    for title, (kind, figure) in made.items():
        if figure is not None:
            found[title] = f"{name}{kind}.png"
            _save(figure, folder / found[title])
    return found


def _save(figure: Figure, path: Path) -> None:
    atomic_save(path, lambda temporary: figure.savefig(temporary, format="png", metadata={"Software": None}))


def colour(i: int, count: int) -> Any:
    """Of rule `i` of `count`."""
    from matplotlib import colormaps

    return colormaps["tab20"](i % 20) if count > 10 else colormaps["tab10"](i % 10)


def curves(rows: Sequence[Row]) -> Figure:
    """Mean test accuracy after each epoch, all of it and the best tenth; the legend is in the order of the last."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, max(4.5, 0.8 + 0.21 * len(rows))), dpi=110, layout="constrained")
    whole, near = figure.subplots(1, 2)
    best = max(100 * v for row in rows for v in row.curve)
    for axes in (whole, near):
        _lines(axes, rows)
        axes.set_xlabel("epoch")
        axes.set_xticks(_ticks(max(len(row.curve) for row in rows)))
        axes.grid(alpha=0.3)
    whole.set_ylabel("test accuracy (%)")
    near.set_ylim(best - 10, best + 0.5)
    near.set_title("within 10 points of the best", fontsize=9)
    figure.legend(*whole.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize="small")
    return figure


def _ticks(epochs: int) -> list[int]:
    """Whole epochs, ten at most.

    >>> _ticks(1), _ticks(25)
    ([1], [3, 6, 9, 12, 15, 18, 21, 24])
    """
    step = -(-epochs // 10)
    return list(range(step, epochs + 1, step))


def _lines(axes: Any, rows: Sequence[Row]) -> None:
    others = [row.label for row in rows if row.label not in BASELINES]
    for row in sorted(rows, key=lambda row: -row.curve[-1]):
        own = row.label in BASELINES
        axes.plot(
            range(1, len(row.curve) + 1), [100 * v for v in row.curve], marker="." if len(row.curve) < 30 else "",
            label=f"{row.label}  {100 * row.curve[-1]:.1f}", zorder=3 if own else 2,
            linestyle=BLACK[row.label] if own else "-" if others.index(row.label) < 20 else "-.",
            linewidth=1.8 if own else 1.4,
            color="black" if own else colour(others.index(row.label), len(others)),
        )  # fmt: skip


def heat(rows: Sequence[Row], key: str, scale: float, title: str) -> Figure | None:
    """A number for every rule and unit, coloured; None where there is none."""
    from matplotlib.figure import Figure

    shown: dict[str, dict[str, float]] = {row.label: getattr(row, key) for row in rows if getattr(row, key)}
    units = list(dict.fromkeys(unit for found in shown.values() for unit in found if unit != "task"))
    if not shown or not units:
        return None
    size = (2.8 + 0.75 * len(units), 1.1 + 0.32 * len(shown))
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    axes = figure.subplots()
    grid = [[scale * found.get(unit, float("nan")) for unit in units] for found in shown.values()]
    image = axes.imshow(grid, aspect="auto", cmap="viridis")
    low, high = image.get_clim()
    for y, line in enumerate(grid):
        for x, value in enumerate(line):
            if value == value:
                dark = high > low and (value - low) / (high - low) < 0.6
                text = f"{value:.1f}" if scale > 1 else f"{value:.2f}"
                axes.text(x, y, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
    axes.set_xticks(range(len(units)), units, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(shown)), list(shown), fontsize=8)
    axes.set_title(title, fontsize=10)
    return figure


def costs(rows: Sequence[Row]) -> Figure:
    """Two panels of bars: seconds of a run, and memory of a step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.9 + 0.28 * len(rows)), dpi=110, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, key, scale, name in zip(
        panels, (rows[0].steadiest, "peak bytes"), (1, 1e-6), (f"{rows[0].steadiest} a run", "MB a step"), strict=True
    ):
        values = [scale * statistics.fmean(row.values(key)) for row in rows]
        colors = ["black" if row.label in BASELINES else "#4878a8" for row in rows]
        bars = axes.barh([row.label for row in rows], values, color=colors)
        axes.bar_label(bars, fmt="%.3g", fontsize=7, padding=2)
        axes.set_xlabel(name)
        axes.margins(x=0.15)
        axes.tick_params(axis="y", labelsize=8)
    panels[0].invert_yaxis()
    return figure
