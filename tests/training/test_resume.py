"""A training that was broken off and called again ends bit by bit where it would have ended."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from imprint.diagnostics import read_records
from imprint.errors import ArgumentError, CheckpointError
from imprint.monitors.sinks import Sink
from imprint.training import load_file, train_model

from references.runs import EPOCHS, Augmented, Stop, StopAt, check_same, manager, run, samples
from references.states import differences


@pytest.mark.parametrize("kind", ["tensors", "dataset", "loader", "generator", "sampler", "weighted", "replacement"])
def test_broken_off_anywhere_and_resumed_ends_bit_identical(kind: str, tmp_path: Path) -> None:
    first = run(tmp_path / "straight", kind, "sigprop", 0, [], schedule="step")
    for stop in (2, 8, 12):
        folder = tmp_path / str(stop)
        with pytest.raises(Stop):
            run(folder, kind, "sigprop", 0, [StopAt(stop)], schedule="step")
        # another process: other weights to begin with, and other random numbers
        random.seed(stop)
        np.random.seed(stop)  # noqa: NPY002
        history = run(folder, kind, "sigprop", stop, [], schedule="step")
        assert history == first and len(history) == EPOCHS
        check_same(tmp_path / "straight", folder)


def test_the_comparison_notices_another_seed_and_a_run_that_was_not_resumed(tmp_path: Path) -> None:
    run(tmp_path / "a", "tensors", "sigprop", 0, [])
    run(tmp_path / "b", "tensors", "sigprop", 1, [])
    last = [load_file(tmp_path / f / "last.pt") for f in "ab"]
    found = differences(*last, ("seconds",))
    assert any(k.startswith(".manager.model") for k in found) and any(k.startswith(".history") for k in found)
    assert differences(last[0], last[0]) == []


@pytest.mark.parametrize("rule", ["local_ce", "predsim", "forward_forward", "drtp", "backprop"])
def test_every_rule_resumes(rule: str, tmp_path: Path) -> None:
    run(tmp_path / "straight", "loader", rule, 0, [])
    with pytest.raises(Stop):
        run(tmp_path / "again", "loader", rule, 0, [StopAt(10)])
    run(tmp_path / "again", "loader", rule, 5, [])
    check_same(tmp_path / "straight", tmp_path / "again")


@pytest.mark.parametrize("stop", [4, 5, 6, 8, 12])
def test_resumes_in_the_middle_of_an_accumulation(stop: int, tmp_path: Path) -> None:
    options = {"accumulate": 3, "grad_clip": 0.5, "log": 1, "schedule": "step"}
    run(tmp_path / "straight", "loader", "sigprop", 0, [], **options)
    with pytest.raises(Stop):
        run(tmp_path / "again", "loader", "sigprop", 0, [StopAt(stop)], **options)
    saved = load_file(tmp_path / "again" / "last.pt")["manager"]
    assert saved["gathered"] == (stop - 1) % 7 % 3  # 7 batches an epoch, which ends with an update
    assert bool(saved["units"]["0"]["carry"]) == bool(saved["gathered"])
    run(tmp_path / "again", "loader", "sigprop", 8, [], **options)
    check_same(tmp_path / "straight", tmp_path / "again")


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker:UserWarning")  # on one core
def test_resumes_with_workers(tmp_path: Path) -> None:
    run(tmp_path / "straight", "workers", "local_ce", 0, [], epochs=2)
    with pytest.raises(Stop):
        run(tmp_path / "again", "workers", "local_ce", 0, [StopAt(10)], epochs=2)
    run(tmp_path / "again", "workers", "local_ce", 5, [], epochs=2)
    check_same(tmp_path / "straight", tmp_path / "again")


class Private(Dataset):
    """Draws from a generator that is an attribute of an attribute: no checkpoint looks there."""

    def __init__(self, held: bool) -> None:
        self.x, self.y = samples()
        own = torch.Generator().manual_seed(9)
        self.generator, self.hidden = (own, []) if held else (None, [own])

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[i] + torch.randn(6, generator=self.generator or self.hidden[0]), self.y[i]


@pytest.mark.parametrize("held", [True, False], ids=["its own attribute", "hidden"])
def test_random_numbers_that_a_dataset_hides_go_on_from_their_start(held: bool, tmp_path: Path) -> None:
    """A generator that is an attribute of the dataset is restored, one that is hidden is not."""

    def train(folder: str, *sinks: Sink) -> None:
        train_model(
            manager("local_ce", 0), Private(held), epochs=2, batch_size=4, seed=1, checkpoint=tmp_path / folder,
            every=1, log=2, progress=False, sinks=sinks,
        )  # fmt: skip

    train("straight")
    with pytest.raises(Stop):
        train("again", StopAt(10))
    train("again")
    weights = [load_file(tmp_path / folder / "last.pt")["manager"]["model"] for folder in ("straight", "again")]
    assert (differences(*weights) == []) == held


def test_checkpoints_at_epochs_alone_and_at_the_very_start(tmp_path: Path) -> None:
    run(tmp_path / "straight", "generator", "local_ce", 0, [], every=None)
    for stop, steps in ((4, 0), (12, 7)):
        folder = tmp_path / str(stop)
        with pytest.raises(Stop):
            run(folder, "generator", "local_ce", 0, [StopAt(stop)], every=None)
        assert load_file(folder / "last.pt")["manager"]["steps"] == steps
        run(folder, "generator", "local_ce", 5, [], every=None)
        check_same(tmp_path / "straight", folder)


def test_more_epochs_later_are_the_longer_training_at_once(tmp_path: Path) -> None:
    run(tmp_path / "long", "loader", "sigprop", 0, [], epochs=4, accumulate=2)
    for seed, epochs in enumerate((1, 3, 3, 4)):
        history = run(tmp_path / "parts", "loader", "sigprop", seed, [], epochs=epochs, accumulate=2)
        assert len(history) == epochs
    check_same(tmp_path / "long", tmp_path / "parts")


def test_without_resume_it_starts_anew(tmp_path: Path) -> None:
    run(tmp_path, "tensors", "local_ce", 0, [], epochs=2)
    before = load_file(tmp_path / "last.pt")
    with pytest.raises(Stop):
        run(tmp_path, "tensors", "local_ce", 0, [StopAt(1)], epochs=2, resume=False, every=None)
    assert load_file(tmp_path / "last.pt")["manager"]["steps"] == 0  # not the old run's
    run(tmp_path, "tensors", "local_ce", 0, [], epochs=2, resume=False)
    assert differences(before, load_file(tmp_path / "last.pt"), ("seconds",)) == []
    assert [r.step for r in read_records(tmp_path / "run.csv") if r.unit == "val"] == [7, 7, 14, 14]


def test_what_cannot_go_on_is_refused(tmp_path: Path) -> None:
    run(tmp_path, "tensors", "local_ce", 0, [], epochs=1)
    before = manager("local_ce", 3)
    state = before.state_dict()
    x, y = samples()
    with pytest.raises(CheckpointError, match="other training data"):
        train_model(before, (x[:8], y[:8]), epochs=2, batch_size=4, checkpoint=tmp_path, progress=False)
    assert differences(state, before.state_dict()) == []
    loader = DataLoader(Augmented(x, y), 4, num_workers=1, persistent_workers=True)
    with pytest.raises(ArgumentError, match="persistent_workers=False"):
        train_model(before, loader, epochs=2, checkpoint=tmp_path / "new", progress=False)
    with pytest.raises(ArgumentError, match="only once"):
        train_model(before, iter([(x, y)]), epochs=2, progress=False)
