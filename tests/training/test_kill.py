"""A training killed by SIGKILL, at any step and at any moment, resumes exactly."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from imprint.training import load_file

from references.runs import EPOCHS, check_same, run

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")

PROGRAM = """
    import os, signal, sys, threading, time
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    sys.path[:0] = [{root!r}, {tests!r}]
    from references import runs as t

    class Kill(t.Sink):
        step = {step}
        def write(self, step, table):
            if step >= self.step:
                os.kill(os.getpid(), signal.SIGKILL)

    def later():
        time.sleep({delay})
        os.kill(os.getpid(), signal.SIGKILL)

    if {delay}:
        threading.Thread(target=later, daemon=True).start()
    options = {{"log": 1, "every": {every}, "epochs": {epochs}, "schedule": "step"}}
    t.run(Path({folder!r}), "loader", "sigprop", {seed}, [Kill()], **options)
"""


def killed(
    folder: Path, root: Path, step: int, seed: int, every: int = 2, delay: float = 0, epochs: int = EPOCHS
) -> int:
    text = textwrap.dedent(PROGRAM).format(
        root=str(root), tests=str(root / "tests"), step=step, delay=delay, folder=str(folder), seed=seed,
        every=every, epochs=epochs,
    )  # fmt: skip
    return subprocess.run([sys.executable, "-c", text], cwd=root, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode


def test_killed_at_a_random_step_and_resumed_ends_bit_identical(tmp_path: Path, root: Path) -> None:
    step = random.SystemRandom().randint(2, 11)
    print(f"killed at step {step}")  # shown if the test fails
    first = run(tmp_path / "straight", "loader", "sigprop", 0, [], log=1, every=2, schedule="step")
    assert killed(tmp_path / "again", root, step, 0) == -signal.SIGKILL
    assert 0 <= load_file(tmp_path / "again" / "last.pt")["manager"]["steps"] < step
    assert killed(tmp_path / "again", root, 13, 3) == -signal.SIGKILL  # once more, after a resume
    history = run(tmp_path / "again", "loader", "sigprop", 4, [], log=1, every=2, schedule="step")
    assert history == first
    check_same(tmp_path / "straight", tmp_path / "again")


def test_killed_at_a_random_moment_also_while_it_writes(tmp_path: Path, root: Path) -> None:
    options = {"log": 1, "every": 1, "schedule": "step", "epochs": 12}
    delay = random.SystemRandom().uniform(0.05, 1.5)
    print(f"killed after {delay} s")
    killed(tmp_path / "again", root, 10**9, 0, every=1, delay=delay, epochs=12)
    run(tmp_path / "straight", "loader", "sigprop", 0, [], **options)
    seed = 4 if (tmp_path / "again" / "last.pt").is_file() else 0  # killed before anything was written
    run(tmp_path / "again", "loader", "sigprop", seed, [], **options)
    check_same(tmp_path / "straight", tmp_path / "again")
