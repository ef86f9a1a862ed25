"""The whole command, on a small file: figures, files, resuming, refusals, and what is wrong with what it is given."""

from __future__ import annotations

import re
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
import torch.nn.functional as F

import imprint
from imprint.compare.dense import Dense
from imprint.compare.settings import prepare
from imprint.data import Data, load_h5, save_h5
from imprint.errors import ArgumentError
from imprint.objectives import Head, Objective, Spec
from imprint.objectives.labels import Labels
from imprint.objectives.objective import View
from imprint.rules import Rule, register_rule, registry

from references.comparing import Toy, cells, command, runs

NAMES = ("backprop", "deep_supervision", "frozen", "local_ce", "drtp")


def test_the_command(drawn: None, toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert command(toy(), out, epochs=2) == 0
    found = runs(out)
    assert found.keys() == {f"{name}-seed{seed}" for name in NAMES for seed in (0, 1)}
    for name, run in found.items():
        assert len(run["curve"]) == len(run["seconds"]) == 2 and run["accuracy"] == run["curve"][-1]
        assert (
            min(run["seconds"]) > 0
            and min(run["processor seconds"]) > 0
            and run["peak bytes"] > 0
            and set(run["layers"]) == {"blocks.0", "blocks.1"}
        )
        assert (run["local"] is not None) == name.startswith("local_ce")
        assert run["imprint"] == imprint.__version__ and run["machine"]["torch"] == torch.__version__
    assert found["local_ce-seed0"]["settings"]["options"]["bias"] is True
    assert not (out / ".running").exists()
    page = (out / "comparison.md").read_text()
    shown = cells(page)
    assert list(shown) == list(NAMES) and cells(capsys.readouterr().out) == shown
    base = statistics.fmean(found[f"backprop-seed{seed}"]["peak bytes"] for seed in (0, 1))
    for name in NAMES:
        both = [found[f"{name}-seed{seed}"] for seed in (0, 1)]
        accuracy = [100 * run["accuracy"] for run in both]
        assert shown[name][0] == f"{sum(accuracy) / 2:.2f} ± {statistics.stdev(accuracy):.2f}"
        assert shown[name][5] == f"{statistics.fmean(run['peak bytes'] for run in both) / base:.2f}"
    for picture in re.findall(r"!\[.*\]\((.*)\)", page):
        assert (out / picture).stat().st_size > 1000
    assert page.count("![") == 4


def test_backprop_of_the_comparison_is_the_loop_that_anybody_would_write(toy: Toy, tmp_path: Path) -> None:
    file, out = toy(), tmp_path / "out"
    assert command(file, out, epochs=3) == 0
    data = prepare(load_h5(file))

    def by_hand(seed: int) -> list[float]:
        torch.manual_seed(seed)
        model = Dense((6,), 2, (8, 8))
        optimizer, curve = torch.optim.Adam(model.parameters(), 5e-4), []
        order = torch.Generator().manual_seed(seed)
        for _ in range(3):
            for rows in torch.randperm(90, generator=order).split(8):
                F.cross_entropy(model(data.x_train[rows]), data.y_train[rows]).backward()
                optimizer.step()
                optimizer.zero_grad()
            with torch.no_grad():
                curve.append((model.eval()(data.x_test).argmax(1) == data.y_test).double().mean().item())
            model.train()
        return curve

    curves = {seed: runs(out)[f"backprop-seed{seed}"]["curve"] for seed in (0, 1)}
    assert curves == {seed: pytest.approx(by_hand(seed), abs=1e-6) for seed in (0, 1)}
    assert curves[0] != curves[1]


def test_all_rules_of_a_seed_start_from_the_same_weights_and_see_the_same_batches(
    toy: Toy, tmp_path: Path, rule: Any
) -> None:
    seen: list[list[int]] = []
    name = rule(lambda view: seen.append(view.batch.tolist()) if view.h.shape[1] == 8 else None)
    file, out = toy(), tmp_path / "out"
    assert command(file, out, rules=(name, "local_ce")) == 0
    weights = {stem: run["initial weights"] for stem, run in runs(out).items()}
    assert len({weights[f"{r}-seed0"] for r in (*NAMES[:3], name, "local_ce")}) == 1
    assert weights["backprop-seed0"] != weights["backprop-seed1"]
    y = load_h5(file).y_train
    rows = torch.randperm(90, generator=torch.Generator().manual_seed(1)).split(8)
    last = seen[-2 * len(rows) :: 2]  # two units see each batch; seed 1 came last
    assert last == [y[r].tolist() for r in rows]
    other = torch.randperm(90, generator=torch.Generator().manual_seed(0)).split(8)
    assert last != [y[r].tolist() for r in other]


def without_seconds(run: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in run.items() if "seconds" not in k}


def test_runs_that_are_there_are_not_done_again(toy: Toy, tmp_path: Path) -> None:
    file, out = toy(), tmp_path / "out"
    assert command(file, out) == 0
    before, gone = {path: path.stat().st_mtime_ns for path in out.glob("*.json")}, out / "drtp-seed1.json"
    kept = runs(out)
    gone.unlink()
    assert command(file, out) == 0
    assert {path for path in before if path.stat().st_mtime_ns != before[path]} == {gone}
    assert without_seconds(runs(out)["drtp-seed1"]) == without_seconds(kept["drtp-seed1"])
    assert command(file, out, seeds=3) == 0 and len(runs(out)) == 15


def test_a_run_that_was_stopped_goes_on_from_its_last_epoch(
    toy: Toy, tmp_path: Path, rule: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    file, calls, limit = toy(), [0], [10**6]

    def seen(view: View) -> None:
        calls[0] += 1
        if calls[0] == limit[0]:
            raise KeyboardInterrupt

    name = rule(seen)
    assert command(file, tmp_path / "whole", epochs=3, seeds=1, rules=(name,)) == 0
    whole, calls[0] = calls[0], 0
    assert whole == 6 + 3 * 12 * 2  # to measure memory, and 3 epochs of 12 batches; two units
    limit[0] = whole - 1
    out = tmp_path / "stopped"
    assert command(file, out, epochs=3, seeds=1, rules=(name,)) == 130
    assert "goes on" in capsys.readouterr().err and not (out / f"{name}-seed0.json").exists()
    calls[0], limit[0] = 0, 10**6
    assert command(file, out, epochs=3, seeds=1, rules=(name,)) == 0
    assert calls[0] == 6 + 24  # the last epoch alone
    both = [without_seconds(runs(folder)[f"{name}-seed0"]) for folder in (tmp_path / "whole", out)]
    assert both[0] == both[1]


def test_a_damaged_checkpoint_starts_over(toy: Toy, tmp_path: Path, rule: Any) -> None:
    file, out, stop, calls = toy(), tmp_path / "out", [True], [0]

    def seen(view: View) -> None:
        calls[0] += 1
        if stop[0] and calls[0] == 40:
            raise KeyboardInterrupt

    name = rule(seen)
    assert command(file, out, epochs=3, seeds=1, rules=(name,)) == 130
    (half,) = (out / ".running").glob("*/last.pt")
    half.write_bytes(half.read_bytes()[:-1000])
    stop[0], calls[0] = False, 0
    assert command(file, out, epochs=3, seeds=1, rules=(name,)) == 0 and calls[0] == 6 + 3 * 24
    assert len(runs(out)[f"{name}-seed0"]["curve"]) == 3 and not (out / ".running").exists()


def test_a_checkpoint_of_other_settings_is_left_alone(toy: Toy, tmp_path: Path, rule: Any) -> None:
    out, stop, calls = tmp_path / "out", [True], [0]

    def seen(view: View) -> None:
        calls[0] += 1
        if stop[0] and calls[0] == 40:
            raise KeyboardInterrupt

    name = rule(seen)
    assert command(toy(), out, epochs=3, seeds=1, rules=(name,)) == 130
    stop[0], calls[0] = False, 0
    for file in out.glob("*.json"):
        file.unlink()
    assert command(toy(), out, "--limit", "80", epochs=3, seeds=1, rules=(name,)) == 0
    assert calls[0] == 6 + 3 * 20 and len(list((out / ".running").iterdir())) == 1


@pytest.mark.parametrize("text", ['{"format": 1, "sett', "[]", '{"format": 1, "settings": {}}', '{"format": 7}'])
def test_a_damaged_run_is_named(toy: Toy, tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "frozen-seed1.json").write_text(text)
    assert command(toy(), out) == 2
    said = capsys.readouterr().err
    assert "DataError" in said and str(out / "frozen-seed1.json") in said and "fix:" in said
    assert len(list(out.glob("*.json"))) == 1, "nothing was begun"


def test_a_folder_of_other_settings_stays_as_it_is(
    toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = toy(), tmp_path / "out"
    assert command(file, out, seeds=1) == 0
    before = runs(out)
    assert command(file, out, seeds=1, epochs=2) == 2
    said = capsys.readouterr().err
    assert "expected: {'epochs': 2}" in said and "got:      {'epochs': 1}" in said
    other = toy("other.h5", train=91)
    assert command(other, out, seeds=1) == 2 and "'digest'" in capsys.readouterr().err
    assert runs(out) == before


def test_a_rule_that_refuses_is_a_row_with_its_reason_and_is_tried_again(
    toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Picky(Head):
        willing = False

        def bind(self, spec: Spec, labels: Labels) -> None:
            if not self.willing:
                raise ArgumentError("picky", "it wants | pictures", fix="a convolution")
            super().bind(spec, labels)

    @register_rule("picky")
    @dataclass(frozen=True)
    class PickyRule(Rule):
        """Refuses."""

        def objective(self) -> Objective:
            return Picky()

    file, out = toy(), tmp_path / "out"
    try:
        assert command(file, out, rules=("picky", "local_ce")) == 0
        shown = cells((out / "comparison.md").read_text())
        assert shown["picky"][0].startswith("refused: ") and shown["picky"][0].endswith("it wants / pictures")
        assert float(shown["local_ce"][0].split()[0]) > 0
        assert runs(out)["picky-seed0"]["refused"]["error"] == "ArgumentError"
        Picky.willing = True
        assert command(file, out, rules=("picky", "local_ce")) == 0
        both = [runs(out)[f"{name}-seed1"]["accuracy"] for name in ("picky", "local_ce")]
        assert both[0] == both[1]
    finally:
        registry.pop("picky")


def test_a_loss_that_is_not_finite_stops_one_run_and_no_other(toy: Toy, tmp_path: Path, rule: Any) -> None:
    calls = [0]

    def seen(view: View) -> float | None:
        calls[0] += 1
        return float("nan") if calls[0] == 40 else None  # six to measure memory, 24 an epoch

    out = tmp_path / "out"
    assert command(toy(), out, epochs=3, rules=(rule(seen),)) == 0
    first, second = (runs(out)[f"spied-seed{seed}"] for seed in (0, 1))
    assert first["stopped"]["epoch"] == 2 and first["stopped"]["error"] == "NonFiniteError" and "curve" not in first
    assert len(second["curve"]) == 3
    shown = cells((out / "comparison.md").read_text())["spied"]
    assert f"{100 * second['accuracy']:.2f} (stopped in epoch 2, 1 of 2 seeds: " in shown[0]


def test_without_matplotlib(drawn: None, toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    out = tmp_path / "out"
    assert command(toy(), out, seeds=1) == 0
    page = (out / "comparison.md").read_text()
    assert "matplotlib is not installed" in page and "imprint[plots]" in page and "![" not in page
    assert list(cells(page)) == list(NAMES) and not list(out.glob("*.png"))


def test_a_rule_in_a_file_of_its_own(toy: Toy, tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "from dataclasses import dataclass\nimport imprint\nfrom imprint.objectives import Head\n"
        "@imprint.register_rule('own')\n@dataclass(frozen=True)\nclass Own(imprint.Rule):\n"
        "    def objective(self):\n        return Head()\n"
    )
    try:
        assert command(toy(), tmp_path / "out", "--use", str(own), rules=("own", "local_ce"), seeds=1) == 0
        both = [runs(tmp_path / "out")[f"{name}-seed0"]["accuracy"] for name in ("own", "local_ce")]
        assert both[0] == both[1]
    finally:
        registry.pop("own")
    assert command(toy(), tmp_path / "out", "--use", str(tmp_path / "nowhere.py")) == 2


def test_a_page_elsewhere(drawn: None, toy: Toy, tmp_path: Path) -> None:
    page = tmp_path / "docs" / "page.md"
    assert command(toy(), tmp_path / "out", "--page", str(page), "--limit", "40", "--threads", "1", seeds=1) == 0
    assert "on 40 training and 200 test" in page.read_text() and (page.parent / "page_accuracy.png").is_file()
    assert not (tmp_path / "out" / "comparison.md").exists()


def test_rules_with_options(toy: Toy, tmp_path: Path) -> None:
    names = ["predsim", imprint.rules.PredSim(beta=0.5)]
    out = tmp_path / "out"
    rows = imprint.compare.compare_rules(
        toy(), "mlp", names, epochs=1, seeds=[3], out=out, width=8, depth=1, progress=False
    )
    assert [row.label for row in rows][3:] == ["predsim", "predsim(beta=0.5)"]
    assert runs(out)["predsim_beta=0.5_-seed3"]["settings"]["options"] == {"beta": 0.5, "limit": 4096}
    with pytest.raises(ArgumentError, match="two rules are called 'frozen'"):

        class Frozen(Rule):
            name = "frozen"

        imprint.compare.contestants([Frozen()])


WRONG: dict[str, tuple[list[str], str]] = {
    "net": (["--net", "vgg8"], "did you mean 'vgg8b'"),
    "shape": (["--net", "cnn"], "ShapeError: net 'cnn'"),
    "depth": (["--depth", "0"], "depth counts from 1"),
    "epochs": (["--epochs", "0"], "epochs counts from 1"),
    "seeds": (["--seeds", "0"], "seeds counts from 1"),
    "limit": (["--limit", "-1"], "limit counts from 1"),
    "device": (["--device", "abacus"], "there is no such device"),
    "meta": (["--device", "meta"], "it runs on cpu or cuda"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be(toy: Toy, tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    more, said = WRONG[case]
    assert command(toy(), tmp_path / "out", *more) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_rules_and_files_that_cannot_be(toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = toy(), tmp_path / "out"
    assert command(file, out, rules=("locl_ce",)) == 2 and "did you mean 'local_ce'" in capsys.readouterr().err
    assert command(file, out, rules=("predict_input",)) == 2 and "is for graphs" in capsys.readouterr().err
    assert command(tmp_path / "no.h5", out) == 2 and "there is no such file" in capsys.readouterr().err
    with h5py.File(file, "a") as opened:
        del opened["test/y"]
    assert command(file, out) == 2 and "it lacks test/y" in capsys.readouterr().err
    assert command(toy("taken.h5"), file) == 2 and "cannot be written to" in capsys.readouterr().err
    values = tmp_path / "values.h5"
    x, y = torch.randn(8, 3), torch.randn(8, 1)
    save_h5(values, Data(x, y, x, y, num_classes=0))
    assert command(values, out) == 2 and "not one class a sample" in capsys.readouterr().err
    ragged, x, y = tmp_path / "ragged.h5", torch.randn(8, 4, 3), torch.arange(8) % 2
    ends = torch.tensor([1, 2, 3, 4] * 2)
    save_h5(ragged, Data(x, y, x, y, 2, "ragged", ends, ends))
    assert command(ragged, out) == 2 and "differ in length" in capsys.readouterr().err


@pytest.mark.gpu
def test_on_a_cuda_device(toy: Toy, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert command(toy(), out, "--device", "cuda", epochs=2, seeds=1) == 0
    found = runs(out)
    assert all(len(run["curve"]) == 2 and run["peak bytes"] > 0 for run in found.values())
    assert command(toy(), tmp_path / "cpu", epochs=2, seeds=1) == 0
    for name, run in runs(tmp_path / "cpu").items():
        assert found[name]["initial weights"] == run["initial weights"]
