"""What does a compiled tick cost, learning included, beside the graph's own engine and loops by hand?

    python benchmarks/runtime.py [--cases gru128 six ...] [--device cuda] [--repeats 9] [--out FILE.json]

Chains of modules, each a projection, a GRU and a local head with Adam, float32, one thread, 64 ticks a rollout. By hand
they are loops of ``nn.Linear`` and ``nn.GRUCell`` with a backward pass and a default Adam a module (= 1), as people
write them, and as fast as torch alone gets: one backward pass and one fused Adam for all modules. ``nn.GRU``
backpropagates through all 64 ticks and steps once for them: another algorithm, that keeps every tick. That weights
agree is checked first. Denormal numbers, which Adam's moments become after some thousand ticks, are
flushed: they are slow.

``update8`` steps every 8 ticks; its ratio is to the loop that steps every tick. ``attached`` is ``manager.step`` of
torch models, its ratio to the eager one; ``long`` compares the first and the last tenth of 5,000 ticks; ``compile`` is
the first rollout of a plan in processes of their own, without and with what the first one left on disk.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from chains import Case, Size, World, flat
from loops import CLASSES, Chain, Sequence, rolled, through_time
from measure import machine, times
from nets import ResidualMLP, VGG8b
from torch import Tensor

import imprint

Row = dict[str, Any]
MODELS: dict[str, tuple[Callable[[], Any], tuple[int, ...], str]] = {
    "VGG8b": (VGG8b, (3, 32, 32), r"features\.\d+|hidden"),
    "MLP of 16 blocks": (ResidualMLP, (784,), r"stem|blocks\.\d+"),
}  # fmt: skip


CASES = {
    "gru128": Case(Size(64, 128), asked=0.4), "six": Case(Size(128, 128, 6), asked=0.3),
    "update8": Case(Size(64, 128), 8, asked=0.22), "h512": Case(Size(512, 512, rows=64), asked=0.7),
    "etrace": Case(Size(64, 128), credit=imprint.credit.ETrace("es_d_rtrl"), by_hand=False),
}  # fmt: skip
ON_CUDA = {"every tick": Case(Size(512, 512, 4, 64)), "every 16 ticks": Case(Size(512, 512, 4, 64), 16)}
ASKED_ON_CUDA = {"every tick": 70.0, "every 16 ticks": 20.0}
"""Microseconds a tick."""


def apart(found: Tensor, expected: Tensor, before: Tensor) -> float:
    """How far two ended from each other, as a share of the way that one went."""
    return float((found - expected).norm() / (expected - before).norm())


def learning(name: str, case: Case, repeats: int, backends: dict[str, dict[str, Any]]) -> list[Row]:
    """All ways to learn in a case: after two rollouts they must be where the loop by hand is."""
    torch.manual_seed(1)
    size, batch = case.size, case.size.batch()
    ways: dict[str, Callable[[], Any]] = {}
    agreed: dict[str, float] = {}
    engine = World(case, batch)
    before = flat(engine.weights())
    fresh = partial(World(case, batch).chain, size)
    engine.step()
    engine.step()
    where = flat(engine.weights())
    if case.by_hand:
        chain = fresh()
        ways["loop by hand"] = rolled(chain, batch)
        exact = chain if case.update == 1 else fresh()
        step = ways["loop by hand"] if exact is chain else rolled(exact, batch, case.update)
        step()
        step()
        where = flat([[p.detach() for p in link.parameters()] for link in exact.links])
        if exact is not chain:
            ways[f"loop by hand, a step every {case.update} ticks"] = step
        ways["loop by hand, one backward, fused Adam"] = rolled(fresh(), batch, case.update, one=True, fused=True)
        for kind in ("default", "fused"):
            net = Sequence(size.features, size.hidden, size.modules).to(size.device).like(fresh())
            ways[f"nn.GRU through time, {kind} Adam"] = through_time(net, batch, kind == "fused")
        _same_states(net, fresh(), batch)
    ways["engine"] = engine.step
    agreed["engine"] = apart(flat(engine.weights()), where, before)
    for label, options in backends.items():
        world = World(case, batch)
        ways[label] = world.plan(**options)
        ways[label]()
        agreed[label] = apart(flat(world.weights()), where, before)
    wrong = {label: off for label, off in agreed.items() if not off < 0.02}
    if wrong:
        raise SystemExit(f"{name}: weights are not where they should be, in shares of the way: {wrong}")
    if size.device == "cuda":
        ways = {label: _synchronized(way) for label, way in ways.items()}
    base = "loop by hand" if case.by_hand else "engine"
    measured = times(ways, repeats)
    return [{"case": name, "way": label, "us": 1e6 * seconds / size.ticks, "ratio": seconds / measured[base],
             "asked": case.asked if label in backends else None, "apart": agreed.get(label)}
            for label, seconds in measured.items()]  # fmt: skip


def _same_states(net: Sequence, chain: Chain, batch: dict[str, Tensor]) -> None:
    with torch.no_grad():
        *_, (states, _) = chain.ticks(batch["x"], batch["y"])
        torch.testing.assert_close(net(batch["x"].transpose(0, 1))[-1], states[-1], atol=1e-4, rtol=1e-3)


def _synchronized(way: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> None:
        way()
        torch.cuda.synchronize()

    return run


def attached(repeats: int, rows: int) -> list[Row]:
    """``manager.step`` of torch models, eager and compiled, after a step each that must agree."""
    found = []
    for name, (make, shape, layers) in MODELS.items():
        torch.manual_seed(0)
        x, y = torch.randn(rows, *shape), torch.randint(CLASSES, (rows,))
        ways: dict[str, Callable[[], Any]] = {}
        weights: dict[str, Tensor] = {}
        before = torch.zeros(0)
        for way in ("engine", "inductor"):
            torch.manual_seed(0)
            model = make()
            manager = imprint.attach(model, "local_ce", layers=layers, num_classes=CLASSES)
            manager.bind(x, y)
            if way != "engine":
                manager.compile(backend=way)
            before = flat([[p.detach().clone() for p in model.parameters()]])
            ways[way] = partial(manager.step, x, y)
            ways[way]()
            ways[way]()
            weights[way] = flat([[p.detach() for p in model.parameters()]])
        off = apart(weights["inductor"], weights["engine"], before)
        if not off < 0.02:
            raise SystemExit(f"{name}: the compiled step learns something else, {off} of the way")
        measured = times(ways, repeats)
        found += [{"case": f"attached, {name}", "way": way, "us": 1e6 * seconds, "ratio": seconds / measured["engine"],
                   "asked": 1.0 if way != "engine" else None, "apart": off if way != "engine" else None}
                  for way, seconds in measured.items()]  # fmt: skip
    return found


def long(size: Size, ticks: int) -> list[Row]:
    """One stream: median ticks of its first and of its last tenth."""
    size = replace(size, ticks=max(1, ticks // 100))
    world = World(Case(size), size.batch())
    with imprint.record(world.graph) as trace:
        world.graph.rollout(world.batch, keep="last")
    plan = trace.compile(backend="inductor")
    plan.rollout(world.batch, keep="last")
    found = []
    for _ in range(100):
        start = time.perf_counter()
        plan.rollout(world.batch, reset=False, keep="last")
        found.append(1e6 * (time.perf_counter() - start) / size.ticks)
    tenths = {"first": statistics.median(found[:10]), "last": statistics.median(found[-10:])}
    return [{"case": "long", "way": f"inductor, {which} {ticks // 10} ticks", "us": us, "ratio": us / tenths["first"],
             "asked": None, "apart": None} for which, us in tenths.items()]  # fmt: skip


def first_rollout(size: Size) -> float:
    """Seconds from a recording to the end of a plan's first rollout."""
    world = World(Case(size), size.batch())
    start = time.perf_counter()
    world.plan(backend="inductor")()
    return time.perf_counter() - start


