"""The training of a graph, broken off or killed and called again, ends bit by bit where it would have ended."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

import imprint
from imprint.errors import ArgumentError, CheckpointError
from imprint.training import load_file, prepare_seq2static_classification, train_graph

from references.graph_runs import CLASSES, EPOCHS, Noisy, build, run, samples
from references.runs import Stop, StopAt, check_same
from references.states import differences

PROGRAM = """
    import os, signal, sys, threading, time
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    sys.path[:0] = [{root!r}, {tests!r}]
    from references.graph_runs import run
    from references.runs import Sink

    class Kill(Sink):
        def write(self, step, table):
            if step >= {step}:
                os.kill(os.getpid(), signal.SIGKILL)

    def later():
        time.sleep({delay})
        os.kill(os.getpid(), signal.SIGKILL)

    if {delay}:
        threading.Thread(target=later, daemon=True).start()
    run(Path({folder!r}), "loader", {way!r}, {seed}, [Kill()], log_every=1, epochs={epochs})
"""


KINDS = ("dict", "table", "seeded", "dataset", "loader")
OTHERS = [("attached", "table"), ("attached", "loader"), ("global", "dict"), ("global", "loader")]


@pytest.mark.parametrize(("way", "kind"), [*(("own", kind) for kind in KINDS), *OTHERS])
def test_broken_off_anywhere_and_resumed_ends_bit_identical(way: str, kind: str, tmp_path: Path) -> None:
    first = run(tmp_path / "straight", kind, way, 0)
    for stop in (2, 6, 10):
        folder = tmp_path / str(stop)
        with pytest.raises(Stop):
            run(folder, kind, way, 0, [StopAt(stop)])
        random.seed(stop)  # another process: other weights to begin with, and other random numbers
        history = run(folder, kind, way, stop)
        assert history == first and len(history) == EPOCHS
        check_same(tmp_path / "straight", folder)


def test_the_comparison_notices_another_start(tmp_path: Path) -> None:
    for way in ("own", "global"):
        run(tmp_path / way / "a", "table", way, 0)
        run(tmp_path / way / "b", "table", way, 0, lr=0.021)
        found = differences(*(load_file(tmp_path / way / f / "last.pt") for f in "ab"), ("seconds",))
        assert any(k.startswith(".manager.graph") for k in found) and any(k.startswith(".history") for k in found)


def killed(folder: Path, root: Path, way: str, step: int, seed: int, delay: float = 0, epochs: int = EPOCHS) -> int:
    text = textwrap.dedent(PROGRAM).format(
        root=str(root), tests=str(root / "tests"), step=step, delay=delay, folder=str(folder), seed=seed, way=way,
        epochs=epochs,
    )  # fmt: skip
    return subprocess.run([sys.executable, "-c", text], cwd=root, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_killed_at_a_random_step_and_resumed_ends_bit_identical(tmp_path: Path, root: Path) -> None:
    step, way = random.SystemRandom().randint(2, 9), random.SystemRandom().choice(["own", "attached", "global"])
    print(f"{way} killed at step {step}")  # shown if the test fails
    first = run(tmp_path / "straight", "loader", way, 0, log_every=1)
    assert killed(tmp_path / "again", root, way, step, 0) == -signal.SIGKILL
    assert 0 <= load_file(tmp_path / "again" / "last.pt")["manager"]["steps"] < step
    assert killed(tmp_path / "again", root, way, 11, 3) == -signal.SIGKILL  # once more, after a resume
    assert run(tmp_path / "again", "loader", way, 4, log_every=1) == first
    check_same(tmp_path / "straight", tmp_path / "again")


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_killed_at_a_random_moment_also_while_it_writes(tmp_path: Path, root: Path) -> None:
    delay = random.SystemRandom().uniform(0.05, 1.5)
    print(f"killed after {delay} s")
    killed(tmp_path / "again", root, "own", 10**9, 0, delay, epochs=8)
    run(tmp_path / "straight", "loader", "own", 0, log_every=1, epochs=8)
    seed = 4 if (tmp_path / "again" / "last.pt").is_file() else 0  # killed before anything was written
    run(tmp_path / "again", "loader", "own", seed, log_every=1, epochs=8)
    check_same(tmp_path / "straight", tmp_path / "again")


def test_an_unbound_graph_goes_on_with_more_epochs_and_starts_anew_without_resume(tmp_path: Path) -> None:
    run(tmp_path / "long", "table", "own", 0, epochs=4)
    for seed, epochs in enumerate((1, 3, 4)):
        assert len(run(tmp_path / "parts", "table", "own", seed, epochs=epochs)) == epochs
    check_same(tmp_path / "long", tmp_path / "parts")
    before = load_file(tmp_path / "long" / "last.pt")
    run(tmp_path / "long", "table", "own", 0, epochs=4, resume=False)
    assert differences(before, load_file(tmp_path / "long" / "last.pt"), ("seconds",)) == []
    assert len(run(tmp_path / "long", "table", "own", 0, epochs=1, resume=False)) == 1


def test_the_best_weights_load_into_a_plain_graph(tmp_path: Path) -> None:
    for way in ("own", "global"):
        history = run(tmp_path / way, "table", way, 0, epochs=4)
        assert history.best is not None and history.best.val
        state = load_file(tmp_path / way / "best.pt")
        graph = build()
        graph.load_state_dict(state["graph"])
        out = graph.eval().rollout(samples())
        y = samples()["y"]
        accuracy = (out["head"][:, -1].argmax(1) == y).double().mean().item()
        assert accuracy == pytest.approx(history.best.val["accuracy"])


def test_what_cannot_go_on_is_refused(tmp_path: Path) -> None:
    run(tmp_path, "dict", "own", 0, epochs=1)
    before = load_file(tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match="other training data"):
        run(tmp_path, "dict", "own", 0, batch_size=None)
    for way in ("attached", "global"):
        with pytest.raises(CheckpointError):
            run(tmp_path, "dict", way, 0)
    graph = build(hidden=8)
    graph.bind(samples())
    state = {k: v.clone() for k, v in graph.state_dict().items() if k != "_extra_state"}
    with pytest.raises(CheckpointError, match="another shape"):
        train_graph(graph, samples(), epochs=2, batch_size=4, checkpoint=tmp_path, progress=False)
    assert differences(state, {k: v for k, v in graph.state_dict().items() if k != "_extra_state"}) == []
    assert differences(before, load_file(tmp_path / "last.pt")) == []
    loader = DataLoader(Noisy(), 4, num_workers=1, persistent_workers=True, collate_fn=imprint.data.collate)
    with pytest.raises(ArgumentError, match=r"train_graph\(checkpoint=...\).*\n.*persistent_workers=False"):
        train_graph(build(), loader, epochs=2, checkpoint=tmp_path / "new", progress=False)
    run(tmp_path / "global", "dict", "global", 0, epochs=1)
    torch.manual_seed(1)
    other = build()
    prepare_seq2static_classification(other, samples(), num_classes=CLASSES)
    with pytest.raises(CheckpointError):
        train_graph(
            other, samples(), epochs=2, batch_size=4, checkpoint=tmp_path / "global", progress=False,
            loss_fn=lambda out, batch: out["head"].square().mean(), lr=0.02, use_adamw=False,
        )  # fmt: skip
