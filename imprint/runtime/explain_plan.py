"""What captured blocks made of each module of a graph, in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from torch.optim import Optimizer

from ..graph import Graph
from .backend import Options
from .blocks import Blocks
from .capture import Captured
from .learns import Learns
from .optimizers.eligible import why_not
from .passages import Passages

FUSED = {
    "fuse_projections": ("projections of", "gradients of"),
    "fuse_port_sums": ("a sum of",),
}
"""How the lines of the passes begin that an option switches on, after their numbers."""
NOTHING = {
    "fuse_projections": "nothing to join: no two products that may be done together read one input",
    "fuse_port_sums": "nothing to join: no sum adds two products that may be done together",
}


def module_lines(graph: Graph, programs: Iterable[Blocks], fallen: str | None) -> list[str]:
    """Line by line: how each module learns and who steps its optimizer, then every captured block with what was joined.

    Args:
        graph: bound.
        programs: what was captured.
        fallen: why nothing is, and the graph's own engine runs.
    """
    if fallen is not None:
        return ["everything runs on the graph's own engine:", *_indented(fallen.splitlines())]
    programs = list(programs)
    lines = [f"{name}: {'; '.join(_module(graph, name, programs))}" for name in graph.order]
    if not any(program.captured for program in programs):
        return [*lines, "nothing has been captured yet: that comes with the first rollout"]
    for program in programs:
        assert isinstance(program, Learns | Passages)
        rows = f"blocks of at most {_ticks(program.block)}"
        kind = "learning" if isinstance(program, Learns) else "without learning, or learning when a rollout is over"
        lines.append(f"captured, {kind}: {rows}")
        for label, captured in program.captured:
            lines += [f"  {label}: {_calls(captured)} calls", *_indented(_counted(captured.said), 4)]
    return lines


def option_notes(programs: Iterable[Blocks], options: Options, lowers: bool) -> dict[str, str]:
    """What became of the options that join products.

    Args:
        programs: what was captured.
        options: what was asked for.
        lowers: products are joined at all; they are not where blocks run call by call.
    """
    programs = list(programs)
    if not lowers:
        return dict.fromkeys(FUSED, "no effect call by call: a block's calls stay as they were captured")
    said = [line for program in programs for _, captured in program.captured for line in captured.said]
    if not any(program.captured for program in programs):
        return dict.fromkeys(FUSED, "nothing has been captured yet")
    notes = {}
    for option, starts in FUSED.items():
        if not getattr(options, option):
            notes[option] = "not asked for"
            continue
        found = [line for line in said if _is(line, starts)]
        notes[option] = f"{len(found)} joined products" if found else NOTHING[option]
    return notes


def _module(graph: Graph, name: str, programs: Sequence[Blocks]) -> Iterator[str]:
    """How it learns, who steps its optimizer, and what passes made of its products."""
    if name in graph.sources:
        yield "a source, brought to its slots 64 ticks at a time"
        return
    yield _learning(graph, name)
    weights = (f"nodes.{name}.", f"terms.{name}__", *(f"edges.{edge.name}." for edge in graph[name].incoming))
    some = [captured for program in programs for _, captured in program.captured]
    mine = {line for captured in some for line in captured.said if any(weight in line for weight in weights)}
    over = sum(_is(line, ("products with",)) for line in mine)
    shared = sum(any(_is(line, starts) for starts in FUSED.values()) for line in mine)
    if over:
        yield f"{over} of its matrices multiplied once for several ticks or streams"
    if shared:
        yield f"{shared} products shared with other matrices"
    if some and not over + shared:
        yield "call by call" if not any(captured.said for captured in some) else "compiled as it is"


def _is(line: str, starts: tuple[str, ...]) -> bool:
    return line.lstrip("0123456789 ").startswith(starts)


def _learning(graph: Graph, name: str) -> str:
    learning, manager = graph.learning, graph.manager
    if learning is None or manager is None:
        return "runs; no manager has formed groups" if manager is not None else "runs without a manager"
    for group in learning.groups:
        prop = group.prop
        if name not in group.unit.modules:
            continue
        if not prop.optimizers:
            return "frozen: it runs and does not learn"
        within = list(group.unit.modules).index(name) if len(prop.optimizers) == len(group.unit.modules) else 0
        steps = _step(prop.optimizers[within])
        together = f" with {len(group.unit.modules) - 1} more" if len(group.unit.modules) > 1 else ""
        credit = manager.credit if group in learning.live else prop.credit
        return f"group {prop.name!r}{together}, {credit!r}, update={group.update!r}; {steps}"
    return "runs: nothing trains it"


def _step(optimizer: Optimizer) -> str:
    device = next(p.device for group in optimizer.param_groups for p in group["params"])
    why, name = why_not(optimizer, device), type(optimizer).__name__
    return f"{name} in the block" if why is None else f"{name} by itself after each block that updates: {why}"


def _calls(captured: Captured) -> int:
    return sum(node.op == "call_function" for node in captured.module.graph.nodes)


def _counted(said: Sequence[str]) -> list[str]:
    """Equal lines once, with how often."""
    times: Mapping[str, int] = {line: said.count(line) for line in dict.fromkeys(said)}
    return [line if n == 1 else f"{line} ({n} times)" for line, n in times.items()]


def _ticks(count: int) -> str:
    return f"{count} tick{'s' * (count != 1)}"


def _indented(lines: Iterable[str], by: int = 2) -> list[str]:
    return [f"{' ' * by}{line.strip()}" for line in lines]
