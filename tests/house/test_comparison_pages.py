"""The pages of the comparison and of reproduced figures say what was recorded."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from imprint.compare.contestants import BASELINES
from imprint.compare.published import PUBLISHED, by_name
from imprint.compare.report import report
from imprint.compare.reproduce import verdict
from imprint.compare.rows import rows_of


def recorded(root: Path, name: str) -> Any:
    return json.loads((root / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))["rows"]


def test_the_comparison_is_that_recorded(root: Path) -> None:
    runs = recorded(root, "comparison")
    labels = list(dict.fromkeys(run["settings"]["rule"] for run in runs))
    page = (root / "docs" / "comparison.md").read_text(encoding="utf-8")
    pictures = dict(re.findall(r"!\[(.*)\]\((.*)\)", page))
    assert len(pictures) == 4 and all((root / "docs" / path).is_file() for path in pictures.values())
    rows = rows_of(labels, runs)
    assert page == report(rows, pictures)
    assert labels[:3] == list(BASELINES) and all(len(row.runs) + len(row.failed) == 3 for row in rows)


def test_runs_of_a_seed_were_comparable(root: Path) -> None:
    runs = [run for run in recorded(root, "comparison") if "accuracy" in run]
    for seed in (0, 1, 2):
        started = {run["initial weights"] for run in runs if run["settings"]["seed"] == seed}
        assert len(started) == 1
    varying = ("rule", "options", "code", "seed")
    assert len({str({k: v for k, v in run["settings"].items() if k not in varying}) for run in runs}) == 1


def test_local_learning_comes_near_to_backprop(root: Path) -> None:
    rows = rows_of(*_labelled(recorded(root, "comparison")))
    mean = {row.label: row.curve[-1] for row in rows if row.runs}
    assert mean["backprop"] >= 0.96 and mean["frozen"] <= mean["backprop"] - 0.02
    for rule in ("local_ce", "predsim", "sigprop"):
        assert mean[rule] >= mean["backprop"] - 0.02


def _labelled(runs: list[dict[str, Any]]) -> tuple[list[str], list[dict[str, Any]]]:
    return list(dict.fromkeys(run["settings"]["rule"] for run in runs)), runs


def test_reproductions_are_those_recorded(root: Path) -> None:
    page = (root / "docs" / "reproductions.md").read_text(encoding="utf-8")
    lines = [line for line in page.split("## Curves")[0].splitlines() if line.startswith("| `")]
    shown = {row[0].strip("`"): row[1:] for row in ([c.strip() for c in line.strip("|").split("|")] for line in lines)}
    found = {row["name"]: row for row in recorded(root, "reproductions")}
    assert found.keys() == shown.keys()
    for name, row in found.items():
        entry = by_name(name)
        assert (row["published"], row["band"]) == (entry.error, entry.band and list(entry.band)), (
            "the recipe has changed"
        )
        band = "" if entry.band is None else f"{entry.band[0]:.2f} to {entry.band[1]:.2f}"
        assert row["error"] == row["curve"][-1] and len(row["curve"]) == row["epochs"] == entry.epochs
        curve = ", ".join(f"{v:.2f}" for v in row["curve"])
        cells = [
            f"{row['error']:.2f}",
            str(row["epochs"]),
            f"{row['seconds']:.0f}",
            f"{entry.error:.2f} [{entry.mark}]",
        ]
        assert shown[name] == [*cells, entry.after, band, verdict(row)]
        assert f"`{name}`: {curve}" in page.replace("\n", " ")


def test_every_figure_is_on_the_page(root: Path) -> None:
    page = (root / "docs" / "reproductions.md").read_text(encoding="utf-8")
    assert not [entry.name for entry in PUBLISHED if f"`{entry.name}`" not in page]
