"""The heat map shows the norms of summaries."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from imprint.diagnostics import Gradient, GradientSummary, plot_gradient_heatmap
from imprint.errors import ArgumentError, MissingExtraError, StateError, UnknownNameError

pytest.importorskip("matplotlib")


def gradient(norm: float, elements: int = 4) -> Gradient:
    return Gradient(norm, norm, 0.0 if norm else 1.0, 1, elements)


def summary(enc: float, head: float, **more: float) -> GradientSummary:
    modules = {"enc": gradient(enc), "head": gradient(head), **{k: gradient(v) for k, v in more.items()}}
    edges = {"a very long name of an edge": gradient(enc), "identity": gradient(0.0, 0)}
    return GradientSummary(modules, edges, {}, 1)


def test_cells_are_norms_by_name_and_time(tmp_path: Path) -> None:
    figure = plot_gradient_heatmap([summary(0.1, 10.0), summary(0.0, 1.0)], path=tmp_path / "heat.png")
    assert (tmp_path / "heat.png").read_bytes().startswith(b"\x89PNG")
    axes = figure.axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["enc", "head"]
    assert [t.get_text() for t in axes.texts] == ["0.1", "0", "10", "1"]
    marks, image = axes.images
    assert image.get_array().filled(-1).tolist() == [[0.1, -1], [10.0, 1.0]]
    assert image.norm(0.1) == 0.0 and image.norm(1.0) == pytest.approx(0.5) and image.norm(10.0) == pytest.approx(1.0)
    assert marks.get_array().filled(-1).tolist() == [[-1, 0], [-1, -1]]  # white where no gradient came
    assert figure.axes[1].get_ylabel() == "gradient norm"


def test_missing_names_and_exploded_norms_look_different() -> None:
    figure = plot_gradient_heatmap([summary(1.0, math.inf), summary(1.0, math.nan, late=2.0)])
    marks, image = figure.axes[0].images
    assert marks.get_array().filled(-1).tolist() == [[-1, -1], [1, 1], [-1, -1]]
    assert image.get_array().filled(-1).tolist() == [[1, 1], [-1, -1], [-1, 2]]
    assert [t.get_text() for t in figure.axes[0].texts] == ["1", "1", "inf", "nan", "2"]


def test_one_summary_is_one_column_and_many_bear_no_numbers() -> None:
    one, many = plot_gradient_heatmap(summary(1.0, 2.0)), plot_gradient_heatmap([summary(1.0, 2.0)] * 30)
    assert one.axes[0].images[1].get_array().shape == (2, 1) and len(one.axes[0].texts) == 2
    assert many.axes[0].images[1].get_array().shape == (2, 30) and not many.axes[0].texts
    assert len(one.axes[0].get_xticks()) == 0 and len(many.axes[0].get_xticks()) == 10
    assert many.get_figwidth() > one.get_figwidth()


def test_other_sections_without_what_has_no_weights_and_given_axes() -> None:
    from matplotlib.figure import Figure

    figure = Figure()
    ax = figure.subplots()
    assert plot_gradient_heatmap(summary(1.0, 2.0), "edges", ax=ax, title="mine") is figure
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a very long name of an edge"]
    assert ax.get_title() == "mine"


def test_what_cannot_be_drawn_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'modules'"):
        plot_gradient_heatmap(summary(1.0, 2.0), "module")
    with pytest.raises(StateError, match="no ports"):
        plot_gradient_heatmap(summary(1.0, 2.0), "ports")
    with pytest.raises(StateError, match="no modules"):
        plot_gradient_heatmap([])
    with pytest.raises(ArgumentError, match="not gradient summaries"):
        plot_gradient_heatmap([{"enc": 1.0}])  # type: ignore[list-item]
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r'pip install "imprint\[plots\]"'):
        plot_gradient_heatmap(summary(1.0, 2.0))