def compiling(size: Size) -> list[Row]:
    """In fresh processes: with nothing on disk, and with what the first one left."""
    found = {}
    with tempfile.TemporaryDirectory() as kept:
        for which in ("cold", "warm"):
            sizes = [str(v) for v in (size.features, size.hidden, size.modules, size.rows, size.ticks)]
            out = subprocess.run(
                [sys.executable, __file__, "--first-rollout", *sizes], check=True, capture_output=True, text=True,
                env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": kept},
            ).stdout  # fmt: skip
            seconds = re.search(r"seconds ([\d.]+)", out)
            assert seconds is not None, out
            found[which] = float(seconds[1])
    return [{"case": "compile", "way": f"inductor, {which}", "us": 1e6 * s, "ratio": s / found["cold"],
             "asked": None, "apart": None} for which, s in found.items()]  # fmt: skip


def on_cuda(repeats: int, sized: Callable[[Size], Size]) -> list[Row]:
    """CUDA graphs beside the engine and beside the compiled ticks that they replay."""
    if not torch.cuda.is_available():
        raise SystemExit(
            "--device cuda: torch sees no CUDA device on this machine; leave --device out for the CPU's cases"
        )
    rows = []
    for when, case in ON_CUDA.items():
        ways = {name: {"backend": name} for name in ("cuda_graph", "inductor")}
        ways["cuda_graph, uncompiled"] = {"backend": "cuda_graph", "codegen": "eager"}
        name = f"cuda, 4 x {case.size.hidden}, a step {when}"
        some = learning(name, replace(case, size=replace(sized(case.size), device="cuda")), repeats, ways)
        engine = next(row["us"] for row in some if row["way"] == "engine")
        for row in some:
            row["asked us"] = ASKED_ON_CUDA[when] if row["way"] == "cuda_graph" else None
            row["engine"] = engine / row["us"]
        rows += some
    return rows


