"""How well does a graph of a recurrent encoder and a readout learn real sequences, module by module?

    python benchmarks/sequences.py --data FSDD.h5 [--epochs 4] [--seeds 3] [--rules local_ce backprop frozen]

One GRU behind its projection, one linear readout at every tick, cross entropy with the sequence's label at every tick;
test accuracy of each row's last emission. ``frozen`` is the same net with an encoder that never learns; ``ridge`` is
ridge regression on that encoder's last states. Every rule sees the same batches and the same optimizer.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import h5py
import torch
from measure import machine
from torch import Tensor
from tqdm import tqdm

import imprint
from imprint.credit import Instant, Unrolled

RULES: dict[str, tuple[Any, Any, Any]] = {
    "backprop": ("backprop", Unrolled(), "rollout"),
    "local_ce": ("local_ce", Instant(), 8),
    "predict_input": ("predict_input", Instant(), 8),
    "sigprop": ("sigprop", Instant(), 8),
    "frozen": (imprint.rules.Local(fill=None), Instant(), 8),
}
Split = tuple[Tensor, Tensor, Tensor]


def load(path: Path) -> tuple[Split, Split, int]:
    """Train and test as ``(x, y, length)``, scaled by the training ticks, and the number of classes."""
    with h5py.File(path) as file:
        parts = [tuple(torch.tensor(file[f"{s}/{k}"][:]) for k in ("x", "y", "length")) for s in ("train", "test")]
    x, _, length = parts[0]
    ticks = x[torch.arange(x.shape[1]) < length[:, None]]
    mean, scale = ticks.mean(0), ticks.std(0)
    train, test = (((x - mean) / scale, y.long(), length.long()) for x, y, length in parts)
    return train, test, int(train[1].max()) + 1


def build(hidden: int) -> imprint.Graph:
    graph, source = imprint.Graph(), imprint.Source("x")
    encoder = imprint.Module("encoder", imprint.protos.GRUStack(hidden=hidden))
    head = imprint.Module("head", imprint.protos.MLP([hidden, imprint.Auto]))
    graph.connect(source["out"], encoder["in"])
    graph.connect(encoder["out"], head["in"])
    head.objectives.ce(target=imprint.Targets.batch_key("y"))
    return graph


def batches(train: Split, size: int, generator: torch.Generator) -> list[dict[str, Tensor]]:
    """Rows of like length together, in random order."""
    x, y, length = train
    runs = torch.randperm(len(y), generator=generator).split(size * 8)
    rows = [part for run in runs for part in run[length[run].argsort()].split(size)]
    order = torch.randperm(len(rows), generator=generator).tolist()
    return [{"x": x[rows[i]], "y": y[rows[i]], "length": length[rows[i]]} for i in order]


def last(manager: Any, split: Split, module: str) -> Tensor:
    """What a module holds at the end of each row."""
    x, _, length = split
    parts = [
        manager.predict({"x": x[i], "length": length[i]}, keep="last")[module][:, -1]
        for i in torch.arange(len(x)).split(300)
    ]
    return torch.cat(parts)


def ridge(manager: Any, train: Split, test: Split, classes: int, strength: float = 1.0) -> float:
    """Accuracy of ridge regression on the encoder's last states."""
    h, t = (torch.cat([v, torch.ones(len(v), 1)], 1) for v in (last(manager, s, "encoder") for s in (train, test)))
    onehot = torch.nn.functional.one_hot(train[1], classes).to(h)
    weights = torch.linalg.solve(h.T @ h + strength * torch.eye(h.shape[1]), h.T @ onehot)
    return float(((t @ weights).argmax(1) == test[1]).float().mean())


def measure(rule: str, train: Split, test: Split, classes: int, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(seed)
    made, credit, update = RULES[rule]
    graph = build(args.hidden)
    manager = imprint.attach(
        graph, made, credit=credit, update=update, num_classes=classes, grad_clip=1.0,
        optimizer=lambda p: torch.optim.Adam(p, args.lr),
    )  # fmt: skip
    generator, start = torch.Generator().manual_seed(seed), time.perf_counter()
    for epoch in range(args.epochs):
        for batch in tqdm(
            batches(train, args.batch, generator), f"{rule} {seed} {epoch + 1}/{args.epochs}", leave=False
        ):
            manager.step(batch, keep="last")
    seconds = time.perf_counter() - start
    accuracy = float((last(manager, test, "head").argmax(1) == test[1]).float().mean())
    row = {"rule": rule, "seed": seed, "accuracy": accuracy, "seconds": seconds}
    return row | ({"ridge": ridge(manager, train, test, classes)} if rule == "frozen" else {})


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    train, test, classes = load(args.data)
    rows = [measure(rule, train, test, classes, seed, args) for rule in args.rules for seed in range(args.seeds)]
    print("| rule | mean accuracy | seeds | seconds a run |\n|---|---|---|---|")
    for rule in args.rules:
        mine = [r for r in rows if r["rule"] == rule]
        each = ", ".join(f"{100 * r['accuracy']:.1f}" for r in mine)
        mean = sum(r["accuracy"] for r in mine) / len(mine)
        print(f"| {rule} | {100 * mean:.1f} % | {each} | {sum(r['seconds'] for r in mine) / len(mine):.0f} |")
        if rule == "frozen":
            print(f"| ridge on its states | {100 * sum(r['ridge'] for r in mine) / len(mine):.1f} % | | |")
    if args.out:
        options = {k: str(v) for k, v in vars(args).items() if k not in ("out", "data")}
        args.out.write_text(json.dumps({"machine": machine(), "options": options, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
