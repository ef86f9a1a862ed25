"""Two worlds: the same net once as layers of a torch model and once as modules of a graph, with the same rule.

Both start from the same weights, see the same batches and use the same optimizer. Then they are the same thing: every
weight, and the local classifiers, end equal bit by bit, because one propagator serves both.

Prints how far they differ, then, on the digits: ``two_worlds  digits  97.22%  98.06%`` and the seconds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import nn
from tqdm import tqdm

import imprint
from imprint import Module, Source, Targets
from imprint.data import Data
from imprint.protos import MLP

from common import Result, accuracy, backprop, load, parse, report

HIDDEN = 256


def chain(data: Data) -> nn.Sequential:
    size = data.x_train[0].numel()
    hidden = [layer for width in (size, HIDDEN) for layer in (nn.Linear(width, HIDDEN), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(HIDDEN, data.num_classes))


def as_graph(data: Data) -> imprint.Graph:
    """One module a layer; edges that hand values on as they are, and stop gradients."""
    graph = imprint.Graph()
    below: Module = Source("x")
    widths = [data.x_train[0].numel(), HIDDEN, HIDDEN]
    for i, (width, following) in enumerate(zip(widths, [*widths[1:], data.num_classes], strict=True)):
        last = i == len(widths) - 1
        layer = Module(f"layer{i}", MLP([width, following], act="identity" if last else "relu"))
        graph.connect(below["out"], layer["in"], projection="identity")
        below = layer
    below.objectives.ce(target=Targets.batch_key("y"), num_classes=data.num_classes)
    return graph


def main(argv: Sequence[str] | None = None) -> Result:
    args = parse(argv, epochs=15)
    data = load(args)
    adam = lambda params: torch.optim.Adam(params, 2e-3)
    model, graph = chain(data), as_graph(data)
    layers = imprint.attach(model, "local_ce", num_classes=data.num_classes, optimizer=adam)
    ticks = imprint.attach(graph, "local_ce", num_classes=data.num_classes, optimizer=adam)
    sequence = lambda x: x.flatten(1)[:, None]  # one tick long
    ticks.bind({"x": sequence(data.x_train[:2]), "y": data.y_train[:2]})
    pairs = [(p, q) for p, q in zip(model.parameters(), graph.parameters(), strict=True)]
    with torch.no_grad():
        for mine, its in pairs:
            its.copy_(mine)
    start = time.perf_counter()
    for _ in tqdm(range(args.epochs), desc="epochs", leave=False):
        for rows in torch.randperm(len(data.x_train)).split(64):
            x, y = data.x_train[rows], data.y_train[rows]
            layers.step(x, y)
            ticks.step({"x": sequence(x), "y": y})
    seconds = time.perf_counter() - start
    difference = max((mine - its).abs().max().item() for mine, its in pairs)
    print(f"largest difference between the weights of the two: {difference}")
    scores = accuracy(lambda x: ticks.predict({"x": sequence(x)})["layer2"][:, -1], data)
    assert scores == accuracy(layers.predict, data)
    other = backprop(lambda: chain(data), data, args, optimizer=adam)
    return report(Result("two_worlds", data.name, scores, other, seconds))


if __name__ == "__main__":
    main()
