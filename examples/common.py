"""What the examples share: their options, their data, and the line each of them ends with."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

import imprint
from imprint.data import Data, SequenceDataset, load_demo_dataset, load_h5
from imprint.errors import DataError

DIGITS = Path(__file__).resolve().parent / "data" / "digits.h5"


@dataclass(frozen=True)
class Result:
    """What an example's ``main`` returns; accuracies lie between 0 and 1, `backprop` is that of the same net."""

    example: str
    data: str
    accuracy: float
    backprop: float | None
    seconds: float


def parser(epochs: int | None = None, graph: bool = False) -> argparse.ArgumentParser:
    """The options of every example, and of those with a graph; without `epochs` each example's own number holds."""
    options = argparse.ArgumentParser()
    options.add_argument("--data", type=Path, default=DIGITS, metavar="FILE.h5", help="default: handwritten digits")
    options.add_argument("--epochs", type=int, default=epochs, help="rounds through the training data")
    options.add_argument("--seed", type=int, default=0, help="of the weights and of the order of samples")
    options.add_argument("--quick", action="store_true", help="a quarter of the epochs")
    if graph:
        options.add_argument(
            "--compiled", nargs="?", const="inductor", choices=["inductor", "cuda_graph"], metavar="BACKEND",
            help="learn by a plan, on captured ticks; BACKEND: inductor (a C++ compiler) or cuda_graph",
        )  # fmt: skip
    return options


