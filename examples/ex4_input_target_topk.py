"""Signal propagation wired by hand, with a monitor on every layer: resemble the k samples of most similar targets.

The chain is that of ``ex2_input_target_max_rand.py``; losses are wrapped in monitors, which print each layer's
accuracy (is the most similar context one of the sample's own class?) and loss without slowing a step.

Prints a line a layer, then, on the digits: ``ex4_input_target_topk  digits  96.11%  98.61%`` and the seconds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from ex2_input_target_max_rand import build_optimizer, layers
from torch import nn
from tqdm import tqdm

import imprint
from imprint import loss, models, monitors, propagators, signals

from common import Result, accuracy, backprop, load, parse, report


def build(shape: tuple[int, ...], classes: int) -> tuple[nn.Module, monitors.Group]:
    group = monitors.Group()
    manager = imprint.managers.Preset(
        models.Forward, propagators.Loss, propagators.signals.Loss, build_optimizer,
        monitor_cls=monitors.loss.LabelMetrics, monitor_main=group,
    )  # fmt: skip
    top_k = loss.v15_input_target_topk(k=5)
    manager.config_propagator(loss=top_k)
    front, *middle, top = layers(shape[0], classes)
    hidden = (32, *shape[1:])
    numel = imprint.utils.shape_numel(hidden)
    target = nn.Sequential(nn.Linear(classes, numel, bias=False), nn.LayerNorm(numel), nn.ReLU())
    generator = signals.ProjectionContextInput(target, front, (classes,), hidden)
    manager.set_signal(nn.Sequential(signals.LabelNumberToOnehot(classes), generator), loss=top_k)
    wrapped = [manager.add_propagator(layer) for layer in middle]
    wrapped.append(manager.add_propagator(top, propagators.Identity))
    return manager.set_model(nn.Sequential(*wrapped)), group


def main(argv: Sequence[str] | None = None) -> Result:
    args = parse(argv, epochs=15)
    data = load(args)
    start = time.perf_counter()
    model, group = build(data.shape, data.num_classes)
    optimizer = torch.optim.Adam(model.parameters(), 5e-4)
    for _ in tqdm(range(args.epochs), desc="epochs", leave=False):
        model.train()
        group.reset()
        for rows in torch.randperm(len(data.x_train)).split(64):
            x, y = data.x_train[rows], data.y_train[rows]
            task = F.cross_entropy(model(x, y), y)
            optimizer.zero_grad()
            task.backward()
            optimizer.step()
    seconds = time.perf_counter() - start
    print(group.metrics())
    model.eval()
    found = accuracy(lambda x: model(x, None), data)
    make = lambda: nn.Sequential(*layers(data.shape[0], data.num_classes))
    return report(Result("ex4_input_target_topk", data.name, found, backprop(make, data, args), seconds))


if __name__ == "__main__":
    main()
