"""Several rates, learning included, as a plan of captured ticks: two encoders, an aggregator and a readout.

One rollout is recorded and compiled; then the same weights learn twice from the same batches, on the graph's own engine
and by the plan, and a table says how fast each was and how far apart they ended. ``--codegen eager`` needs no compiler.

Prints the table, then, on the digits: ``demo_compiled_plan  digits  91.94%  87.78%`` and the seconds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

import imprint
from imprint import Auto, InPort, InPortGroup, Module, Ports, Rate, Source, Targets
from imprint.protos import MLP, Aggregator, GRUStack

from common import Result, parser, report, sequences

HIDDEN, ROUNDS = 64, 8


def build(train: imprint.SequenceDataset, rule: str, seed: int) -> imprint.Graph:
    torch.manual_seed(seed)
    graph, src = imprint.Graph(), Source("x")
    fast = Module("enc_hi", GRUStack(HIDDEN), schedule=Rate(inner_steps=1, emit_every=1))
    slow = Module("enc_lo", GRUStack(HIDDEN), schedule=Rate(inner_steps=2, emit_every=2))
    ports = Ports(in_=InPortGroup(deep=InPort(HIDDEN), wide=InPort(HIDDEN), layout="disjoint"))
    gathered = Module("agg", Aggregator("concat→linear", out_dim=HIDDEN), ports, Rate(emit_every=4))
    readout = Module("readout", MLP([HIDDEN, Auto]), schedule=Rate.follow("agg"))
    pairs = [(src, fast["in"]), (src, slow["in"]), (fast, gathered["in.deep"]), (slow, gathered["in.wide"])]
    for source, port in [*pairs, (gathered, readout["in"])]:
        graph.connect(source["out"], port)
    readout.objectives.ce(target=Targets.batch_key("y"), num_classes=train.num_classes)
    manager = imprint.attach(graph, rule, num_classes=train.num_classes, optimizer=lambda p: torch.optim.Adam(p, 3e-3))
    manager.bind(next(train.iter_batches()))
    return graph


def learn(run: Any, batches: list[dict[str, torch.Tensor]]) -> float:
    """Ticks a second; the first batch, at which blocks are captured and compiled, is not counted."""
    run.rollout(batches[0], keep="last")
    start = time.perf_counter()
    _ = [run.rollout(batch, keep="last") for batch in batches[1:]]
    return sum(batch["x"].shape[1] for batch in batches[1:]) / (time.perf_counter() - start)


def main(argv: Sequence[str] | None = None) -> Result:
    options = parser()
    options.add_argument("--backend", choices=["inductor", "cuda_graph", "eager"], default="inductor")
    options.add_argument("--codegen", choices=["inductor", "eager"], help="eager: not compiled; so is --quick")
    args = options.parse_args(argv)
    args.epochs = args.epochs or (ROUNDS // 2 if args.quick else ROUNDS)
    train, test = sequences(args)
    shown = next(test.iter_batches(shuffle=False, batch_size=len(test)))
    accuracy = imprint.last_step_accuracy("readout")
    eager, graph = (build(train, "local", args.seed) for _ in range(2))
    batches = [batch for _ in range(args.epochs) for batch in train.iter_batches() if len(batch["x"]) == 32]
    with imprint.record(graph) as recording, imprint.no_learning():
        graph.rollout(batches[0])
    plan = recording.compile(args.backend, codegen=args.codegen or ("eager" if args.quick else None))
    start = time.perf_counter()
    speeds = learn(eager, batches), learn(plan, batches)
    seconds = time.perf_counter() - start
    learn(backprop := build(train, "backprop", args.seed), batches)
    scores = [accuracy(each.manager.predict(shown), shown) for each in (eager, graph, backprop)]
    print(f"{'':<12} {'ticks/s':>8} {'accuracy':>9}")
    for name, speed, score in zip(("eager", args.backend), speeds, scores, strict=False):
        print(f"{name:<12} {speed:>8.0f} {score:>9.2%}")
    apart = max((p - q).abs().max().item() for p, q in zip(eager.parameters(), graph.parameters(), strict=True))
    print(f"largest difference of a weight: {apart:.1e}")
    return report(Result("demo_compiled_plan", args.data.stem, scores[1], scores[2], seconds))


if __name__ == "__main__":
    main()
