"""The table of a comparison."""

from __future__ import annotations

import statistics

from .contestants import BASELINES
from .measures import FEATURES, ROWS, cosine_every
from .rows import Row, spread

HEAD = """# {data}, {net}: {epochs} epoch{s}

{rules} and {runs} of {parameters} parameters on {rows} training and {test} test samples of shape {shape},
{classes} classes; batches of {batch}, seed{seeds}. All runs of a seed start from the same weights and see the same
batches in the same order. Optimizers and options are each rule's documented defaults; nothing was tuned, no epoch was
chosen, and test samples were looked at for these figures alone. torch {torch}, {cpu}, {threads} thread{t}{cuda}.
"""
NOTES = """
*accuracy*: of the model's output on all test samples after the last epoch, in per cent; mean ± standard deviation over
seeds. *by the units*: of the units' own scores, summed, where they have any. *seconds*: of all learning steps of a run,
by the processor's clock, which other programs hardly touch (on CUDA by the wall's, which the JSON holds for all).
*MB*: the most that tensors of one step take at once, beside weights, their optimizer's state and the batch.

`backprop`, `deep_supervision` (backpropagation of the task loss and of a linear classifier on every unit, summed) and
`frozen` (random units, the last layer is trained) are there to compare with. The net is one for all: rules that were
published with a net of their own (the Hebbian ones, for example, whose units come to resemble each other behind
rectifiers and BatchNorm) may do better there.
"""
GREEDY = "Units of `greedy` take turns, which share the steps of a run equally; its MB are those of the first turn.\n"
LAYERS = f"""
## Accuracy of each layer

What a linear readout gets right on the test samples, in per cent: ridge regression, fitted after training to the
outputs for up to {ROWS} training samples, pooled to at most {FEATURES} features. It is the same for all rules, and none
learned from it.
"""
COSINES = """
## Cosine with backpropagation's gradient

Between the gradient that a unit learns from and that of the plain task loss, same weights and batch: mean over {count}
updates an epoch, all epochs and seeds. 1 is backpropagation, 0 is orthogonal. A local head is no part of either; rules
with inputs of their own (labels in the input) are compared with the plain input's gradient.
"""


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table of Markdown.

    >>> print(table(["rule", "%"], [["drtp", "93"]]))
    | rule | % |
    |---|---|
    | drtp | 93 |
    """
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows])


def report(rows: list[Row], pictures: dict[str, str] | str) -> str:
    """The whole page.

    Args:
        rows: one a rule.
        pictures: paths of plots by title, beside the page; or why there are none.
    """
    notes = NOTES + (GREEDY if any(row.label == "greedy" for row in rows) else "")
    parts = [_head(rows), main_table(rows), notes + LAYERS, by_unit(rows, "layers", 100, 1)]
    if any(row.cosines for row in rows):
        parts += [COSINES.format(count=_measured(rows)), by_unit(rows, "cosines", 1, 2)]
    parts.append("\n## Plots\n")
    if isinstance(pictures, str):
        parts.append(pictures)
    else:
        parts += [f"![{title}]({path})\n" for title, path in pictures.items()]
    return "\n".join(parts).rstrip() + "\n"


def _measured(rows: list[Row]) -> int:
    settings = next(run["settings"] for row in rows for run in row.runs)
    steps = -(-settings["rows"] // settings["batch"])
    return -(-steps // cosine_every(steps))


def _head(rows: list[Row]) -> str:
    every = [run for row in rows for run in (*row.runs, *row.failed)]
    first, machines = every[0]["settings"], {str(run["machine"]): run["machine"] for run in every}
    seeds = sorted({run["settings"]["seed"] for run in every})
    counts = [run["parameters"] for row in rows for run in row.runs if row.label not in BASELINES[1:2]]
    one = next(iter(machines.values()))
    text = HEAD.format(
        data=first["data"], net=first["net"], epochs=first["epochs"], s="s"[: first["epochs"] != 1],
        rules=f"{len(rows)} rules", runs=f"{sum(len(row.runs) for row in rows)} runs of one net",
        parameters=f"{min(counts):,}" if counts else "?", rows=first["rows"], test=first["test rows"],
        shape=" × ".join(map(str, first["shape"])), classes=first["classes"], batch=first["batch"],
        seeds=("s " if len(seeds) > 1 else " ") + ", ".join(map(str, seeds)), torch=one["torch"], cpu=one["cpu"],
        threads=one["threads"], t="s"[: one["threads"] != 1],
        cuda=f", {one['cuda']}" if first["device"].startswith("cuda") else "",
    )  # fmt: skip
    if len(machines) > 1:
        text += f"\nThese runs come from {len(machines)} machines or versions of torch: their seconds say little.\n"
    return text


def main_table(rows: list[Row]) -> str:
    """Accuracy and cost of every rule."""
    base = next((row for row in rows if row.label == "backprop" and row.runs), None)
    cells = []
    for row in rows:
        if not row.runs:
            cells.append([row.label, row.reason, *[""] * 6])
            continue
        note = f" ({row.reason})" if row.reason else ""
        optimizers = dict.fromkeys(o for run in row.runs for o in run["optimizers"])
        cells.append([
            row.label, spread(row.values("accuracy"), 100) + note, spread(row.values("local"), 100),
            spread(row.values(row.steadiest), digits=1), _ratio(row, base, row.steadiest),
            f"{statistics.fmean(row.values('peak bytes')) / 1e6:.1f}", _ratio(row, base, "peak bytes"),
            ", ".join(optimizers),
        ])  # fmt: skip
    head = ["rule", "accuracy", "by the units", "seconds", "× backprop", "MB", "× backprop", "optimizer"]
    return table(head, cells)


def _ratio(row: Row, base: Row | None, key: str) -> str:
    if base is None:
        return ""
    return f"{statistics.fmean(row.values(key)) / statistics.fmean(base.values(key)):.2f}"


def by_unit(rows: list[Row], key: str, scale: float, digits: int) -> str:
    """One column a unit."""
    shown: dict[str, dict[str, float]] = {row.label: getattr(row, key) for row in rows if getattr(row, key)}
    units = list(dict.fromkeys(unit for found in shown.values() for unit in found if unit != "task"))
    cells = [
        [label, *(f"{scale * found[unit]:.{digits}f}" if unit in found else "" for unit in units)]
        for label, found in shown.items()
    ]
    return table(["rule", *units], cells) if cells else "No unit has any."
