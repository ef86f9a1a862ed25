"""Several rates: an encoder that emits every tick, one that takes four inner steps and emits every second, and both
gathered every fourth tick.

The readout follows the aggregator, so it answers twice a digit: after the upper half, and after the whole.

Prints a line a half, then, on the digits: ``demo_multi_rate  digits  97.78%  96.94%`` and the seconds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

import imprint
from imprint import Auto, InPort, InPortGroup, Module, Ports, Rate, Source, Targets
from imprint.protos import MLP, Aggregator, GRUStack

from common import Result, parse, report, sequences, train_and_test

HIDDEN = 128


def build(train: imprint.SequenceDataset) -> imprint.Graph:
    graph, src = imprint.Graph(), Source("x")
    fast = Module("enc_hi", GRUStack(HIDDEN), schedule=Rate(inner_steps=1, emit_every=1))
    slow = Module("enc_lo", GRUStack(HIDDEN, layers=2), schedule=Rate(inner_steps=4, emit_every=2))
    both = InPortGroup(deep=InPort(HIDDEN), wide=InPort(HIDDEN), layout="disjoint")
    gathered = Module("agg", Aggregator("concat→linear", out_dim=HIDDEN), Ports(in_=both), Rate(emit_every=4))
    readout = Module("readout", MLP([HIDDEN, Auto]), schedule=Rate.follow("agg"))
    graph.connect(src["out"], fast["in"])
    graph.connect(src["out"], slow["in"])
    graph.connect(fast["out"], gathered["in.deep"])
    graph.connect(slow["out"], gathered["in.wide"])
    graph.connect(gathered["out"], readout["in"])
    gathered.objectives.activity_l1(on="out", weight=2e-4)
    readout.objectives.ce(target=Targets.batch_key("y"), num_classes=train.num_classes)
    return graph


def main(argv: Sequence[str] | None = None) -> Result:
    args = parse(argv, epochs=12, graph=True)
    data = sequences(args)
    start = time.perf_counter()
    graph = build(data[0])
    found = train_and_test(graph, "local", data, args, head="readout")
    seconds = time.perf_counter() - start
    batch = next(data[1].iter_batches(shuffle=False, batch_size=len(data[1])))
    answers = graph.manager.predict(batch)["readout"].argmax(2) == batch["y"][:, None]
    for answer, share in enumerate(answers.double().mean(0).tolist(), start=1):
        print(f"answer {answer} of {answers.shape[1]}: {share:.2%} right")
    torch.manual_seed(args.seed)
    backprop = train_and_test(build(data[0]), "backprop", data, args, head="readout")
    return report(Result("demo_multi_rate", args.data.stem, found, backprop, seconds))


if __name__ == "__main__":
    main()
