"""Predictive coding: two layers that learn only to predict what comes next from below, and a task path beside them.

Each layer is a GRU with a predictor; the edge between the two is open, so the GRU learns from the predictor's error.
The task path, a GRU and a head, reads the layers' states through edges that stop gradients: it never steers them.

Prints what the layers learned, then, on the digits: ``demo_predictive_coding  digits  96.67%  97.22%`` and the seconds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

import imprint
from imprint import Auto, GradientWatcher, InPort, InPortGroup, Module, Ports, Source, Targets
from imprint.protos import MLP, GRUStack

from common import Result, parse, report, sequences, train_and_test

CONFIG = {
    "hidden": 128,
    "confine_pc_gradients": True,  # each layer learns from its own error alone; else also from the one above
    "log_gradients": False,  # print how large gradients are, once an epoch
}


def build(train: imprint.SequenceDataset) -> imprint.Graph:
    graph, hidden, confine = imprint.Graph(), CONFIG["hidden"], bool(CONFIG["confine_pc_gradients"])
    below: Module = Source("x")
    share = InPort(hidden // 2)
    streams = Ports(in_=InPortGroup(low=share, high=share, layout="disjoint"))
    aux, head = Module("aux", GRUStack(hidden), streams), Module("head", MLP([hidden, Auto]))
    for name in ("low", "high"):
        layer, predictor = Module(name, GRUStack(hidden)), Module(f"{name}_predictor", MLP([hidden, Auto]))
        graph.connect(below["out"], layer["in"], stop_grad=confine)
        graph.connect(layer["out"], predictor["in"], stop_grad=False)
        ahead = Targets.shifted_input(below, 1) if isinstance(below, Source) else Targets.port_output(below, "out", 1)
        predictor.objectives.mse(target=ahead)
        graph.connect(layer["out"], aux[f"in.{name}"]).set_stop_grad(True)
        below = layer
    graph.connect(aux["out"], head["in"])
    imprint.prepare_seq2static_classification(graph, train)
    return graph


def main(argv: Sequence[str] | None = None) -> Result:
    args = parse(argv, epochs=12, graph=True)
    data = sequences(args)
    start = time.perf_counter()
    graph = build(data[0])
    watcher = GradientWatcher(graph) if CONFIG["log_gradients"] and not args.compiled else None
    found = train_and_test(graph, "local", data, args, grad_monitor=watcher)
    seconds = time.perf_counter() - start
    with torch.no_grad():
        graph.eval().rollout(next(data[1].iter_batches(shuffle=False, batch_size=len(data[1]))))
    for name, loss in graph.losses().items():
        print(f"{name} on the test data: {loss.item():.4f}")
    torch.manual_seed(args.seed)
    backprop = train_and_test(build(data[0]), "backprop", data, args)
    return report(Result("demo_predictive_coding", args.data.stem, found, backprop, seconds))


if __name__ == "__main__":
    main()
