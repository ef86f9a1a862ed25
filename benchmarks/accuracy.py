"""How accurate do local rules get, beside backprop of the same net with the same data, optimizer and epochs?

    python benchmarks/accuracy.py --data ../shared/data/fashion_mnist.h5 --net mlp --epochs 5

    python benchmarks/accuracy.py --data examples/data/digits.h5 --net mlp --width 256 --epochs 30 --batch 32
    python benchmarks/accuracy.py --data examples/data/digits.h5 --net vgg --epochs 8 --batch 32

One process, one table row a rule: test accuracy of the output and of the units' own scores after the last epoch,
seconds a step loop took. Nothing is tuned on the test set: options are the rules' defaults.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import torch
from measure import machine
from nets import VGG8b
from torch import nn
from tqdm import tqdm

import imprint
from imprint.data import Data, load_h5

RULES = ("backprop", "local_ce", "predsim", "sigprop")


def mlp(data: Data, width: int = 1024, depth: int = 3) -> nn.Module:
    """`depth` layers of `width`, each with BatchNorm and ReLU."""
    sizes = [data.x_train[0].numel()] + [width] * depth
    layers: list[nn.Module] = [nn.Flatten()]
    for i, o in itertools.pairwise(sizes):
        layers += [nn.Linear(i, o), nn.BatchNorm1d(o), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], data.num_classes))


def vgg(data: Data) -> nn.Module:
    """VGG8b at an eighth of its width, pooled three times."""
    channels, size, _ = data.x_train[0].shape
    return VGG8b(0.125, channels, size, data.num_classes)


NETS = {"mlp": (mlp, None), "vgg": (vgg, r"features\.\d+|hidden")}


def train(data: Data, net: str, rule: str, epochs: int, batch: int, seed: int, sizes: dict[str, int]) -> dict[str, Any]:
    torch.manual_seed(seed)
    make, layers = NETS[net]
    manager = imprint.attach(make(data, **sizes), rule, num_classes=data.num_classes, layers=layers)
    curve = []
    start = time.perf_counter()
    for epoch in range(epochs):
        order = torch.randperm(len(data.x_train))
        steps = tqdm(order.split(batch), desc=f"{net} {rule} {epoch + 1}/{epochs}", leave=False, mininterval=2)
        for rows in steps:
            manager.step(data.x_train[rows], data.y_train[rows])
        curve.append(accuracy(manager, data, "output"))
    seconds = time.perf_counter() - start
    local = accuracy(manager, data, "local") if rule != "backprop" else None
    return {
        "data": data.name, "net": net, "rule": rule, "epochs": epochs, "batch": batch, "seed": seed, **sizes,
        "accuracy": curve[-1], "local": local, "curve": curve, "seconds": seconds,
    }  # fmt: skip


def accuracy(manager: imprint.Manager, data: Data, by: str) -> float:
    pairs = zip(data.x_test.split(500), data.y_test.split(500), strict=True)
    hits = sum(int((manager.predict(x, by=by).argmax(1) == y).sum()) for x, y in pairs)
    return hits / len(data.y_test)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--net", choices=NETS, default="mlp")
    parser.add_argument("--width", type=int, help="of the mlp, 1024 by default; 256 is enough for the digits")
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=sorted(imprint.rules.registry))
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="of torch; one measures steadiest")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    if args.width and args.net != "mlp":
        parser.error("--width is of --net mlp")
    torch.set_num_threads(args.threads)
    data = load_h5(args.data).normalized()
    if args.net == "vgg" and data.x_train.shape[2] % 16:
        pad = 16 - data.x_train.shape[2] % 16
        grow = lambda x: nn.functional.pad(x, (pad // 2, pad - pad // 2) * 2)
        data = Data(grow(data.x_train), data.y_train, grow(data.x_test), data.y_test, data.num_classes, data.name)
    rows = []
    sizes = {"width": args.width} if args.width else {}
    print("| data | net | rule | epochs | test accuracy | units' own scores | seconds |\n|---|---|---|---|---|---|---|")
    for rule in args.rules:
        r = train(data, args.net, rule, args.epochs, args.batch, args.seed, sizes)
        rows.append(r)
        local = "–" if r["local"] is None else f"{r['local']:.2%}"
        cells = (r["data"], r["net"], rule, args.epochs, f"{r['accuracy']:.2%}", local, f"{r['seconds']:.0f}")
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    if args.out:
        args.out.write_text(json.dumps({"machine": machine(), "runs": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
