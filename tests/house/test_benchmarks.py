"""Every benchmark runs, on tiny sizes, and prints the table it promises; no figure is compared."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import imprint
from imprint.errors import ArgumentError
from imprint.runtime.codegen import generators


@pytest.fixture
def benchmark(root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A benchmark's module; the number of threads is as before afterwards."""
    threads, stems = torch.get_num_threads(), {file.stem for file in (root / "benchmarks").glob("*.py")}
    others = {name: sys.modules.pop(name) for name in stems & sys.modules.keys()}  # references of the same names
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    yield importlib.import_module
    for name in stems & sys.modules.keys():
        del sys.modules[name]
    sys.modules.update(others)
    torch.set_num_threads(threads)


def rows(printed: str) -> list[list[str]]:
    """Cells of all lines of a table."""
    return [[c.strip() for c in line.strip("| ").split("|")] for line in printed.splitlines() if line.startswith("|")]


def test_accuracy(benchmark: Any, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digits, out = root / "examples" / "data" / "digits.h5", tmp_path / "out.json"
    options = ["--epochs", "1", "--width", "8", "--batch", "256", "--rules", "backprop", "local_ce", "--out", str(out)]
    benchmark("accuracy").main(["--data", str(digits), *options])
    assert [row[2] for row in rows(capsys.readouterr().out)[2:]] == ["backprop", "local_ce"]
    runs = json.loads(out.read_text())["runs"]
    assert all(0 <= run["accuracy"] <= 1 and len(run["curve"]) == 1 and run["width"] == 8 for run in runs)
    with pytest.raises(SystemExit):
        benchmark("accuracy").main(["--data", str(digits), "--net", "vgg", "--width", "8"])


def test_layerwise(benchmark: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = benchmark("layerwise")
    small = module.partial(module.ResidualMLP, 1, 8, 12)
    monkeypatch.setitem(module.NETS, "residual_mlp", (small, (12,), r"stem|blocks\.\d+"))
    monkeypatch.setattr(module, "depth_memory", lambda depths: [{"depth": d} for d in depths])
    module.main(["--net", "residual_mlp", "--batch", "16", "--repeats", "1", "--depths", "2", "3"])
    table = rows(capsys.readouterr().out)
    found = {row[2]: row for row in table[2:5]}
    assert found.keys() == set(module.RULES) and table[-2:] == [["2"], ["3"]]
    # similarity matching is work that the floor does not count
    assert found["predsim"][3] == found["predsim"][6] == "–"
    assert 0 < float(found["local_ce"][3]) < float(found["local_ce"][4])


def test_rules(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, out = benchmark("rules"), tmp_path / "out.json"
    small = partial(benchmark("nets").ResidualMLP, 6, 16, 12)
    monkeypatch.setitem(module.NETS, "residual_mlp", (small, (12,), r"stem|blocks\.\d+"))

    def refuses(self: object) -> None:
        raise ArgumentError("drtp", "it will not", fix="nothing")

    monkeypatch.setattr(imprint.rules.DRTP, "objective", refuses)
    options = ["--net", "residual_mlp", "--batch", "64", "--repeats", "1", "--rules", "backprop", "local_ce", "drtp"]
    module.main([*options, "--out", str(out)])
    found = {row["rule"]: row for row in json.loads(out.read_text())["rows"]}
    table = {row[0].split(", ", 1)[1]: row[1:] for row in rows(capsys.readouterr().out)[2:]}
    assert list(found) == list(table) == ["backprop, plain torch", module.CHECKPOINTED, "backprop", "local_ce", "drtp"]
    assert found["backprop, plain torch"]["time"] == found["backprop, plain torch"]["memory"] == 1
    assert found["local_ce"]["memory"] < found[module.CHECKPOINTED]["memory"] < 1
    assert (
        table["local_ce"][3] == f"{found['local_ce']['memory']:.2f}"
        and table["drtp"][0] == "refused: drtp: it will not"
    )


def test_graph_rollout(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"batch": 2, "ticks": 8, "features": 4, "hidden": 4, "repeats": 1}
    benchmark("graph_rollout").main([v for name, value in sizes.items() for v in (f"--{name}", str(value))])
    table = rows(capsys.readouterr().out)[2:]
    assert len(table) == 9 and all(float(row[1]) > 0 for row in table)


def test_sequences(benchmark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "sequences.h5", tmp_path / "out.json"
    with h5py.File(path, "w") as file:
        for split, count in (("train", 24), ("test", 12)):
            file[f"{split}/x"] = torch.randn(count, 6, 3).numpy()
            file[f"{split}/y"] = (torch.arange(count) % 3).numpy()
            file[f"{split}/length"] = (3 + torch.arange(count) % 4).numpy()
    options = ["--rules", "backprop", "local_ce", "frozen", "--epochs", "1", "--seeds", "1", "--hidden", "4"]
    benchmark("sequences").main(["--data", str(path), *options, "--out", str(out)])
    assert [row[0] for row in rows(capsys.readouterr().out)[2:]] == [
        "backprop",
        "local_ce",
        "frozen",
        "ridge on its states",
    ]
    assert all(0 <= run["accuracy"] <= 1 for run in json.loads(out.read_text())["rows"])


def test_no_benchmark_is_left_out(root: Path) -> None:
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    shared = {"chains", "loops", "measure", "nets"}
    assert {path.stem for path in (root / "benchmarks").glob("*.py")} - shared <= tested


def test_the_first_step_binds_and_its_memory_grows_with_depth(benchmark: Any) -> None:
    """Later steps hold what one unit needs; the bind in the first holds an output of every unit."""
    peak, nets = benchmark("measure").peak_bytes, benchmark("nets")

    def peaks(depth: int) -> tuple[int, int]:
        manager = imprint.attach(nets.ResidualMLP(depth), "local_ce", layers=r"stem|blocks\.\d+", num_classes=10)
        x, y = torch.randn(32, 784), torch.randint(10, (32,))
        bind, _ = peak(lambda: manager.bind(x, y)), manager.step(x, y)  # the first step makes Adam's state
        return bind, peak(lambda: manager.step(x, y))

    (bind, step), (deep_bind, deep_step) = peaks(4), peaks(12)
    assert deep_bind > 1.3 * bind and deep_step < 1.1 * step


def test_etrace(benchmark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    options = ["--hidden", "8", "--ticks", "20", "40", "--repeats", "1", "--out", str(out)]
    benchmark("etrace").main(options)
    table = rows(capsys.readouterr().out)[2:]
    names = ["bptt", "bptt, nn.GRU", "D_RTRL", "ES_D_RTRL"]
    if importlib.util.find_spec("braintrace"):
        names += ["braintrace bptt", "braintrace D_RTRL", "braintrace ES_D_RTRL"]
    assert [row[2] for row in table] == 2 * names
    assert all(row["seconds"] > 0 for row in json.loads(out.read_text())["rows"])


def test_etrace_jax(benchmark: Any) -> None:
    """Another package's gradients of the same weights: what stands beside each other in the table is the same work."""
    pytest.importorskip("braintrace")
    module = benchmark("etrace_jax")
    torch.manual_seed(0)
    cell, readout = nn.GRUCell(5, 7), nn.Linear(7, 3)
    xs, ys = torch.randn(8, 4, 5), torch.randint(3, (8, 4))
    weights = dict(cell.named_parameters()) | {f"readout.{name}": p for name, p in readout.named_parameters()}

    def tensors(arrays: dict[str, Any]) -> dict[str, torch.Tensor]:
        return {name: torch.tensor(array) for name, array in arrays.items()}

    def ours(rule: str) -> dict[str, torch.Tensor]:
        for p in weights.values():
            p.grad = None
        if rule == "bptt":
            states = [xs.new_zeros(4, 7)]
            for x in xs:
                states.append(cell(x, states[-1]))
            F.cross_entropy(readout(torch.stack(states[1:])).flatten(0, 1), ys.flatten()).backward()
        else:
            getattr(imprint.etrace, rule)(cell, readout=readout, loss=F.cross_entropy).sequence(xs, ys)
        return {name: p.grad.clone() for name, p in weights.items() if p.grad is not None}

    ways = module.cases(cell, readout, xs, ys)
    found = {name.split()[1]: tensors(module.in_torch_form(way())) for name, way in ways.items()}
    for rule, theirs in found.items():
        for name, expected in ours(rule).items():
            if (rule, name[:4]) != ("ES_D_RTRL", "bias"):
                torch.testing.assert_close(theirs[name], expected, atol=1e-6, rtol=1e-4)
    control = ours("bptt")["weight_hh"]  # the rules differ from it, and so from each other
    for rule in ("D_RTRL", "ES_D_RTRL"):
        assert not torch.allclose(found[rule]["weight_hh"], control, rtol=1e-2)


def test_etrace_accuracy(benchmark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = tmp_path / "sequences.h5", tmp_path / "out.json"
    random = torch.Generator().manual_seed(0)
    with h5py.File(data, "w") as file:
        for split, count in (("train", 24), ("test", 12)):
            file[f"{split}/x"] = torch.randn(count, 9, 3, generator=random).numpy()
            file[f"{split}/y"] = (torch.arange(count) % 3).numpy()
            file[f"{split}/length"] = (5 + torch.arange(count) % 5).numpy()
    options = ["--data", str(data), "--epochs", "1", "--seeds", "1", "--hidden", "4", "--out", str(out)]
    benchmark("etrace_accuracy").main(options)
    table = rows(capsys.readouterr().out)[2:]
    methods = ["bptt", "d_rtrl", "es_d_rtrl", "instant", "frozen"]
    assert [row[:2] for row in table] == [[cell, method] for cell in ("gru", "lru") for method in methods]


def test_runtime(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Compiled code is left to the benchmark itself: here blocks run call by call, and must still agree."""
    module, out = benchmark("runtime"), tmp_path / "out.json"
    monkeypatch.setitem(generators, "inductor", generators["eager"])
    small = module.partial(benchmark("nets").ResidualMLP, 1, 8, 12)
    monkeypatch.setattr(module, "MODELS", {"small": (small, (12,), r"stem|blocks\.\d+")})
    monkeypatch.setattr(torch, "set_flush_denormal", lambda on: on)  # of the whole process
    monkeypatch.setitem(module.CASES, "six", module.Case(module.Size(4, 4, 2)))
    cases = ["gru128", "six", "update8", "etrace", "attached", "long"]
    sizes = ["--rows", "4", "--hidden", "4", "--ticks", "16", "--repeats", "1", "--long", "200"]
    module.main(["--cases", *cases, *sizes, "--out", str(out)])
    ways = ["loop by hand", "loop by hand, one backward, fused Adam", "nn.GRU through time, default Adam"]
    ways += ["nn.GRU through time, fused Adam", "engine", "inductor"]
    eight = [ways[0], "loop by hand, a step every 8 ticks", *ways[1:]]
    tenths = ["inductor, first 20 ticks", "inductor, last 20 ticks"]
    found = rows(capsys.readouterr().out)[2:]
    assert [row[1] for row in found] == [*ways, *ways, *eight, *ways[-2:], *ways[-2:], *tenths]
    assert all(float(row[2].split()[0]) > 0 for row in found)
    agreed = [
        row["apart"] for row in json.loads(out.read_text())["rows"] if row["way"] == "engine" and row["ratio"] != 1
    ]
    assert len(agreed) == 3 and all(off < 1e-3 for off in agreed)
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="no CUDA device"):
            module.main(["--device", "cuda"])


def test_what_learns_otherwise_is_not_measured(benchmark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop by hand with another rate: its weights end elsewhere, and that is said instead of a time."""
    module, loops = benchmark("runtime"), benchmark("loops")
    monkeypatch.setattr(loops, "adam", lambda net, fused=False: torch.optim.Adam(net.parameters(), 2e-3))
    case = module.Case(module.Size(4, 4, rows=4, ticks=8))
    with pytest.raises(SystemExit, match="not where they should be"):
        module.learning("slower", case, 1, {})
