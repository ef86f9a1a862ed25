"""Every example runs in its quick form and learns; in full it prints what its docstring says."""

from __future__ import annotations

import importlib
import math
import re

import pytest
import run_all

from common import Result, describe

QUICK = {  # what the quick form reaches on other seeds, less a few percent; chance is 10 %
    "demo_compiled_plan": 0.80,
    "demo_micro_stepping": 0.70,
    "demo_multi_port": 0.85,
    "demo_multi_rate": 0.75,
    "demo_predictive_coding": 0.85,
    "demo_slicer_encoder": 0.80,
    "equilibrium_propagation": 0.90,
    "etrace_eprop": 0.75,
    "etrace_recall": 0.88,
    "etrace_spoken": 0.90,
    "etrace_stream": 0.78,
    "ex2_input_target_max_rand": 0.88,
    "ex4_input_target_topk": 0.85,
    "forward_forward": 0.90,
    "loop_back": 0.92,
    "nearest_context": 0.92,
    "predictive_coding": 0.90,
    "resnet": 0.80,
    "two_worlds": 0.90,
    "vit": 0.55,
}
BACKPROP = {  # of those that are slow to begin with
    "demo_compiled_plan": 0.75,
    "demo_micro_stepping": 0.75, "demo_multi_port": 0.85, "demo_multi_rate": 0.65, "demo_predictive_coding": 0.85,
    "demo_slicer_encoder": 0.85, "equilibrium_propagation": 0.90, "etrace_eprop": 0.85, "etrace_recall": 0.88,
    "etrace_spoken": 0.90, "etrace_stream": 0.40, "predictive_coding": 0.87, "two_worlds": 0.90, "vit": 0.80,
}  # fmt: skip
MORE = {"demo_compiled_plan": ["--codegen", "eager"]}  # captured ticks, and no compiler
SAYS = {  # in which ranges lie the percentages that the quick form prints before its last line
    "etrace_eprop": [(10, 60)],
    "etrace_recall": [(0, 20), (0, 20)],
    "etrace_stream": [(75, 100), (0, 45), (78, 100)],
}
LEAST = {
    "demo_compiled_plan": (90, 85),
    "etrace_eprop": (90, 95),
    "etrace_stream": (90, 80),
}  # of what a docstring promises; else 95 %
PROMISE = re.compile(r"``(\w+)  digits  (\d+\.\d\d)%  (\d+\.\d\d)%`` and the seconds\.\n\Z")


def promised(name: str) -> tuple[str, float, float]:
    """Name and both accuracies (%) of the last line of an example's docstring."""
    text = importlib.import_module(name).__doc__ or ""
    found = PROMISE.search(text)
    assert found, f"the docstring of {name} does not end with what it prints:\n{text[-200:]}"
    return found[1], float(found[2]), float(found[3])


def run(name: str, argv: list[str], capsys: pytest.CaptureFixture[str]) -> Result:
    """An example's main(): its result, which is what it printed last."""
    result = importlib.import_module(name).main(argv)
    assert isinstance(result, Result) and (result.example, result.data) == (name, "digits")
    *before, last = capsys.readouterr().out.splitlines()
    assert last == describe(result)
    if "--quick" in argv and name in SAYS:
        said = [float(number) for number in re.findall(r"(\d+(?:\.\d+)?)%", "".join(before))]
        assert all(low <= number <= high for number, (low, high) in zip(said, SAYS[name], strict=True)), before
    assert result.backprop is not None and 0 < result.seconds < math.inf
    return result


@pytest.mark.parametrize("name", run_all.examples())
def test_the_quick_form_learns(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(name, ["--quick", *MORE.get(name, [])], capsys)
    assert QUICK[name] < result.accuracy <= 1
    assert result.backprop is not None and BACKPROP.get(name, 0.95) < result.backprop <= 1


@pytest.mark.parametrize("name", run_all.examples())
def test_the_docstring_ends_with_the_line_it_prints(name: str) -> None:
    example, accuracy, backprop = promised(name)
    least = LEAST.get(name, (95, 95))
    assert example == name and least[0] <= accuracy <= 100 and least[1] <= backprop <= 100


@pytest.mark.slow
@pytest.mark.parametrize("name", run_all.examples())
def test_in_full_it_prints_what_its_docstring_says(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Within two percent: another processor rounds otherwise, and a few of the 360 test images fall differently."""
    result = run(name, [], capsys)
    _, accuracy, backprop = promised(name)
    assert result.backprop is not None
    assert (100 * result.accuracy, 100 * result.backprop) == pytest.approx((accuracy, backprop), abs=2)
