"""What does the graph engine cost, beside the same net written by hand in torch?

    python benchmarks/graph_rollout.py [--batch 32] [--ticks 200] [--hidden 128] [--out FILE.json]

A GRU behind its projection and a readout behind its own. By hand: a loop of ``nn.Linear`` and ``nn.GRUCell``, and
``nn.GRU`` over the whole sequence. ``forward`` is without gradients; ``training`` with all edges open, one loss, one
backward pass, Adam; ``local`` with a head on the encoder and an update of every unit at every tick. That the numbers
agree is checked first. Floor of a tick: the products of the four matrices, once forward, thrice with their gradients.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measure import machine, times
from torch import Tensor, nn

import imprint

CLASSES = 10


class ByHand(nn.Module):
    """The net, tick by tick or (`whole`) with ``nn.GRU``."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(features, features), nn.Linear(hidden, hidden)
        self.cell, self.gru = nn.GRUCell(features, hidden), nn.GRU(features, hidden)
        self.head, self.local = nn.Linear(hidden, CLASSES), nn.Linear(hidden, CLASSES)
        self.whole = False

    def forward(self, x: Tensor) -> Tensor:
        if self.whole:
            out, _ = self.gru(self.enter(x.transpose(0, 1)))
            return self.head(self.leave(out)).transpose(0, 1)
        h, outs = x.new_zeros(len(x), self.cell.hidden_size), []
        for t in range(x.shape[1]):
            h = self.cell(self.enter(x[:, t]), h)
            outs.append(self.head(self.leave(h)))
        return torch.stack(outs, 1)


def graph_like(hand: ByHand, batch: dict[str, Tensor]) -> imprint.Graph:
    """The same net with the same weights as a graph."""
    hidden = hand.cell.hidden_size
    graph, source = imprint.Graph(), imprint.Source("x")
    encoder = imprint.Module("encoder", imprint.protos.GRUStack(hidden=hidden))
    head = imprint.Module("head", imprint.protos.MLP([hidden, imprint.Auto]))
    enter, leave = graph.connect(source["out"], encoder["in"]), graph.connect(encoder["out"], head["in"])
    head.objectives.ce(target=imprint.Targets.batch_key("y"), num_classes=CLASSES)
    graph.bind(batch)
    pairs = [(enter.proj, hand.enter), (leave.proj, hand.leave), (encoder.proto.cells[0], hand.cell)]
    for ours, theirs in [*pairs, (next(m for m in head.proto.modules() if isinstance(m, nn.Linear)), hand.head)]:
        ours.load_state_dict(theirs.state_dict(), strict=False)
    return graph


def adam(params: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(params, 1e-3, fused=True)


def forward(run: Callable[[], Any]) -> Callable[[], Any]:
    def step() -> None:
        with torch.no_grad():
            run()

    return step


def training_by_hand(hand: ByHand, batch: dict[str, Tensor]) -> Callable[[], Any]:
    optimizer = adam(hand.parameters())

    def step() -> None:
        out = hand(batch["x"])
        F.cross_entropy(out.flatten(0, 1), batch["y"].repeat_interleave(out.shape[1])).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def training(graph: imprint.Graph, batch: dict[str, Tensor]) -> Callable[[], Any]:
    optimizer = adam(graph.open_edges().parameters())

    def step() -> None:
        graph.rollout(batch, keep="last")
        graph.loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def local_by_hand(hand: ByHand, batch: dict[str, Tensor]) -> Callable[[], Any]:
    """Two units, each with its own loss and optimizer, at every tick."""
    first = adam([*hand.enter.parameters(), *hand.cell.parameters(), *hand.local.parameters()])
    second = adam([*hand.leave.parameters(), *hand.head.parameters()])

    def step() -> None:
        x, y = batch["x"], batch["y"]
        h = x.new_zeros(len(x), hand.cell.hidden_size)
        for t in range(x.shape[1]):
            h = hand.cell(hand.enter(x[:, t]), h.detach())
            for optimizer, loss in (
                (first, F.cross_entropy(hand.local(h), y)),
                (second, F.cross_entropy(hand.head(hand.leave(h.detach())), y)),
            ):
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()

    return step


def local(graph: imprint.Graph, batch: dict[str, Tensor], update: Any) -> Callable[[], Any]:
    credit = imprint.credit.Instant()
    manager = imprint.attach(graph, "local_ce", credit=credit, update=update, num_classes=CLASSES, optimizer=adam)
    return lambda: manager.step(batch, keep="last")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("batch", 32), ("ticks", 200), ("features", 64), ("hidden", 128), ("repeats", 15)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    batch = {"x": torch.randn(args.batch, args.ticks, args.features), "y": torch.randint(CLASSES, (args.batch,))}

    def fresh(whole: bool = False) -> tuple[ByHand, imprint.Graph]:
        torch.manual_seed(0)
        hand = ByHand(args.features, args.hidden)
        graph = graph_like(hand, batch)
        hand.whole = whole
        return hand, graph

    (hand, graph), (whole, _) = fresh(), fresh(True)
    with torch.no_grad():
        assert torch.allclose(hand(batch["x"]), graph.rollout(batch)["head"], atol=1e-5)
    rows = {}
    cases: dict[str, Callable[[], Any]] = {
        "forward, loop by hand": forward(lambda: hand(batch["x"])),
        "forward, nn.GRU by hand": forward(lambda: whole(batch["x"])),
        "forward, graph": forward(lambda: graph.rollout(batch, keep="last")),
        "training, loop by hand": training_by_hand(fresh()[0], batch),
        "training, nn.GRU by hand": training_by_hand(fresh(True)[0], batch),
        "training, graph": training(fresh()[1], batch),
        "local, loop by hand": local_by_hand(fresh()[0], batch),
        "local, graph, update every tick": local(fresh()[1], batch, "tick"),
        "local, graph, update every 8 ticks": local(fresh()[1], batch, 8),
    }
    measured = times(cases, args.repeats)
    print("| case | ticks per second | time, loop by hand = 1 |\n|---|---|---|")
    for name, seconds in measured.items():
        base = measured[f"{name.split(',')[0]}, loop by hand"]
        rows[name] = {"ticks_per_second": args.ticks / seconds, "ratio": seconds / base}
        print(f"| {name} | {args.ticks / seconds:.0f} | {seconds / base:.2f} |")
    if args.out:
        options = {k: v for k, v in vars(args).items() if k != "out"}
        args.out.write_text(json.dumps({"machine": machine(), "options": options, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
