"""Inference without a classifier: which class's context does a layer's output resemble most?

Signal propagation sends one context row a class through the same weights as the data. Once trained, every layer can
classify by itself: its output is compared with the outputs for the ten contexts. No layer has ever seen a logit.

Prints a line a layer, then, on the digits: ``nearest_context  digits  98.89%  98.61%`` and the seconds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from torch import nn

import imprint

from common import Result, accuracy, backprop, fit, load, parse, report


def main(argv: Sequence[str] | None = None) -> Result:
    args = parse(argv, epochs=20)
    data = load(args)

    def make() -> nn.Module:
        block = lambda i, o, s: nn.Sequential(nn.Conv2d(i, o, 3, s, 1), nn.BatchNorm2d(o), nn.ReLU())
        body = nn.Sequential(block(data.shape[0], 32, 1), block(32, 64, 2), block(64, 128, 2))
        return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, data.num_classes))

    start = time.perf_counter()
    manager = imprint.attach(make(), "sigprop", num_classes=data.num_classes)
    fit(manager, data, args)
    seconds = time.perf_counter() - start
    for name in list(manager.units)[:-1]:
        near = accuracy(lambda x, name=name: manager.predict(x, by="local", layers=[name]), data)  # type: ignore[misc]
        print(f"layer {name}: nearest context {near:.2%}")
    found = accuracy(lambda x: manager.predict(x, by="local"), data)
    return report(Result("nearest_context", data.name, found, backprop(make, data, args), seconds))


if __name__ == "__main__":
    main()
