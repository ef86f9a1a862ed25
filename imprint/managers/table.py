"""``print(manager)``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..propagators import Propagator

if TYPE_CHECKING:
    from .manager import Manager


def table(manager: Manager) -> str:
    """unit · rule · optimizer · parameters; then what lies outside the units, by class."""
    rows = [("unit", "rule", "optimizer", "parameters")]
    for name, agent in manager.units.items():
        rule = agent.rule.name + (" (task loss: nearest to the output)" if agent.open and agent.rule.local else "")
        rule += " (frozen)" if agent.frozen and agent.rule.learns else ""
        count = sum(p.numel() for p in (agent.prop.params or agent.unit.parameters()).values())
        rows.append((name, rule, _optimizer(agent.prop), f"{count:,}"))
    if manager.context is not None and manager.context.learned:
        count = sum(p.numel() for p in manager.context.prop.params.values())
        rows.append(("signal", "learned context", _optimizer(manager.context.prop), f"{count:,}"))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * w for w in widths))
    if manager.bound is None:
        return "\n".join([*lines, "not bound yet: the first step decides what else is task, frozen or orphan"])
    params = dict(manager.model.named_parameters())
    for kind in ("task", "frozen", "orphans"):
        names = manager.bound[kind]
        count = sum(params[n].numel() for n in names)
        what = f"{count:,} in {', '.join(names)}" if names else "none"
        optimizer = f" [{_optimizer(manager.task)}]" if kind == "task" and names else ""
        lines.append(f"{kind}: {what}{optimizer}")
    return "\n".join(lines)


def _optimizer(prop: Propagator) -> str:
    if not prop.optimizers:
        return "-"
    optimizer = prop.optimizers[0]
    return f"{type(optimizer).__name__}(lr={float(optimizer.param_groups[0]['lr']):g})"