def parse(argv: Sequence[str] | None = None, epochs: int = 10, graph: bool = False) -> argparse.Namespace:
    """Read the options and seed torch; ``args.epochs`` is a quarter of `epochs` with ``--quick``."""
    args = parser(graph=graph).parse_args(argv)
    if args.epochs is None:
        args.epochs = max(1, epochs // 4) if args.quick else epochs
    torch.manual_seed(args.seed)
    return args


def load(args: argparse.Namespace) -> Data:
    """The data of ``--data``, standardised, under the file's name."""
    return replace(load_h5(args.data).normalized(), name=args.data.stem)


def row(example: str, data: str, accuracy: str, backprop: str, seconds: str) -> str:
    """One line of the table."""
    return f"{example:<28} {data:<16} {accuracy:>9} {backprop:>9} {seconds:>8}"


def describe(result: Result) -> str:
    """The result's line of the table."""
    backprop = "-" if result.backprop is None else f"{result.backprop:.2%}"
    return row(result.example, result.data, f"{result.accuracy:.2%}", backprop, f"{result.seconds:.1f}")


def report(result: Result) -> Result:
    """Print the result's line, and return the result."""
    print(describe(result))
    return result


def fit(manager: imprint.Manager, data: Data, args: argparse.Namespace, batch: int = 64) -> None:
    """Let an attached model learn for ``args.epochs`` rounds through the training data."""
    for _ in tqdm(range(args.epochs), desc="epochs", leave=False):
        for rows in torch.randperm(len(data.x_train)).split(batch):
            manager.step(data.x_train[rows], data.y_train[rows])


def accuracy(predict: Callable[[torch.Tensor], torch.Tensor], data: Data, batch: int = 500) -> float:
    """Share of test samples for which `predict` scores the true class highest."""
    pairs = zip(data.x_test.split(batch), data.y_test.split(batch), strict=True)
    return sum(int((predict(x).argmax(1) == y).sum()) for x, y in pairs) / len(data.y_test)


def backprop(
    make: Callable[[], nn.Module], data: Data, args: argparse.Namespace, batch: int = 64,
    optimizer: Callable[[list[torch.Tensor]], torch.optim.Optimizer] | None = None,
) -> float:  # fmt: skip
    """Test accuracy of the same net, trained by backprop with the same optimizer, seed and epochs."""
    torch.manual_seed(args.seed)
    manager = imprint.attach(make(), "backprop", num_classes=data.num_classes, optimizer=optimizer)
    fit(manager, data, args, batch)
    return accuracy(manager.predict, data)


def sequences(args: argparse.Namespace) -> tuple[SequenceDataset, SequenceDataset]:
    """Training and test sequences of ``--data``, standardised; of images the rows, from the top to the bottom."""
    train, test = (load_demo_dataset(args.data, split, batch_size=32, seed=args.seed) for split in ("train", "test"))
    return train, test


def classes(data: SequenceDataset) -> int:
    """How many there are.

    Raises:
        DataError: the sequences have no labels.
    """
    if data.num_classes is None:
        raise DataError(f"dataset {data.name!r}", "its sequences have no labels", fix="a file with train/y and test/y")
    return data.num_classes


class Net(nn.Module):
    """A cell, one step of a recurrence, and what reads it out."""

    cell: Any

    def __init__(self, cell: nn.Module, readout: nn.Module) -> None:
        super().__init__()
        self.cell, self.readout = cell, readout


def ticks(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A batch with time in front: inputs ``[T, B, D]``, labels, the ticks that rows have, and the last of each."""
    xs = batch["x"].transpose(0, 1)
    at, ends = torch.arange(len(xs))[:, None], batch.get("length", torch.full((xs.shape[1],), len(xs)))
    return xs, batch["y"].expand(xs.shape[:2]), at < ends, at == ends - 1


def train_and_test_ticks(
    net: nn.Module, run: Callable[[torch.Tensor], torch.Tensor], data: tuple[SequenceDataset, SequenceDataset],
    args: argparse.Namespace, lr: float, learn: Callable[..., Any] | None = None,
) -> float:  # fmt: skip
    """Accuracy at the last ticks of the test data after ``args.epochs`` rounds, with a step size that falls to zero.

    `run` reads out ``[T, B, classes]`` of inputs ``[T, B, D]``; ``learn(xs, ys, mask=mask, due=due)`` leaves gradients
    in `net`, see :func:`ticks`; without it they are those of backprop through `run`.
    """
    optimizer = torch.optim.Adam(net.parameters(), lr)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    data[0].set_epoch(0)  # the same order of samples for all that are compared
    for _ in tqdm(range(args.epochs), desc="epochs", leave=False):
        for batch in data[0].iter_batches():
            xs, ys, mask, due = ticks(batch)
            if learn is None:
                nn.functional.cross_entropy(run(xs)[due], ys[due]).backward()
            else:
                learn(xs, ys, mask=mask, due=due)
            optimizer.step()
            optimizer.zero_grad()
        falling.step()
    right = 0
    with torch.no_grad():
        for xs, ys, _, due in map(ticks, data[1].iter_batches(shuffle=False, batch_size=500)):
            right += int((run(xs)[due].argmax(1) == ys[due]).sum())
    return right / len(data[1])


def planned(graph: imprint.Graph, batch: dict[str, torch.Tensor], backend: str) -> imprint.runtime.Plan:
    """A plan of a graph that learns: one rollout is recorded, in eval mode, so that nothing moves.

    What cannot be captured runs on the graph's own engine; :func:`train_and_test` prints why.
    """
    graph.bind(batch).eval()
    with imprint.record(graph) as recording, torch.no_grad():
        graph.rollout(batch)
    graph.train().reset()
    return recording.compile(backend=backend, fallback=True)


def train_and_test(
    graph: imprint.Graph, rule: str, data: tuple[SequenceDataset, SequenceDataset], args: argparse.Namespace,
    lr: float = 3e-3, head: str = "head", grad_monitor: Any = None, **options: Any,
) -> float:  # fmt: skip
    """Accuracy on the test data after ``args.epochs`` rounds under `rule`, with a step size that falls to zero."""
    train, test = data
    falling = lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    adam = lambda params: torch.optim.Adam(params, lr)
    imprint.attach(graph, rule, num_classes=train.num_classes, optimizer=adam, scheduler=falling, **options)
    plan = planned(graph, next(train.iter_batches(shuffle=False)), args.compiled) if args.compiled else None
    history = imprint.train_graph(
        graph, train, epochs=args.epochs, val_dataset=test, val_every=args.epochs,
        metric_fn=imprint.last_step_accuracy(head), grad_monitor=grad_monitor, plan=plan,
    )  # fmt: skip
    if plan is not None and plan.explain().count("own engine"):
        print(*plan.backend.modules(), sep="\n")
    return history.epochs[-1].val["accuracy"]
