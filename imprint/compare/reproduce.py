"""One published figure, one command: ``python -m imprint.compare.reproduce predsim --data fashion_mnist.h5``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from .._version import __version__
from ..data import Data, load_h5
from ..diagnostics.cost import machine
from ..errors import ArgumentError, DataError, ImprintError, UnknownNameError, did_you_mean
from ..managers import Manager, attach
from ..rules import registry
from ..training import train_model
from .dense import Dense
from .files import check_folder, write_run
from .images import VGG8b
from .published import PUBLISHED, Published, by_name
from .settings import Budget


class RandomBlocks(nn.Module):
    """3 × 3 convolution, ReLU, max pooling and BatchNorm, and a linear classifier.

    Reference: Zhao et al., The Cascaded Forward Algorithm for Neural Network Training (2023).
    Differs from the paper: nothing in the blocks.
    """

    def __init__(self, shape: tuple[int, ...], classes: int, channels: Sequence[int]) -> None:
        super().__init__()
        widths = [shape[0], *channels]
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(o))
            for i, o in zip(widths[:-1], channels, strict=True)
        )
        side = [n // 2 ** len(channels) for n in shape[1:]]
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(channels[-1] * side[0] * side[1], classes))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, classes]``."""
        for block in self.blocks:
            x = block(x)
        return self.classifier(x)


NETS: dict[str, Callable[..., nn.Module]] = {
    "dense": Dense,
    "vgg8b": lambda shape, classes, width: VGG8b(width, shape[0], shape[1], classes),
    "random_blocks": RandomBlocks,
}


def prepare(entry: Published, data: Data) -> Data:
    """The data, scaled as the figure asks.

    >>> x, y = torch.tensor([[0.0], [255.0]]), torch.tensor([0, 1])
    >>> prepare(by_name("drtp"), Data(x, y, x, y, num_classes=2)).x_test.tolist()
    [[0.0], [1.0]]
    """
    if entry.scale == "standard":
        return data.normalized()
    top = float(data.x_train.abs().max())
    if top == 0:
        raise DataError(repr(data.name), "the training samples are zero", expected="images", fix="check the file")
    return replace(data, x_train=data.x_train / top, x_test=data.x_test / top)


def build(entry: Published, data: Data, epochs: int) -> Manager:
    """The attached net of the figure; weights are drawn from torch's global random numbers.

    Raises:
        UnknownNameError: its rule is not registered.
    """
    if entry.rule not in registry:
        raise UnknownNameError("reproduce", f"unknown rule {entry.rule!r}", fix=did_you_mean(entry.rule, registry))
    model = NETS[entry.net](data.shape, data.num_classes, **entry.sizes)
    for weight in (m.weight for m in model.modules() if isinstance(m, nn.Linear)):
        if entry.init == "he":
            nn.init.kaiming_uniform_(weight, nonlinearity="relu")
        elif entry.init == "softhebb":
            nn.init.normal_(weight, std=25 / weight.shape[1] ** 0.5)
    optimizer: Any = None
    if entry.optimizer is not None:
        kind, values = entry.optimizer
        optimizer = lambda params: getattr(torch.optim, kind)(params, **values)
    at = sorted({max(1, round(share * epochs)) for share in entry.falls})
    falling: Any = lambda made: torch.optim.lr_scheduler.MultiStepLR(made, at, entry.factor)
    return attach(
        model, entry.rule, layers=entry.layers, num_classes=data.num_classes, optimizer=optimizer,
        scheduler=falling if entry.falls else None, **entry.options,
    )  # fmt: skip


