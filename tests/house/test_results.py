"""The tables of docs/results.md are the recorded measurements, and these show what they are there to show."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest


def recorded(root: Path, name: str) -> Any:
    return json.loads((root / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))["rows"]


def table(root: Path, after: str) -> dict[str, list[str]]:
    """The first table behind this text: cells of each row by its first."""
    text = (root / "docs" / "results.md").read_text(encoding="utf-8").split(after, 1)[1]
    block = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert block is not None
    rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in block[0].splitlines(keepends=True)]
    return {row[0]: row[1:] for row in rows[2:]}


def means(rows: list[dict[str, Any]], key: str = "accuracy") -> dict[str, list[float]]:
    rules = dict.fromkeys(row["rule"] for row in rows)
    return {rule: [row[key] for row in rows if row["rule"] == rule and key in row] for rule in rules}


@pytest.mark.parametrize("name", ["fsdd", "japanesevowels"])
def test_accuracies_are_those_recorded(root: Path, name: str) -> None:
    rows, shown = recorded(root, name), table(root, f"`{ {'fsdd': 'fsdd_logmel'}.get(name, name) }.h5`")
    for rule, found in means(rows).items():
        assert len(found) == 3
        assert shown[rule][0] == f"{100 * sum(found) / 3:.1f} %"
        assert shown[rule][1] == ", ".join(f"{100 * v:.1f}" for v in found)
    ridge = means(rows, "ridge")["frozen"]
    assert shown["ridge on frozen states"][0] == f"{100 * sum(ridge) / 3:.1f} %"


def test_local_learning_comes_near_to_backprop_and_far_above_a_frozen_encoder(root: Path) -> None:
    spoken, vowels = ({k: sum(v) / 3 for k, v in means(recorded(root, n)).items()} for n in ("fsdd", "japanesevowels"))
    assert spoken["backprop"] >= 0.95 and vowels["backprop"] >= 0.94
    for found in (spoken, vowels):
        assert max(found["local_ce"], found["sigprop"], found["predict_input"]) >= found["backprop"] - 0.05
    assert spoken["local_ce"] >= spoken["frozen"] + 0.1 and spoken["sigprop"] >= spoken["frozen"] + 0.1


def test_the_cost_of_every_rule_is_that_recorded(root: Path) -> None:
    rows, shown = recorded(root, "rules"), table(root, "results/rules.json")
    assert len(rows) == len(shown)
    for row in rows:
        cells = shown[f"{row['net']}, {row['rule']}"]
        if "refused" in row:
            assert cells[0] == f"refused: {row['refused']}"
        else:
            assert cells == [f"{row[k]:.{n}f}" for k, n in (("ms", 0), ("time", 2), ("MB", 1), ("memory", 2))]
    ratio = {(row["net"], row["rule"]): row for row in rows if "time" in row}
    for net in ("vgg8b", "residual_mlp", "transformer"):
        assert ratio[net, "local_ce"]["memory"] <= 0.66 and 0.85 <= ratio[net, "backprop"]["time"] <= 1.15
    assert ratio["vgg8b", "local_ce"]["time"] <= 0.85
    assert all(ratio[net, "local_ce"]["memory"] <= 0.2 for net in ("residual_mlp", "transformer"))


def test_the_cost_of_the_engine_is_that_recorded(root: Path) -> None:
    rows, shown = recorded(root, "graph_rollout"), table(root, "graph_rollout.json")
    assert set(rows) == set(shown)
    for case, row in rows.items():
        assert shown[case] == [f"{row['ticks_per_second']:.0f}", f"{row['ratio']:.2f}"]
    assert rows["forward, graph"]["ratio"] <= 1.15 and rows["training, graph"]["ratio"] <= 1.15


def test_the_cost_of_captured_ticks_is_that_recorded(root: Path) -> None:
    rows = {f"{row['case']}, {row['way']}": row for row in recorded(root, "runtime")}
    shown = table(root, "runtime.json")
    assert set(rows) == set(shown)
    for case, row in rows.items():
        asked = "" if row["asked"] is None else str(row["asked"])
        assert shown[case] == [f"{row['us']:.0f}", f"{row['ratio']:.2f}", asked]
    for case, most in (("gru128", 0.4), ("update8", 0.22), ("six", 0.3)):
        assert rows[f"{case}, inductor"]["ratio"] <= most
    for case in ("gru128", "six"):
        assert rows[f"{case}, inductor"]["us"] <= rows[f"{case}, nn.GRU through time, fused Adam"]["us"]


@pytest.mark.parametrize("name", ["etrace_fsdd", "etrace_japanesevowels"])
def test_accuracies_of_traces_are_those_recorded(root: Path, name: str) -> None:
    rows, shown = recorded(root, name), table(root, f"{name}.json")
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(f"{row['cell']}, {row['method']}", []).append(row["accuracy"])
    assert found.keys() == shown.keys()
    for case, each in found.items():
        assert shown[case][:2] == [f"{100 * sum(each) / 3:.1f} %", ", ".join(f"{100 * v:.1f}" for v in each)]
    assert abs(sum(found["lru, d_rtrl"]) - sum(found["lru, bptt"])) / 3 <= 0.02


def test_the_cost_of_traces_is_that_recorded_and_does_not_grow_with_the_ticks(root: Path) -> None:
    rows, shown = recorded(root, "etrace"), table(root, "results/etrace.json")
    for row in rows:
        cells = shown[f"{row['hidden']}, {row['ticks']}, {row['case']}"]
        assert cells[:2] == [f"{1e3 * row['seconds']:.0f}", f"{row['ratio']:.2f}"]
    sizes = {(r["hidden"], r["case"], r["ticks"]): r["bytes"] for r in rows if "RTRL" in r["case"] and r["bytes"]}
    assert all(size <= 1.01 * sizes[hidden, case, 200] for (hidden, case, _), size in sizes.items())
