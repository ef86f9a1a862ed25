"""``print(manager)`` of a graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .graph_manager import GraphManager


def graph_table(manager: GraphManager) -> str:
    """module · objectives · credit · update · optimizer · parameters; then what nothing trains."""
    rows = [("group", "learns from", "credit", "update", "optimizer", "parameters")]
    if manager.graph.learning is None:
        return f"{manager.rule.name} on a graph, not bound yet: the first rollout makes heads and optimizers"
    for name, prop in manager.props.items():
        names = set(name.split("+"))
        terms = [t for m in names for t in manager.graph[m].objectives] + [
            t for key, t in manager.filled.items() if key.split(".")[0] in names
        ]
        optimizer = "+".join(
            dict.fromkeys(f"{type(o).__name__}(lr={o.param_groups[0]['lr']:g})" for o in prop.optimizers)
        )
        count = sum(p.numel() for p in prop.params.values())
        learns = ", ".join(t.name for t in terms)
        rows.append((name, learns, repr(manager.credit), str(manager.update), optimizer or "-", f"{count:,}"))
    widths = [max(len(row[i]) for row in rows) for i in range(6)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * w for w in widths))
    lines.append(f"orphans: {', '.join(manager.orphans) if manager.orphans else 'none'}")
    return "\n".join(lines)