def reproduce(
    entry: Published, data: Data, epochs: int | None = None, seed: int = 0, device: str = "cpu", progress: bool = True
) -> dict[str, Any]:
    """Train as the entry says, and return the test errors after each epoch, in per cent, as plain values.

    Args:
        entry: what to reproduce.
        data: as it was read.
        epochs: instead of the entry's.
        seed: of everything that is drawn.
        device: what it runs on.
        progress: show a bar.

    Raises:
        ArgumentError: `epochs` is no count.
        UnknownNameError: the rule is not registered.
    """
    rounds = entry.epochs if epochs is None else epochs
    Budget(rounds, device=device)
    if seed < 0:
        raise ArgumentError("reproduce", "seeds count from 0", got=seed, fix="seed=0")
    if entry.net != "dense" and len(data.shape) != 3:
        raise DataError(
            repr(data.name), f"{entry.name} has a net of convolutions", expected="pictures [C, H, W]",
            got=list(data.shape), fix=f"the file of {entry.data}",
        )  # fmt: skip
    made = prepare(entry, data)
    torch.manual_seed(seed)
    manager = build(entry, made, rounds)
    manager.to(device)
    start = perf_counter()
    history = train_model(
        manager, (made.x_train, made.y_train), (made.x_test, made.y_test), epochs=rounds, batch_size=entry.batch,
        seed=seed, by=entry.by, progress=progress,
    )  # fmt: skip
    errors = [round(100 * (1 - epoch.val["accuracy"]), 2) for epoch in history.epochs]
    told = {k: v for k, v in asdict(entry).items() if k not in ("epochs", "error")}
    return {
        **told, "published": entry.error, "band": entry.band, "epochs": rounds, "seed": seed, "rows": len(made.x_train),
        "asked": entry.epochs, "own": is_of(entry, data),
        "curve": errors, "error": errors[-1], "accuracy": history.epochs[-1].val["accuracy"],
        "seconds": round(perf_counter() - start, 1), "imprint": __version__, "machine": machine(),
    }  # fmt: skip


def verdict(result: dict[str, Any]) -> str:
    """What the last error says about the figure."""
    band, error = result["band"], result["error"]
    if result["part"] or not result.get("own", True):
        return "another data set"
    if band is None:
        return "unconfirmed"
    if band[0] <= error <= band[1]:
        return "reproduced"
    if result.get("epochs", 0) < result.get("asked", 0):
        return "fewer epochs than the figure needs"
    return "missed" if error > band[1] else "below the band"


TESTED = {
    "mnist": ((1, 28, 28), [892, 958, 974, 980, 982, 1009, 1010, 1028, 1032, 1135]),
    "fashion_mnist": ((1, 28, 28), [1000] * 10), "cifar10": ((3, 32, 32), [1000] * 10),
}  # fmt: skip
"""Of each data set the shape of a sample, and how many test samples its classes have, in order of size."""


def is_of(entry: Published, data: Data) -> bool:
    """Is this the data set that the figure is of?"""
    shape, counts = TESTED[entry.data]
    return data.shape == shape and sorted(torch.bincount(data.y_test, minlength=data.num_classes).tolist()) == counts


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0, or 2 for what is refused."""
    parser = argparse.ArgumentParser(prog="python -m imprint.compare.reproduce", description=__doc__)
    parser.add_argument("name", help=", ".join(entry.name for entry in PUBLISHED))
    parser.add_argument("--data", type=Path, required=True, metavar="FILE.h5")
    parser.add_argument("--epochs", type=int, help="instead of the figure's own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the figures there, too")
    args = parser.parse_args(argv)
    before = torch.get_num_threads()
    try:
        if args.threads < 1:
            raise ArgumentError("reproduce", "threads count from 1", got=args.threads, fix="--threads 1")
        if args.out is not None:
            check_folder(args.out.parent)
        torch.set_num_threads(args.threads)
        result = reproduce(by_name(args.name), load_h5(args.data), args.epochs, args.seed, args.device)
    except ImprintError as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        torch.set_num_threads(before)
    print("test error, %, after each epoch: " + ", ".join(f"{v:.2f}" for v in result["curve"]))
    within = "" if result["band"] is None else f", band {result['band'][0]:.2f} to {result['band'][1]:.2f}"
    told = f"{result['published']:.2f} % ({result['after']}; {result['source']}) [{result['mark']}]"
    print(
        f"{args.name}: {result['error']:.2f} % after {result['epochs']} epochs in {result['seconds']:.0f} s; "
        f"published {told}{within}: {verdict(result)}"
    )
    if args.out is not None:
        write_run(args.out, {"settings": {"name": args.name, "data": args.data.stem}, **result})
    return 0


if __name__ == "__main__":
    sys.exit(main())
