"""Channels in groups, one a class, that compete."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ArgumentError, ShapeError
from .declared import class_loss
from .labels import Labels
from .objective import Objective, Spec, View, refuse_several_labels


class ChannelGroups(Objective):
    r""":math:`L = \mathrm{CE}(g, y)`, where :math:`g_k` is the mean square activity of the k-th group of channels.

    Channels are those of maps and series, and the features of vectors and tokens. They are split in order, one group a
    class, as :func:`torch.tensor_split` does: where they cannot be shared out evenly, the first groups have one more.

    Shape: h ``[B, C, ...]``, or ``[B, ..., E]`` for tokens; scores ``[B, num_classes]``.

    Raises:
        ArgumentError: the targets are no class labels.
        ShapeError: there are fewer channels than classes.
    """

    rowwise = True
    share: Tensor

    def bind(self, spec: Spec, labels: Labels) -> None:
        """Share the channels out."""
        refuse_several_labels("channel groups", spec, labels)
        super().bind(spec, labels)
        classes = labels.num_classes
        if classes is None:
            raise ArgumentError(
                "channel groups", "there is one a class, and the targets are values", expected="num_classes=",
                fix="local_ce or sigprop for values",
            )  # fmt: skip
        channels = (spec.shape[-1] if spec.channels_last else spec.shape[0]) if spec.shape else 1
        if channels < classes:
            raise ShapeError(
                "channel groups", "there are fewer channels than classes", expected=f"at least {classes}",
                got=channels, fix="widen the layer, or leave it to another rule, such as 'local_ce'",
            )  # fmt: skip
        share = torch.zeros(channels, classes, dtype=spec.dtype, device=spec.device)
        for k, group in enumerate(torch.arange(channels).tensor_split(classes)):
            share[group, k] = 1 / len(group)
        self.register_buffer("share", share)

    def scores(self, view: View) -> Tensor:
        """``[B, num_classes]``: the mean square activity of each group."""
        square = view.h.square()
        if self.spec.channels_last and square.dim() > 2:
            square = square.flatten(1, -2).mean(1)
        elif square.dim() > 2:
            square = square.flatten(2).mean(2)
        return square @ self.share

    def forward(self, view: View) -> Tensor:
        """Cross entropy of the groups' activity."""
        return class_loss(self.labels, self.scores(view), view)
