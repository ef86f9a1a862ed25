"""Rules of one's own that change, fail or cannot be read, and commands that cannot be."""

from __future__ import annotations

import json
import linecache
from collections.abc import Iterator
from pathlib import Path

import pytest

from imprint.rules import registry

from references.comparing import Toy, cells, command, runs

OWN = """
from dataclasses import dataclass
import imprint
from imprint.objectives import Objective

class Own(Objective):
    needs_labels = False

    def forward(self, view):
        return {loss}

@imprint.register_rule("own_in_file")
@dataclass(frozen=True)
class OwnRule(imprint.Rule):
    def objective(self):
        return Own()
"""


@pytest.fixture
def own() -> Iterator[None]:
    yield
    registry.pop("own_in_file", None)


def test_a_rule_that_was_changed_is_not_mixed_with_what_it_was(
    own: None, toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out, mine = toy(), tmp_path / "out", tmp_path / "mine.py"
    run = lambda: command(file, out, "--use", str(mine), rules=("own_in_file",))
    mine.write_text(OWN.format(loss="view.h.square().mean()"))
    assert run() == 0 and run() == 0
    before = runs(out)["own_in_file-seed0"]
    registry.pop("own_in_file")
    linecache.clearcache()
    mine.write_text(OWN.format(loss="-view.h.square().mean()"))
    assert run() == 2 and "'code'" in capsys.readouterr().err
    assert runs(out)["own_in_file-seed0"] == before
    (out / "own_in_file-seed0.json").unlink(), (out / "own_in_file-seed1.json").unlink()
    assert run() == 0 and runs(out)["own_in_file-seed0"]["settings"]["code"] != before["settings"]["code"]


def test_a_rule_with_an_error_is_a_row_and_the_others_run(
    own: None, toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out, mine = toy(), tmp_path / "out", tmp_path / "mine.py"
    mine.write_text(OWN.format(loss="view.h.nosuch()"))
    assert command(file, out, "--use", str(mine), rules=("own_in_file", "drtp")) == 1
    shown = cells((out / "comparison.md").read_text())
    assert shown["own_in_file"][0].startswith("failed: AttributeError: 'Tensor' object has no attribute 'nosuch'")
    assert float(shown["drtp"][0].split()[0]) > 0 and "mine.py" in capsys.readouterr().err
    registry.pop("own_in_file")
    linecache.clearcache()
    mine.write_text(OWN.format(loss="view.h.square().mean()"))
    assert command(file, out, "--use", str(mine), rules=("own_in_file", "drtp")) == 0, "it is tried again"
    assert "accuracy" in runs(out)["own_in_file-seed1"]


def test_files_of_ones_own_with_errors(toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine.py"
    for text, what in (
        ("1 +", "SyntaxError"),
        ("x = 1\nraise ValueError('so')", "ValueError: so"),
        ("exit(3)", "SystemExit"),
    ):
        mine.write_text(text)
        assert command(toy(), tmp_path / "out", "--use", str(mine), rules=("drtp",)) == 2
        said = capsys.readouterr().err
        assert what in said and "mine.py, line" in said


def test_a_last_batch_of_one_and_a_page_that_is_a_folder(
    toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(toy(train=65), tmp_path / "out", "--batch", "32", rules=("drtp",)) == 2
    assert "last batch of an epoch would be one sample" in capsys.readouterr().err
    assert command(toy(), tmp_path / "out", "--page", str(tmp_path), rules=("drtp",)) == 2
    assert "the page is a folder" in capsys.readouterr().err


def test_rules_may_stand_behind_commas(toy: Toy, tmp_path: Path) -> None:
    assert command(toy(), tmp_path / "out", rules=("drtp,local_ce",)) == 0
    assert {"drtp-seed0", "local_ce-seed0"} <= runs(tmp_path / "out").keys()


def test_a_run_without_all_its_figures_is_named(toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = toy(), tmp_path / "out"
    assert command(file, out, rules=("drtp",)) == 0
    path = out / "drtp-seed0.json"
    found = json.loads(path.read_text())
    del found["peak bytes"]
    path.write_text(json.dumps(found))
    assert command(file, out, rules=("drtp",)) == 2 and "drtp-seed0.json" in capsys.readouterr().err
