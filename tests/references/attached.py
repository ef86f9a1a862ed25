"""A rule trained on a small chain, and all that a slow reference needs to start from the same place."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import imprint

from references import descent, nets

SAME, OTHER = 1e-10, 1e-6
OPTIMIZERS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "sgd": (functools.partial(torch.optim.SGD, lr=0.05), descent.SGD),
    "adam": (functools.partial(torch.optim.Adam, lr=0.02), descent.Adam),
}
SETUPS = [(net, norm, opt) for net in ("dense", "conv") for norm in (False, True) for opt in OPTIMIZERS]


class Run:
    """Three units and a classifier, trained for five batches.

    Attributes:
        start: the model before.
        model: the model after.
        parts, signal: copies of the objectives and of the context stream before.
    """

    def __init__(
        self, rule: Any, net: str, norm: bool, optimizer: str, act: type[nn.Module] = nn.Tanh, **options: Any
    ) -> None:  # fmt: skip
        self.start, self.batches = nets.chain(net, norm, act), nets.batches(net)
        made, self.descent = OPTIMIZERS.get(optimizer, (None, descent.SGD))  # the rule's own
        self.plain, self.model = optimizer == "sgd", copy.deepcopy(self.start)
        options = {"layers": ("0", "1", "2"), "optimizer": made, "num_classes": nets.CLASSES} | options
        self.manager = imprint.attach(self.model, rule, **options)
        self.manager.bind(*self.batches[0])
        self.parts = [copy.deepcopy(u.unit.objective) for u in self.manager.units.values() if not u.open]
        self.signal = copy.deepcopy(self.manager.context.stream) if self.manager.context else None
        torch.manual_seed(7)
        self.outputs = [self.manager.step(x, y) for x, y in self.batches]

    @property
    def objectives(self) -> list[nn.Module]:
        """Of all units, after training."""
        return [u.unit.objective for u in self.manager.units.values() if not u.open]

    def reference(self, train: Callable[..., None], *extra: Any, **options: Any) -> nn.Sequential:
        """The same chain trained by hand; `extra` stands between units and classifier."""
        units, classifier = nets.split(self.start)
        torch.manual_seed(7)
        train(units, *extra, classifier, self.batches, self.descent, **options)
        return nets.join(units, classifier)

    def equals(self, other: nn.Module) -> None:
        """Every weight and every running statistic; and something was learned."""
        assert nets.furthest(self.model, other) < SAME
        assert nets.furthest(self.model, self.start) > 1e-3

    def differs(self, other: Callable[..., nn.Module], *controls: str, **options: Any) -> None:
        """Controls are looked at under plain gradient descent: Adam sees no scale."""
        for given in [{"control": c} for c in controls] + ([options] if options else []) if self.plain else []:
            assert nets.furthest(self.model, other(**given)) > OTHER, given
