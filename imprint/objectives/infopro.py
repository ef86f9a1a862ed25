"""Information propagation: keep what the input was, besides what it means."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ArgumentError, ShapeError
from ..functional.pooling import pool_features, pooled_width
from ..utils import is_number
from .deep_head import DeepHead
from .labels import Labels
from .objective import Objective, Spec, View
from .row_norm import RowNorm, RowSequential

FEATURES, PLANES = 128, 12


class AuxiliaryHead(DeepHead):
    """The small head "1c2f": 3x3 convolution with stride 2 to twice the channels, N, R; average; linear, R, linear.

    Vectors and tokens, averaged over the sequence, go to the linear layers as they are.
    """

    def on_vectors(self, width: int, out: int) -> list[nn.Module]:
        """Two linear layers."""
        return [nn.Linear(width, FEATURES), nn.ReLU(), nn.Linear(FEATURES, out)]

    def on_map(self, channels: int, height: int, width: int, out: int) -> list[nn.Module]:
        """A convolution and two linear layers."""
        wide = 2 * channels
        conv = nn.Conv2d(channels, wide, 3, stride=2, padding=1, bias=False)
        pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return [conv, RowNorm(wide), nn.ReLU(), *pooled, *self.on_vectors(wide, out)]


class Decoder(nn.Module):
    """Logits of the input, made of a unit's output.

    For images and units that give maps: bilinear to the size of the image, 3x3 convolution to 12 planes, N, R, 3x3
    convolution. Else a linear map of the output's features.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.input, self.channels_last = spec.input, spec.channels_last
        self.images = len(spec.input) == len(spec.shape) == 3 and not spec.channels_last
        if self.images:
            layers: list[nn.Module] = [
                nn.Conv2d(spec.shape[0], PLANES, 3, padding=1, bias=False), RowNorm(PLANES), nn.ReLU(),
                nn.Conv2d(PLANES, spec.input[0], 3, padding=1),
            ]  # fmt: skip
        else:
            width = pooled_width(spec.shape, channels_last=spec.channels_last)
            layers = [nn.Linear(width, torch.Size(spec.input).numel())]
        self.layers = RowSequential(*layers)

    def forward(self, h: Tensor, rows: Tensor) -> Tensor:
        """``[B, *input]``, normalised over these rows."""
        if self.images:
            h = F.interpolate(h, size=self.input[1:], mode="bilinear", align_corners=True)
        else:
            h = pool_features(h, channels_last=self.channels_last)
        made: Tensor = self.layers(h, rows)
        return made.view(-1, *self.input)


class InfoPro(Objective):
    r""":math:`L = \lambda_1\,\mathrm{BCE}(d(h), \tilde x) + \lambda_2\,\mathrm{CE}(a(h), y)`.

    :math:`\tilde x` is the model's input, scaled to 0..1 by the smallest and largest value in the labelled rows of the
    batch; d decodes it, a predicts the label. Both weights go in a straight line from their value at the first unit to
    that at the last one.

    Args:
        reconstruct, reconstruct_last: :math:`\lambda_1` at the first and at the last unit.
        predict, predict_last: :math:`\lambda_2` likewise.

    Raises:
        ArgumentError: a weight is no number from 0.
        ShapeError: the model has no floating input.
    """

    any_width = True

    def __init__(self, reconstruct: float, reconstruct_last: float, predict: float, predict_last: float) -> None:
        super().__init__()
        self.ends = (reconstruct, reconstruct_last), (predict, predict_last)
        for pair in self.ends:
            if not all(is_number(v) and v >= 0 for v in pair):
                raise ArgumentError(
                    "infopro", "a weight is no number from 0", expected="two numbers from 0, first and last unit",
                    got=pair, fix="reconstruct=5.0, reconstruct_last=0.5, predict=0.0, predict_last=1.0",
                )  # fmt: skip

    def bind(self, spec: Spec, labels: Labels) -> None:
        """Make decoder and head, and settle the weights."""
        super().bind(spec, labels)
        if not spec.input:
            raise ShapeError(
                "infopro", "the model has no floating input to reconstruct", expected="[batch, ...] floating numbers",
                fix="a rule that does without, such as 'local_ce' or 'dgl'",
            )  # fmt: skip
        self.shares = tuple([first + (last - first) * spec.depth for first, last in self.ends])
        self.decoder = Decoder(spec).to(spec.device, spec.dtype)
        self.head = AuxiliaryHead()
        self.head.bind(spec, labels)

    def forward(self, view: View) -> Tensor:
        """The weighted sum."""
        y, x = view.context.y, view.context.x
        assert y is not None and x is not None
        rows = self.labels.valid(y)
        made = self.decoder(view.h, rows)
        image = to_unit_interval(x.to(made.dtype), rows)
        lost = F.binary_cross_entropy_with_logits(made, image, reduction="none").flatten(1).mean(1)
        reconstruct, predict = self.shares
        return reconstruct * self.labels.mean(lost, y) + predict * self.head(view)

    def scores(self, view: View) -> Tensor:
        """Logits of the head."""
        return self.head.scores(view)


def to_unit_interval(x: Tensor, rows: Tensor) -> Tensor:
    """`x` between 0 and 1, which are the smallest and the largest value in these rows; others are cut off there.

    >>> to_unit_interval(torch.tensor([[1.0, 3.0], [2.0, 5.0]]), torch.tensor([True, False]))
    tensor([[0.0000, 1.0000],
            [0.5000, 1.0000]])
    """
    outside = ~rows.view(-1, *[1] * (x.dim() - 1))
    low, high = x.masked_fill(outside, torch.inf).amin(), x.masked_fill(outside, -torch.inf).amax()
    known = high > low
    low, span = torch.where(known, low, 0.0), torch.where(known, high - low, 1.0)
    return ((x - low) / span).clamp(0, 1)
