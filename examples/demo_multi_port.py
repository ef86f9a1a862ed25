"""Several ports: an encoder shows its deepest layer and its middle one through ports and edges of their own.

The aggregator takes them apart, sums and maps them; the edge from the deep port is a band, whose weights stay small
whatever the optimizer does.

Prints what the band looks like, then, on the digits: ``demo_multi_port  digits  96.67%  97.50%`` and the seconds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

import imprint
from imprint import Auto, InPort, InPortGroup, Module, Nodes, Ports, Source
from imprint.protos import MLP, Aggregator, GRUStack

from common import Result, parse, report, sequences, train_and_test

HIDDEN, HALF = 128, 64


def build(train: imprint.SequenceDataset) -> imprint.Graph:
    graph, src = imprint.Graph(), Source("x")
    encoder = Module("encoder", GRUStack(HIDDEN, layers=3, layernorm=train.feature_dim > 1))
    encoder.define_port("out_deep", nodes=Nodes.of(layer=2, slice=slice(0, HALF)))
    encoder.define_port("out_wide", nodes=Nodes.of(layer=1, indices=range(0, HIDDEN, 2)))
    both = InPortGroup(deep=InPort(HALF), wide=InPort(HALF), layout="disjoint")
    gathered = Module("agg", Aggregator("sum→linear", out_dim=HIDDEN), Ports(in_=both))
    head = Module("head", MLP([HIDDEN, Auto]))
    graph.connect(src["out"], encoder["in"])
    deep = graph.connect(encoder["out_deep"], gathered["in.deep"], name="deep")
    deep.constrain(mask=imprint.masks.band(bandwidth=16), max_abs=0.4)
    graph.connect(encoder["out_wide"], gathered["in.wide"])
    graph.connect(gathered["out"], head["in"])
    imprint.prepare_seq2static_classification(graph, train)
    return graph


def main(argv: Sequence[str] | None = None) -> Result:
    args = parse(argv, epochs=16, graph=True)
    data = sequences(args)
    start = time.perf_counter()
    graph = build(data[0])
    found = train_and_test(graph, "local", data, args, credit=imprint.credit.Unrolled())
    seconds = time.perf_counter() - start
    band = dict(graph.named_parameters())["edges.deep.proj.weight"]
    live = band.count_nonzero().item() / band.numel()
    print(f"band: {live:.0%} of its weights live, the largest is {band.abs().max().item():.2f}")
    torch.manual_seed(args.seed)
    backprop = train_and_test(build(data[0]), "backprop", data, args)
    return report(Result("demo_multi_port", args.data.stem, found, backprop, seconds))


if __name__ == "__main__":
    main()
