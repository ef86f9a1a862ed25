"""A file that is damaged in any way is refused, and the manager stays as it was."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

import imprint
from imprint.errors import CheckpointError
from imprint.training import load_file, save_file, train_model

from references.runs import manager, run, samples
from references.states import differences


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training."""
    folder = tmp_path_factory.mktemp("run")
    run(folder, "tensors", "sigprop", 0, [])
    return folder


def refused(path: Path, made: imprint.Manager, match: str) -> None:
    """Going on from this file is refused, and nothing of the manager changes: tensors, optimizers, random numbers."""
    state = made.state_dict()
    with pytest.raises(CheckpointError, match=match):
        train_model(made, samples(), epochs=3, batch_size=4, checkpoint=path, progress=False)
    assert differences(state, made.state_dict()) == []
    assert len(state["model"]) == 16


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_file_that_was_cut_short(folder: Path, tmp_path: Path, share: float) -> None:
    whole = (folder / "last.pt").read_bytes()
    (tmp_path / "last.pt").write_bytes(whole[: int(share * len(whole))])
    refused(tmp_path, manager("sigprop", 3), "damaged")


def test_one_changed_bit_of_any_stored_tensor_is_noticed(folder: Path, tmp_path: Path) -> None:
    whole = bytearray((folder / "last.pt").read_bytes())
    with zipfile.ZipFile(folder / "last.pt") as archive:
        entries = [e for e in archive.infolist() if e.file_size >= 8 and "/data/" in e.filename]
    assert len(entries) > 50
    silent = 0
    for entry in entries[:: len(entries) // 12]:
        start = entry.header_offset + 30 + len(entry.filename.encode())
        start += int.from_bytes(whole[entry.header_offset + 28 : entry.header_offset + 30], "little")
        broken = bytearray(whole)
        broken[start + entry.file_size // 2] ^= 1
        (tmp_path / "last.pt").write_bytes(broken)
        refused(tmp_path, manager("sigprop", 3), "checksum")
        torch.load(tmp_path / "last.pt", weights_only=True)
        silent += 1
    assert silent >= 12  # torch alone reads them all without a word


def test_something_else_under_that_name(folder: Path, tmp_path: Path) -> None:
    made = manager("sigprop", 3)
    (tmp_path / "last.pt").write_text("not a checkpoint at all")
    refused(tmp_path, made, "damaged, or no checkpoint")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "last.pt")
    refused(tmp_path, made, "not written by train_model")
    os.replace(tmp_path / "last.pt", tmp_path / "other.pt")
    (tmp_path / "last.pt").write_bytes((folder / "best.pt").read_bytes())
    refused(tmp_path, made, "best.pt")
    state = load_file(folder / "last.pt")
    state["history"] = 3
    save_file(tmp_path / "last.pt", state)
    refused(tmp_path, made, "damaged")


def test_a_file_with_code_in_it_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trapped"),)

    torch.save({"format": 1, "x": Trap()}, tmp_path / "last.pt")
    refused(tmp_path, manager("sigprop", 3), "damaged, or no checkpoint")
    assert not (tmp_path / "trapped").exists()


def test_a_checkpoint_of_another_rule_or_model_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    refused(folder, manager("local_ce", 3), r"unit '0'.*another rule[\s\S]*local_ce[\s\S]*sigprop")
    bound = manager("local_ce", 3)
    bound.step(*samples())
    refused(folder, bound, "another rule")
    refused(folder, manager("sigprop", 3, scheduler=None), "another number of schedulers")
    refused(folder, manager("sigprop", 3, optimizer=lambda p: torch.optim.SGD(p, 0.1)), "another optimizer")


def test_the_best_model_is_a_state_of_its_manager_and_a_plain_model(folder: Path) -> None:
    state = load_file(folder / "best.pt")
    made = manager("sigprop", 5)
    made.load_state_dict(state)
    history = load_file(folder / "last.pt")["history"]
    best = max(history, key=lambda epoch: epoch["val"]["accuracy"])
    assert made.evaluate(samples(), 16) == best["val"]
    plain = manager("sigprop", 6).detach()
    plain.load_state_dict(state["model"], strict=True)
    plain.eval()
    assert torch.equal(plain(samples()[0]), made.predict(samples()[0]))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        load_file(tmp_path / "best.pt")
