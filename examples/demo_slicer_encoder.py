"""Slices: a fast network reads two ticks, emits and forgets; a slow one runs once a slice and gathers the context.

The slicer's state starts anew with each slice. The context network rests between slices and follows the slicer; the
head follows both. Every module learns when it emits, from a local loss, without gradient from the next.

Prints the schedule, then, on the digits: ``demo_slicer_encoder  digits  96.94%  95.83%`` and the seconds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

import imprint
from imprint import Auto, Module, Rate, Source
from imprint.protos import MLP, GRUStack

from common import Result, parse, report, sequences, train_and_test

HIDDEN, SLICE = 128, 2


def build(train: imprint.SequenceDataset) -> imprint.Graph:
    graph, src = imprint.Graph(), Source("x")
    slicer = Module("slicer", GRUStack(HIDDEN, reset_every=SLICE), schedule=Rate(emit_every=SLICE))
    context = Module("context", GRUStack(HIDDEN), schedule=Rate.follow("slicer", step_when_emits=True))
    head = Module("head", MLP([HIDDEN, Auto]), schedule=Rate.follow("context"))
    graph.connect(src["out"], slicer["in"])
    graph.connect(slicer["out"], context["in"])
    graph.connect(context["out"], head["in"])
    imprint.prepare_seq2static_classification(graph, train)
    return graph


def main(argv: Sequence[str] | None = None) -> Result:
    args = parse(argv, epochs=12, graph=True)
    data = sequences(args)
    start = time.perf_counter()
    graph = build(data[0])
    found = train_and_test(graph, "local", data, args)
    seconds = time.perf_counter() - start
    with imprint.record(graph.eval()) as recording:
        graph.rollout(next(data[1].iter_batches()))
    print(recording)
    torch.manual_seed(args.seed)
    backprop = train_and_test(build(data[0]), "backprop", data, args)
    return report(Result("demo_slicer_encoder", args.data.stem, found, backprop, seconds))


if __name__ == "__main__":
    main()
