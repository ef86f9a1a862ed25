"""Figures show the numbers that were recorded."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from imprint.diagnostics import Record, plot_run
from imprint.errors import ArgumentError, DataError, MissingExtraError, UnknownNameError
from imprint.monitors.sinks import CSV

pytest.importorskip("matplotlib")


def run(units: int = 4, steps: int = 30) -> list[Record]:
    rows = []
    for step in range(10, 10 * steps + 1, 10):
        for i in range(units):
            rows.append(Record(step, f"blocks.{i}", "accuracy", 1 - 1 / (step / 10 + i)))
            rows.append(Record(step, f"blocks.{i}", "update_ratio", 0.1 / step))
        if step % 50 == 0:
            rows.append(Record(step, "val", "accuracy", step / 1000))
    return rows


def test_a_panel_shows_one_curve_a_unit_with_its_numbers_and_units() -> None:
    rows = run()
    figure = plot_run(rows, metric="accuracy")
    (axes,) = figure.axes
    curves = {line.get_label(): line for line in axes.lines}
    assert list(curves) == ["blocks.0", "blocks.1", "blocks.2", "blocks.3", "val"]
    x, y = curves["blocks.2"].get_data()
    expected = [(r.step, 100 * r.value) for r in rows if r.unit == "blocks.2" and r.metric == "accuracy"]
    assert list(zip(x.tolist(), y.tolist(), strict=True)) == expected
    assert axes.get_ylabel() == "accuracy (%)" and axes.get_xlabel() == "learning steps"
    assert curves["val"].get_color() == "black"
    assert len({curves[f"blocks.{i}"].get_color() for i in range(4)}) == 4
    assert [t.get_text() for t in figure.legends[0].get_texts()] == list(curves)


def test_all_metrics_get_a_panel_and_ratios_a_logarithmic_axis(tmp_path: Path) -> None:
    sink = CSV(tmp_path / "run.csv")
    for r in run():
        sink.write(r.step, {r.unit: {r.metric: r.value}})
    figure = plot_run(tmp_path / "run.csv", path=tmp_path / "run.png", title="a run")
    assert [(a.get_ylabel(), a.get_yscale()) for a in figure.axes] == [
        ("accuracy (%)", "linear"), ("update ratio ‖Δw‖ / ‖w‖", "log"),
    ]  # fmt: skip
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    assert figure.get_suptitle() == "a run"


def test_up_to_twenty_units_are_named_more_get_a_scale(tmp_path: Path) -> None:
    few, many = plot_run(run(16), "accuracy", tmp_path / "16.png"), plot_run(run(40), "accuracy", tmp_path / "40.png")
    assert len(few.legends[0].get_texts()) == 17 and len(few.axes) == 1
    panel = few.axes[0].get_window_extent()
    legend = few.legends[0].get_window_extent()
    assert legend.x0 >= panel.x1 and legend.y0 >= 0 and legend.y1 <= few.bbox.y1  # beside the panel, and not cut off
    assert [t.get_text() for t in many.legends[0].get_texts()] == ["val"]
    scale = many.axes[1]
    assert scale.get_yticklabels()[0].get_text() == "blocks.0" and scale.get_yticklabels()[-1].get_text() == "blocks.39"


def labels(rows: list[tuple[int, str, str, float]]) -> list[str]:
    """What is written along the y axis."""
    figure = plot_run(rows)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    low, high = axes.get_ylim()
    ticks = [*axes.yaxis.get_major_ticks(), *axes.yaxis.get_minor_ticks()]
    return [t.label1.get_text() for t in ticks if t.label1.get_text() and low <= t.get_loc() <= high]


def test_numbers_of_a_logarithmic_axis_are_plain_and_few() -> None:
    wide = labels([(s, "fc", "grad_norm", 0.1 * s) for s in range(1, 21)])
    assert {"0.1", "0.2", "0.5", "1", "2"} <= set(wide) and not {"0.3", "0.6"} & set(wide)
    narrow = labels([(s, "fc", "grad_norm", 0.6 + 0.01 * s) for s in range(1, 11)])
    assert len(narrow) >= 3 and all("$" not in text and 0.5 < float(text) < 0.8 for text in narrow)


def test_a_share_that_is_always_zero_lies_on_the_ground_and_is_seen() -> None:
    (axes,) = plot_run([(s, "fc", "activation_dead", 0.0) for s in (1, 2, 3)]).axes
    low, high = axes.get_ylim()
    assert -0.05 < low < 0 and high == 1.0
    (axes,) = plot_run([(s, "fc", "accuracy", 0.9 + s / 100) for s in (1, 2, 3)]).axes
    low, high = axes.get_ylim()
    assert 90 < low < 91 and 93 < high < 94


def test_losses_of_different_kind_get_a_logarithmic_axis() -> None:
    near = [(s, u, "loss", v / s) for s in (1, 2, 3) for u, v in (("a", 2.0), ("b", 1.0))]
    far = [*near, (1, "c", "loss", 0.001)]
    assert plot_run(near).axes[0].get_yscale() == "linear"
    assert plot_run(far).axes[0].get_yscale() == "log"
    assert plot_run([*far, (2, "c", "loss", -1.0), (3, "c", "loss", float("nan"))]).axes[0].get_yscale() == "linear"


def test_what_cannot_be_drawn_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'accuracy'"):
        plot_run(run(), metric="acuracy")
    with pytest.raises(DataError, match="nothing to draw"):
        plot_run([])
    with pytest.raises(DataError, match="cannot be read"):
        plot_run(tmp_path / "none.csv")
    with pytest.raises(ArgumentError, match="names none"):
        plot_run(run(), metric=[])


def test_matplotlib_missing_is_an_error_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r'pip install "imprint\[plots\]"'):
        plot_run(run())


def test_importing_imprint_does_not_import_matplotlib_and_drawing_opens_no_window() -> None:
    program = """
        import sys, imprint
        assert "matplotlib" not in sys.modules
        imprint.diagnostics.plot_run([(1, "a", "loss", 1.0)])
        assert "matplotlib.pyplot" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)
