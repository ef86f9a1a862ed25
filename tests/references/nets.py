"""Small chains that the tests of rules train: three units and a classifier, dense or convolutional."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

CLASSES = 3
LIMIT = 20  # small enough for the maps below to be pooled


def chain(net: str, norm: bool, act: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    """Three units and a classifier, in float64."""
    bias = not norm  # in front of a norm it has no gradient but rounding, which Adam makes a step of
    if net == "dense":
        layers: list[nn.Module] = [nn.Linear(a, b, bias) for a, b in ((6, 8), (8, 9), (9, 7))]
        norms: list[nn.Module] = [nn.BatchNorm1d(d) for d in (8, 9, 7)]
        classifier = nn.Sequential(nn.Linear(7, CLASSES))
    else:
        layers = [nn.Conv2d(a, b, 3, step, 1, bias=bias) for a, b, step in ((2, 4, 1), (4, 5, 1), (5, 4, 2))]
        norms = [nn.BatchNorm2d(c) for c in (4, 5, 4)]
        classifier = nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES))
    units = [
        nn.Sequential(layer, normalise, act()) if norm else nn.Sequential(layer, act())
        for layer, normalise in zip(layers, norms, strict=True)
    ]
    return nn.Sequential(*units, classifier).double()


def batches(net: str, count: int = 5, size: int = 6, last: int = 4) -> list[tuple[Tensor, Tensor]]:
    """Batches of random samples, the last one smaller."""
    shape = (6,) if net == "dense" else (2, 4, 4)
    sizes = [size] * (count - 1) + [last]
    return [(torch.randn(n, *shape, dtype=torch.float64), torch.randint(CLASSES, (n,))) for n in sizes]


def split(model: nn.Sequential) -> tuple[list[nn.Module], nn.Module]:
    """Units and classifier of a copy."""
    *units, classifier = copy.deepcopy(model)
    return units, classifier


def join(units: list[nn.Module], classifier: nn.Module) -> nn.Sequential:
    """The counterpart of :func:`split`."""
    return nn.Sequential(*units, classifier)


def furthest(a: nn.Module | dict[str, Tensor], b: nn.Module | dict[str, Tensor]) -> float:
    """Largest difference of any weight or running statistic, as a share of the largest value in its tensor."""
    a, b = (v.state_dict() if isinstance(v, nn.Module) else v for v in (a, b))
    assert a.keys() == b.keys()
    return max(
        float((a[k].double() - b[k].double()).abs().max() / a[k].double().abs().max().clamp_min(1e-3)) for k in a
    )
