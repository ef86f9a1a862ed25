"""Published figures: the recipes are sound, the command says what it found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from imprint.compare.published import PUBLISHED, Published, by_name
from imprint.compare.reproduce import build, is_of, main, prepare, reproduce, verdict
from imprint.data import Data, load_h5, save_h5
from imprint.errors import ArgumentError, UnknownNameError
from imprint.rules import registry

SHAPES = {"mnist": (1, 28, 28), "fashion_mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
READY = [entry for entry in PUBLISHED if entry.rule in registry]


def images(shape: tuple[int, ...], rows: int = 8) -> Data:
    x, y = torch.rand(rows, *shape) * 255, torch.arange(rows) % 10
    return Data(x, y, x, y, 10, "images")


@pytest.mark.parametrize("entry", READY, ids=lambda entry: entry.name)
def test_a_recipe_can_be_followed(entry: Published) -> None:
    if entry.net == "vgg8b":
        entry = Published(**{**vars(entry), "sizes": {"width": 0.1}})
    torch.manual_seed(0)
    data = prepare(entry, images(SHAPES[entry.data]))
    manager = build(entry, data, 10)
    before = {name: p.clone() for name, p in manager.model.named_parameters()}
    for _ in range(2):
        manager.step(data.x_train, data.y_train)
    assert any(not torch.equal(p, before[name]) for name, p in manager.model.named_parameters())
    if entry.falls:
        rates = set()
        for _ in range(10):
            rates.add(next(iter(manager.optimizers.values())).param_groups[0]["lr"])
            manager.step_schedulers()
        assert sorted(rates) == pytest.approx([5e-4 * 0.25**i for i in (3, 2, 1, 0)])


def test_names_and_bands() -> None:
    assert len({entry.name for entry in PUBLISHED}) == len(PUBLISHED) and {e.mark for e in PUBLISHED} == {"V", "F", "R"}
    assert by_name("forward_forward").band == (2.88, 4.32)
    assert all((entry.band is None) == (entry.mark == "R" or entry.part) for entry in PUBLISHED)
    assert all(entry.gpu or entry.epochs <= 10 for entry in PUBLISHED)
    with pytest.raises(UnknownNameError, match="did you mean 'predsim'"):
        by_name("predsm")


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("predsim", 9.0, "reproduced"), ("predsim", 10.3, "missed"), ("predsim", 6.0, "below the band"),
        ("drtp", 9.0, "unconfirmed"), ("cafo", 34.86, "another data set"),
    ],
)  # fmt: skip
def test_what_is_said_of_an_error(name: str, error: float, said: str) -> None:
    entry = by_name(name)
    assert verdict({"band": entry.band, "part": entry.part, "error": error}) == said


def test_other_data_and_fewer_epochs_get_no_verdict() -> None:
    entry = by_name("predsim")
    result = {"band": entry.band, "part": False, "error": 30.0, "own": True, "epochs": 1, "asked": 10}
    assert verdict(result) == "fewer epochs than the figure needs" and verdict({**result, "error": 9.0}) == "reproduced"
    assert verdict({**result, "error": 9.0, "own": False}) == "another data set"
    x, y = torch.zeros(100, 1, 28, 28), torch.arange(100) % 10
    assert not is_of(entry, Data(x, y, x, y, 10, "fashion_mnist"))
    many = torch.arange(10000) % 10
    assert is_of(entry, Data(x, y, torch.zeros(10000, 1, 28, 28), many, 10, "whatever"))
    assert not is_of(by_name("drtp"), Data(x, y, torch.zeros(10000, 1, 28, 28), many, 10, "mnist"))


def test_inputs_from_zero_to_one_and_weights_after_he() -> None:
    data = prepare(by_name("pepita"), images((1, 28, 28)))
    assert float(data.x_train.max()) == 1 and float(data.x_train.min()) >= 0
    assert prepare(by_name("predsim"), images((1, 28, 28))).moments() == pytest.approx((0, 1), abs=1e-5)
    torch.manual_seed(0)
    weight = build(by_name("pepita"), data, 10).model.blocks[0][0].weight
    assert float(weight.detach().abs().max()) == pytest.approx((6 / 784) ** 0.5, rel=1e-3)
    assert isinstance(build(by_name("pepita"), data, 10).model.blocks[0][-1], nn.Dropout)


def test_the_command(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "drtp.json"
    assert main(["drtp", "--data", str(digits), "--epochs", "2", "--out", str(out)]) == 0
    said, found = capsys.readouterr().out, json.loads(out.read_text())
    assert f"{found['curve'][0]:.2f}, {found['curve'][1]:.2f}" in said and said.strip().endswith("another data set")
    assert found["error"] == found["curve"][-1] == pytest.approx(100 * (1 - found["accuracy"]), abs=0.005)
    assert found["published"] == 1.9 and found["rows"] == 1437 and found["epochs"] == 2
    again = reproduce(by_name("drtp"), load_h5(digits), epochs=2, progress=False)
    other = reproduce(by_name("drtp"), load_h5(digits), epochs=2, seed=1, progress=False)
    assert again["curve"] == found["curve"] != other["curve"]


def test_what_cannot_be_reproduced(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["drpt", "--data", str(digits)]) == 2 and "did you mean 'drtp'" in capsys.readouterr().err
    assert main(["drtp", "--data", str(tmp_path / "no.h5")]) == 2 and "no such file" in capsys.readouterr().err
    for more, what in (
        (["--device", "xyz"], "no such device"), (["--threads", "-3"], "threads count from 1"),
        (["--seed", "-1"], "seeds count from 0"), (["--out", "/proc/none/x.json"], "cannot be written to"),
        (["--epochs", "0"], "epochs counts from 1"),
    ):  # fmt: skip
        assert main(["drtp", "--data", str(digits), *more]) == 2 and what in capsys.readouterr().err
    flat = tmp_path / "flat.h5"
    x, y = torch.rand(20, 5), torch.arange(20) % 10
    save_h5(flat, Data(x, y, x, y, 10, "flat"))
    assert main(["cafo", "--data", str(flat)]) == 2 and "net of convolutions" in capsys.readouterr().err
    entry: dict[str, Any] = {**vars(by_name("drtp")), "rule": "predism"}
    with pytest.raises(UnknownNameError, match="did you mean 'predsim'"):
        build(Published(**entry), images((1, 8, 8)), 2)
    with pytest.raises(ArgumentError, match="epochs counts from 1"):
        reproduce(by_name("drtp"), load_h5(digits), epochs=0)
