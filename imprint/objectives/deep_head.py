"""A local classifier of several layers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..errors import ShapeError, UnknownNameError, did_you_mean
from .heads import head_loss
from .labels import Labels
from .objective import Objective, Spec, View, refuse_several_labels
from .row_norm import RowNorm, RowSequential

HEADS = ("mlp", "mlp-sr", "cnn")
HIDDEN, SIDE = 3, 2


class DeepHead(Objective):
    r"""Local head a of several layers: :math:`L = \mathrm{CE}(a(h), y)`; for values the mean square error.

    N is batch normalisation over labelled rows (:class:`RowNorm`), R the rectifier:

    - ``"mlp"``: maps are averaged to a quarter of their side, then to 2x2; 3 x (linear, N, R) as wide as what they are
      given; linear. Vectors, and tokens averaged over the sequence, go to the linear layers as they are.
    - ``"mlp-sr"``: maps averaged to a quarter of their side; 3 x (1x1 convolution, N, R); then as ``"mlp"``.
    - ``"cnn"``: 2 x (3x3 convolution, N, R); averaged to 2x2; N; linear.

    Convolutions keep the number of channels. A series counts as a map of height 1, and a map that is smaller than 2x2
    keeps its size. Scores are found with running statistics, and change nothing.

    Args:
        head: which of them.

    Shape: h ``[B, D]``, ``[B, S, E]``, ``[B, C, L]`` or ``[B, C, H, W]``; scores ``[B, C]``.

    Raises:
        UnknownNameError: there is no such head.
        ShapeError: it does not fit the unit's output.
    """

    any_width = True

    def __init__(self, head: str = "mlp") -> None:
        super().__init__()
        if head not in HEADS:
            raise UnknownNameError("deep head", f"unknown head={head!r}", fix=did_you_mean(str(head), HEADS))
        self.head = head

    def bind(self, spec: Spec, labels: Labels) -> None:
        """Make the layers."""
        refuse_several_labels(f"head {self.head!r}", spec, labels)
        super().bind(spec, labels)
        out = labels.num_classes or torch.Size(spec.target).numel()
        self.on_maps = len(spec.shape) in (2, 3) and not spec.channels_last
        self._check(spec)
        if not self.on_maps:
            layers = self.on_vectors(spec.shape[-1], out)
        else:
            layers = self.on_map(spec.shape[0], spec.shape[1] if len(spec.shape) == 3 else 1, spec.shape[-1], out)
        self.layers = RowSequential(*layers).to(spec.device, spec.dtype)

    def on_vectors(self, width: int, out: int) -> list[nn.Module]:
        """Layers for vectors."""
        return _linear(width, HIDDEN, out)

    def on_map(self, channels: int, height: int, width: int, out: int) -> list[nn.Module]:
        """Layers for maps."""
        less = 1 if self.head == "cnn" else 4
        height, width = math.ceil(height / less), math.ceil(width / less)
        side = min(SIDE, height), min(SIDE, width)
        end, flat = nn.AdaptiveAvgPool2d(side), channels * side[0] * side[1]
        if self.head == "cnn":
            return [*_convolutions(channels, 3, 2), end, RowNorm(channels), nn.Flatten(), nn.Linear(flat, out)]
        convolutions = _convolutions(channels, 1, 3) if self.head == "mlp-sr" else []
        quarter = nn.AdaptiveAvgPool2d((height, width))
        return [quarter, *convolutions, end, nn.Flatten(), *_linear(flat, HIDDEN, out)]

    def _check(self, spec: Spec) -> None:
        if self.on_maps or (self.head == "mlp" and (len(spec.shape) == 1 or spec.channels_last)):
            return
        fix = "head='mlp'" if len(spec.shape) == 1 or spec.channels_last else "the rule 'local_ce', or flatten first"
        raise ShapeError(
            f"head {self.head!r}", "it does not fit the unit's output",
            expected="maps [batch, C, H, W] or series [batch, C, L]" + (", vectors, tokens" * (self.head == "mlp")),
            got=("batch", *spec.shape), fix=fix,
        )  # fmt: skip

    def logits(self, h: Tensor, rows: Tensor | None) -> Tensor:
        """``[B, C]``, normalised over these rows or, without them, by what was seen so far."""
        if not self.on_maps:
            h = h.flatten(1, -2).mean(1) if h.dim() > 2 else h
        elif h.dim() == 3:
            h = h[:, :, None]
        return self.layers(h, rows)

    def forward(self, view: View) -> Tensor:
        """The loss of the head on labelled rows; running statistics take note of them."""
        y = view.context.y
        assert y is not None
        return head_loss(self.labels, self.logits(view.h, self.labels.valid(y)), view)

    def scores(self, view: View) -> Tensor:
        """Logits."""
        return self.logits(view.h, None)


def _linear(width: int, hidden: int, out: int) -> list[nn.Module]:
    """Hidden layers of one width; a bias in front of a norm would do nothing."""
    layers: list[nn.Module] = []
    for _ in range(hidden):
        layers += [nn.Linear(width, width, bias=False), RowNorm(width), nn.ReLU()]
    return [*layers, nn.Linear(width, out)]


def _convolutions(channels: int, kernel: int, count: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for _ in range(count):
        conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, bias=False)
        layers += [conv, RowNorm(channels), nn.ReLU()]
    return layers
