"""What does a step of every rule cost, beside backprop of the same net in the same process?

    python benchmarks/rules.py [--net vgg8b] [--batch 32] [--threads 1] [--out FILE.json]

Time and transient memory of a step, as ratios to plain backprop with fused Adam; all rules with their own optimizers
and options. Beside them backprop with activation checkpointing around each unit. A rule that refuses the net says why.
Time is that of the processor in this process, measured in turns, so that other programs hardly touch it.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from layerwise import NETS, plain
from measure import machine, peak_bytes
from torch import nn
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

import imprint
from imprint.errors import ImprintError

CHECKPOINTED = "backprop, checkpointed"
LAYERED = sorted(name for name, rule in imprint.rules.registry.items() if "layers" in rule.worlds)


def checkpointed(model: nn.Module, layers: str) -> nn.Module:
    """The model, each unit of which is run again in the backward pass."""
    for name, module in model.named_modules():
        if re.fullmatch(layers, name):
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)  # type: ignore[method-assign]
    return model


def processor(steps: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of the processor for each step, all threads together."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(3 + repeats):
        for name, step in steps.items():
            start = time.process_time()
            step()
            if turn >= 3:
                found[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in found.items()}


def measure(net: str, batch: int, rules: list[str], repeats: int) -> list[dict[str, Any]]:
    make, shape, layers = NETS[net]
    torch.manual_seed(0)
    model = make()
    x, y = torch.randn(batch, *shape), torch.randint(10, (batch,))
    steps: dict[str, Callable[[], Any]] = {
        "backprop, plain torch": plain(copy.deepcopy(model), x, y),
        CHECKPOINTED: plain(checkpointed(copy.deepcopy(model), layers), x, y),
    }
    refused: dict[str, str] = {}
    for rule in rules:
        try:
            manager = imprint.attach(copy.deepcopy(model), rule, layers=layers, num_classes=10)
            manager.step(x, y)
        except ImprintError as error:
            refused[rule] = f"{error.where}: {error.what}"
        else:
            steps[rule] = partial(manager.step, x, y)
    seconds = processor(steps, repeats)
    memory = {name: peak_bytes(step) for name, step in steps.items()}
    base = next(iter(steps))
    rows: list[dict[str, Any]] = [
        {
            "net": net, "batch": batch, "rule": name, "ms": seconds[name] * 1e3, "MB": memory[name] / 1e6,
            "time": seconds[name] / seconds[base], "memory": memory[name] / memory[base],
        }
        for name in steps
    ]  # fmt: skip
    return rows + [{"net": net, "batch": batch, "rule": name, "refused": why} for name, why in refused.items()]


def line(row: dict[str, Any]) -> str:
    if "refused" in row:
        return f"| {row['net']}, {row['rule']} | refused: {row['refused']} | | | |"
    return (
        f"| {row['net']}, {row['rule']} | {row['ms']:.0f} | {row['time']:.2f} | {row['MB']:.1f} | {row['memory']:.2f} |"
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--net", choices=[*NETS, "all"], default="all")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rules", nargs="+", default=["all"], choices=["all", *LAYERED])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1, help="of torch; one measures steadiest")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    rules = LAYERED if "all" in args.rules else args.rules
    rows: list[dict[str, Any]] = []
    print("| net, rule | ms | time, backprop = 1 | MB | memory, backprop = 1 |\n|---|---|---|---|---|")
    for net in tqdm(NETS if args.net == "all" else [args.net], leave=False):
        for row in measure(net, args.batch, rules, args.repeats):
            rows.append(row)
            tqdm.write(line(row))
    if args.out:
        args.out.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