def shown(us: float) -> str:
    """With its unit."""
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if us >= 10 * size:
            return f"{us / size:.1f} {unit}"
    return f"{us:.1f} us"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*CASES, "attached", "long", "compile"]
    parser.add_argument("--cases", nargs="+", choices=names, default=names)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--long", type=int, default=5000, help="ticks of the case long")
    for name in ("rows", "hidden", "ticks"):
        parser.add_argument(f"--{name}", type=int, help="of every case, in place of its own")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--first-rollout", type=int, nargs=5, metavar="N", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    warnings.simplefilter("ignore")
    if args.first_rollout:
        print(f"seconds {first_rollout(Size(*args.first_rollout))}")
        return

    def sized(size: Size) -> Size:
        size = replace(size, **{name: v for name in ("rows", "ticks") if (v := getattr(args, name))})
        return replace(size, hidden=args.hidden, features=args.hidden) if args.hidden else size

    rows: list[Row] = []
    single = sized(CASES["gru128"].size)
    print("| case | way | a tick or step | ratio | asked |\n|---|---|---|---|---|")
    for name in args.cases if args.device == "cpu" else ["cuda"]:
        if name in CASES:
            case = replace(CASES[name], size=sized(CASES[name].size))
            some = learning(name, case, args.repeats, {"inductor": {"backend": "inductor"}})
        else:
            some = {
                "attached": lambda: attached(args.repeats, args.rows or 32), "long": lambda: long(single, args.long),
                "compile": lambda: compiling(single), "cuda": lambda: on_cuda(args.repeats, sized),
            }[name]()  # fmt: skip
        for row in some:
            asked = row.get("asked us") or row["asked"]
            cells = (row["case"], row["way"], shown(row["us"]), f"{row['ratio']:.2f}", str(asked or ""))
            print(f"| {' | '.join(cells)} |", flush=True)
        rows += some
    if args.out:
        options = {k: v for k, v in vars(args).items() if k not in ("out", "first_rollout")}
        args.out.write_text(json.dumps({"machine": machine(), "options": options, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
