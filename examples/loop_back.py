"""LoopBack: the network's own error is the signal of a second forward pass, in which every layer learns.

Pass 1 predicts; softmax minus one-hot comes back to the front as the context of pass 2. Layers pull together samples
whose errors are alike: error forward-propagation, with no gradient from one layer to the next.

Prints, on the digits: ``loop_back  digits  98.06%  98.06%`` and the seconds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from ex2_input_target_max_rand import build_optimizer
from torch import Tensor, nn
from tqdm import tqdm

from imprint import loss, models, propagators, signals

from common import Result, accuracy, backprop, load, parse, report

WIDTH = 512


def layers(inputs: int, classes: int) -> list[nn.Module]:
    dense = lambda i: nn.Sequential(nn.Linear(i, WIDTH), nn.LayerNorm(WIDTH), nn.ReLU())
    return [nn.Sequential(nn.Flatten(), dense(inputs)), dense(WIDTH), nn.Linear(WIDTH, classes)]


def build(inputs: int, classes: int) -> nn.Module:
    front, middle, top = layers(inputs, classes)
    local = loss.v9_input_target_max_all(similarity="cosine", temperature=0.1, positives="labels")
    target = nn.Sequential(nn.Linear(classes, WIDTH), nn.LayerNorm(WIDTH), nn.ReLU())
    generator = signals.ProjectionContextInput(target, front, (classes,), (WIDTH,))
    signal = propagators.signals.Loss(generator, build_optimizer(generator), local)
    chain = nn.Sequential(propagators.Loss(middle, build_optimizer(middle), local), propagators.Identity(top))

    def error(out: Tensor, y: Tensor) -> Tensor:
        return out.softmax(1) - F.one_hot(y, classes)

    return models.LoopBack(chain, signal, error)


def main(argv: Sequence[str] | None = None) -> Result:
    args = parse(argv, epochs=15)
    data = load(args)
    inputs = data.x_train[0].numel()
    start = time.perf_counter()
    model = build(inputs, data.num_classes)
    optimizer = torch.optim.Adam(model.parameters(), 5e-4)
    for _ in tqdm(range(args.epochs), desc="epochs", leave=False):
        model.train()
        for rows in torch.randperm(len(data.x_train)).split(64):
            x, y = data.x_train[rows], data.y_train[rows]
            task = F.cross_entropy(model(x, y), y)
            optimizer.zero_grad()
            task.backward()
            optimizer.step()
    seconds = time.perf_counter() - start
    model.eval()
    found = accuracy(lambda x: model(x, None), data)
    make = lambda: nn.Sequential(*layers(inputs, data.num_classes))
    return report(Result("loop_back", data.name, found, backprop(make, data, args), seconds))


if __name__ == "__main__":
    main()
