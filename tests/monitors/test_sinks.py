"""What is recorded can be read back exactly, after a kill and after a resume."""

from __future__ import annotations

import io
import math
import os
import re
import signal
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest

from imprint.diagnostics import Record, read_records
from imprint.errors import DataError, MissingExtraError
from imprint.monitors.sinks import CSV, Live, Sink, TensorBoard

TABLE = {"stem": {"loss": 1 / 3, "accuracy": 0.5}, 'blocks.0, "odd"': {"loss": math.inf}}


def test_csv_gives_back_every_digit_and_odd_names(tmp_path: Path) -> None:
    sink = CSV(tmp_path / "a" / "run.csv")
    sink.write(10, TABLE)
    sink.write(20, {"stem": {"loss": 1e-300}})
    sink.close()
    assert (
        (tmp_path / "a" / "run.csv").read_text().startswith("step,unit,metric,value\n10,stem,loss,0.3333333333333333\n")
    )
    assert read_records(sink.path) == [
        Record(10, "stem", "loss", 1 / 3), Record(10, "stem", "accuracy", 0.5),
        Record(10, 'blocks.0, "odd"', "loss", math.inf), Record(20, "stem", "loss", 1e-300),
    ]  # fmt: skip


def test_csv_goes_on_behind_what_is_there(tmp_path: Path) -> None:
    for step in (1, 2):
        CSV(tmp_path / "run.csv").write(step, {"a": {"loss": float(step)}})
    assert [r.value for r in read_records(tmp_path / "run.csv")] == [1.0, 2.0]


def test_csv_resumed_from_an_earlier_step_replaces_what_came_later(tmp_path: Path) -> None:
    sink = CSV(tmp_path / "run.csv")
    for step in (10, 20, 30):
        sink.write(step, {"a": {"loss": float(step)}, "b": {"loss": 0.0}})
    again = CSV(tmp_path / "run.csv")
    again.start(20)
    again.write(20, {"a": {"loss": 99.0}, "val": {"loss": 5.0}})  # of step 20, only what is not there yet
    again.write(25, {"a": {"loss": 25.0}})
    rows = [(r.step, r.unit, r.value) for r in read_records(again.path)]
    assert rows == [(10, "a", 10.0), (10, "b", 0.0), (20, "a", 20.0), (20, "b", 0.0), (20, "val", 5.0), (25, "a", 25.0)]
    anew = CSV(tmp_path / "run.csv")
    anew.start(0)
    assert read_records(anew.path) == []


@pytest.mark.parametrize("cut", [3, 12, 30, 44, 45])
def test_csv_repairs_a_line_that_was_cut_short(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "run.csv"
    sink = CSV(path)
    sink.write(1, {"a": {"loss": 0.125, "accuracy": 0.25}})
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    lines = whole[:cut].decode().splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n")][1:]
    assert len(read_records(path)) == len(kept)
    CSV(path).write(2, {"a": {"loss": 0.5}})
    assert [(r.step, r.value) for r in read_records(path)] == [(1, 0.125)] * len(kept) + [(2, 0.5)]


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_csv_is_readable_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    program = f"""
        import os, signal
        from imprint.monitors.sinks import CSV
        sink = CSV({str(path)!r})
        for step in range(50):
            sink.write(step, {{"a": {{"loss": step / 7}}}})
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], cwd=os.getcwd())
    assert done.returncode == -signal.SIGKILL
    assert read_records(path) == [Record(step, "a", "loss", step / 7) for step in range(50)]


def test_other_files_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="other columns"):
        CSV(other)
    with pytest.raises(DataError, match="folder"):
        CSV(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        read_records(tmp_path / "none.csv")
    other.write_text("step,unit,metric,value\n1,a,loss\n")
    with pytest.raises(DataError, match="line 2 is damaged"):
        read_records(other)
    assert other.read_text() == "step,unit,metric,value\n1,a,loss\n"


def test_tensorboard_writes_one_chart_a_metric_and_unit_and_hides_what_a_resume_voids(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tensorboard's own
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        sink = TensorBoard(tmp_path)
        for step in (10, 20, 30):
            sink.write(step, {"stem": {"loss": step / 3}, "val": {"accuracy": 0.5}})
        sink.close()
        again = TensorBoard(tmp_path)
        again.start(20)
        again.write(30, {"stem": {"loss": 7.0}})
        again.close()
        again.close()
        events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Tags()["scalars"] == ["loss/stem", "accuracy/val"]
    assert [(e.step, round(e.value, 4)) for e in events.Scalars("loss/stem")] == [(10, 3.3333), (20, 6.6667), (30, 7.0)]


def test_tensorboard_missing_is_an_error_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match=r'pip install "imprint\[tensorboard\]"'):
        TensorBoard(tmp_path)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def screen(text: str) -> list[str]:
    """What a terminal shows after it was sent `text`."""
    rows: list[list[str]] = [[]]
    y = x = 0
    for part in re.findall(r"\x1b\[A|\x1b\[K|\n|\r|[^\x1b\n\r]", text):
        if part == "\n":
            y, x = y + 1, 0
        elif part == "\r":
            x = 0
        elif part == "\x1b[A":
            y -= 1
        elif part != "\x1b[K":
            rows[y][x : x + 1] = part
            x += 1
        while len(rows) <= y:
            rows.append([])
        rows[y] += " " * (x - len(rows[y]))
    return ["".join(row).rstrip() for row in rows]


def test_live_redraws_one_table_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    sink = Live(file=terminal)
    sink.write(10, {"stem": {"loss": 1.5}, "head": {"loss": 2.25}})
    sink.write(20, {"stem": {"loss": 0.123456}, "head": {"loss": 2.0}, "val": {"accuracy": 0.75}})
    expected = [
        "step 20     loss  accuracy",
        "stem      0.1235         -",
        "head           2         -",
        "val            -      0.75",
    ]
    assert screen(terminal.getvalue())[:4] == expected
    sink.close()
    shown = screen(terminal.getvalue())
    assert [line for line in shown if line] == expected
    assert "1.5" not in "\n".join(shown)


def test_live_without_a_terminal_prints_every_table_and_shows_chosen_columns() -> None:
    out = io.StringIO()
    sink = Live(["accuracy"], out)
    sink.write(1, {"a": {"loss": 1.0, "accuracy": 0.5}, "b": {"loss": 1.0}})
    sink.write(2, {"a": {"accuracy": 0.75}})
    sink.close()
    assert out.getvalue() == "step 1   accuracy\na             0.5\nstep 2   accuracy\na            0.75\n"


def test_a_narrow_terminal_cuts_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    terminal = Terminal()
    sink = Live(file=terminal)
    sink.write(1, {"a_rather_long_name": {"loss": 1.0, "accuracy": 0.5}})
    assert max(map(len, screen(terminal.getvalue()))) <= 19


def test_a_sink_needs_write_alone() -> None:
    class Count(Sink):
        steps = 0

        def write(self, step, table) -> None:
            self.steps += 1

    sink = Count()
    sink.start(0)
    sink.write(1, {})
    sink.close()
    assert sink.steps == 1
    with pytest.raises(TypeError):
        Sink()  # type: ignore[abstract]
