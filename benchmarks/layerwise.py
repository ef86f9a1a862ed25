"""What does learning layer by layer cost, beside plain backprop of the same net in the same process?

    python benchmarks/layerwise.py [--net vgg8b] [--batch 32] [--threads 1] [--out FILE.json]

For each net and rule: the floor (operations a step cannot do without, counted, as a share of backprop's), the
operations we do, the time and the transient memory, all as ratios to backprop. predsim has no floor here: its
projections and similarities are operations that it cannot do without, and that the floor does not count.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measure import flops, machine, peak_bytes, times
from nets import Encoder, ResidualMLP, VGG8b
from torch import Tensor, nn
from tqdm import tqdm

import imprint

NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "vgg8b": (VGG8b, (3, 32, 32), r"features\.\d+|hidden"),
    "residual_mlp": (ResidualMLP, (784,), r"stem|blocks\.\d+"),
    "transformer": (Encoder, (64, 32), r"stem|blocks\.\d+"),
}
RULES = ("local_ce", "sigprop", "predsim")
COLUMNS = ("floor", "flops", "time", "time/floor", "memory", "ms", "backprop ms", "MB", "backprop MB")


def adam(params: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(params, 5e-4, fused=True)


def plain(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    optimizer = adam(model.parameters())

    def step() -> None:
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def floor(model: nn.Module, layers: str, rows: int, x: Tensor, y: Tensor) -> Callable[[], None]:
    """The least a rule with one local gradient can do: no heads, no second forward, no gradient of a unit's input.

    For local_ce and, with the context's `rows`, sigprop.
    """
    units = [m for n, m in model.named_modules() if re.fullmatch(layers, n)]

    def step() -> None:
        h = torch.cat([x, x[:rows]]) if rows else x
        for unit in units:
            out = unit(h.detach())
            torch.autograd.grad(out.square().mean(), list(unit.parameters()))
            h = out
        if h.dim() == 3:
            h = h.mean(1)
        out = model.classifier(h.detach()[: len(x)])  # type: ignore[operator]
        torch.autograd.grad(F.cross_entropy(out, y), list(model.classifier.parameters()))  # type: ignore[union-attr]

    return step


def measure(net: str, batch: int, repeats: int) -> list[dict[str, Any]]:
    make, shape, layers = NETS[net]
    torch.manual_seed(0)
    model = make()
    x, y = torch.randn(batch, *shape), torch.randint(10, (batch,))
    steps: dict[str, Callable[[], Any]] = {"backprop": plain(copy.deepcopy(model), x, y)}
    for rule in RULES:
        manager = imprint.attach(copy.deepcopy(model), rule, layers=layers, optimizer=adam, num_classes=10)
        steps[rule] = partial(manager.step, x, y)
    seconds = times(steps, repeats)
    memory = {name: peak_bytes(step) for name, step in steps.items()}
    work = {name: flops(step) for name, step in steps.items()}
    rows = []
    for rule in RULES:
        least = None
        if rule != "predsim":
            least = flops(floor(copy.deepcopy(model), layers, 10 if rule == "sigprop" else 0, x, y)) / work["backprop"]
        ratio = seconds[rule] / seconds["backprop"]
        rows.append({
            "net": net, "batch": batch, "rule": rule, "floor": least, "flops": work[rule] / work["backprop"],
            "time": ratio, "time/floor": least and ratio / least, "memory": memory[rule] / memory["backprop"],
            "ms": seconds[rule] * 1e3, "backprop ms": seconds["backprop"] * 1e3,
            "MB": memory[rule] / 1e6, "backprop MB": memory["backprop"] / 1e6,
        })  # fmt: skip
    return rows


def depth_memory(depths: tuple[int, ...] = (4, 8, 16, 32), batch: int = 128) -> list[dict[str, Any]]:
    """Transient memory of the residual MLP as it gets deeper."""
    rows = []
    for depth in depths:
        model = ResidualMLP(depth)
        x, y = torch.randn(batch, 784), torch.randint(10, (batch,))
        row: dict[str, Any] = {"depth": depth}
        for rule in ("backprop", *RULES):
            if rule == "backprop":
                step: Callable[[], Any] = plain(copy.deepcopy(model), x, y)
            else:
                manager = imprint.attach(copy.deepcopy(model), rule, layers=NETS["residual_mlp"][2], optimizer=adam)
                step = partial(manager.step, x, y)
            step()
            row[rule] = peak_bytes(step) / 1e6
        rows.append(row)
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--net", choices=[*NETS, "all"], default="all")
    parser.add_argument("--batch", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 8, 16, 32], help="of the residual MLP, for memory")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1, help="of torch; one measures steadiest")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    rows: list[dict[str, Any]] = []
    print("| net | batch | rule | " + " | ".join(COLUMNS) + " |\n|---|---|---|" + "---|" * len(COLUMNS))
    for net in tqdm(NETS if args.net == "all" else [args.net], leave=False):
        for batch in args.batch:
            for row in measure(net, batch, args.repeats):
                rows.append(row)
                numbers = ("–" if row[k] is None else f"{row[k]:.{2 if i < 5 else 0}f}" for i, k in enumerate(COLUMNS))
                tqdm.write(f"| {net} | {batch} | {row['rule']} | " + " | ".join(numbers) + " |")
    depth = depth_memory(tuple(args.depths))
    print(
        "\nTransient MB of the residual MLP, batch 128:\n\n| "
        + " | ".join(depth[0])
        + " |\n"
        + "|---" * len(depth[0])
        + "|"
    )
    for row in depth:
        print("| " + " | ".join(f"{v:.1f}" if k != "depth" else str(v) for k, v in row.items()) + " |")
    if args.out:
        args.out.write_text(json.dumps({"machine": machine(), "layerwise": rows, "depth": depth}, indent=1) + "\n")


if __name__ == "__main__":
    main()
