"""``print(manager)`` of a graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.optim import Optimizer

if TYPE_CHECKING:
    from .graph_manager import GraphManager

COLUMNS = ("group", "learns from", "credit", "update", "optimizer", "parameters")


def graph_table(manager: GraphManager) -> str:
    """The rule; one row a gradient group, its modules joined with ``+``; then what nothing trains."""
    if manager.graph.manager is not manager:
        return f"rule {manager.rule.name!r}, detached from its graph"
    if manager.graph.learning is None:
        return f"rule {manager.rule.name!r} on a graph; groups and optimizers are made at the first rollout that learns"
    rows = [COLUMNS, *(_row(manager, name) for name in manager.props)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * w for w in widths))
    orphans = ", ".join(manager.orphans) if manager.orphans else "none"
    return "\n".join([f"rule {manager.rule.name!r} on a graph", *lines, f"orphans: {orphans}"])


def _row(manager: GraphManager, name: str) -> tuple[str, ...]:
    prop, frozen = manager.props[name], name in manager.frozen
    owned = [manager.graph[m].objectives for m in name.split("+")]
    declared = [t.name for objectives in owned for t in (*objectives, *objectives.params)]
    filled = [t.name for key, t in manager.filled.items() if key.split(".")[0] in name.split("+")]
    optimizers = dict.fromkeys(_text(o) for o in manager.frozen.get(name, prop.optimizers))
    count = sum(p.numel() for p in prop.params.values())
    optimizer = ("frozen: " * frozen + " + ".join(optimizers)) if optimizers else "none"
    return name, ", ".join(declared + filled), repr(manager.credit), str(manager.update), optimizer, f"{count:,}"


def _text(optimizer: Optimizer) -> str:
    rates = dict.fromkeys(f"{group['lr']:g}" for group in optimizer.param_groups)
    return f"{type(optimizer).__name__}(lr={', '.join(rates)})"
