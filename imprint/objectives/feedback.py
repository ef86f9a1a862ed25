"""Targets, or the error of the output, thrown straight at a unit through fixed random feedback."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import ArgumentError, ShapeError
from .declared import label_mean
from .labels import Labels
from .objective import Objective, Spec, View, refuse_several_labels


def draw(rows: int, spec: Spec) -> Tensor:
    r"""Random feedback ``[rows, features]``, uniform in :math:`\pm\sqrt{6/D}` for D features.

    >>> draw(3, Spec((2, 4))).shape
    torch.Size([3, 8])
    """
    bound = math.sqrt(6 / spec.features)
    return torch.empty(rows, spec.features, dtype=spec.dtype, device=spec.device).uniform_(-bound, bound)


class TargetFeedback(Objective):
    r""":math:`L = \mathrm{mean}_i \langle h_i, Y_i B\rangle`, whose gradient with respect to h is Y B.

    B is fixed, drawn uniformly from :math:`\pm\sqrt{6/D}` for D features (Kaiming's rule on ``[classes, D]``).

    Reference: Frenkel et al., Learning without feedback: DRTP (2021), section 2.
    Differs from the paper: the mean over the batch, as torch has it, not the sum.
    """

    rowwise = True
    feedback: Tensor

    def bind(self, spec: Spec, labels: Labels) -> None:
        """Draw B, ``[num_classes or target width, features]``."""
        refuse_several_labels("target feedback", spec, labels)
        super().bind(spec, labels)
        self.register_buffer("feedback", draw(labels.num_classes or torch.Size(spec.target).numel(), spec))

    def forward(self, view: View) -> Tensor:
        """The mean over labelled rows."""
        y = view.context.y
        assert y is not None
        target = y if self.labels.num_classes is None else self.labels.smoothed(y)
        wanted = target.to(self.feedback.dtype).flatten(1 if target.dim() > 1 else 0).view(len(y), -1) @ self.feedback
        return label_mean(self.labels, (view.h.flatten(1) * wanted).sum(1), view)


class ErrorFeedback(Objective):
    r""":math:`L = \mathrm{mean}_i \langle h_i, \mathrm{sg}(e_i B)\rangle`, whose gradient with respect to h is e B.

    e is the error of each sample's output, for cross entropy softmax minus one-hot; class weights, smoothing and rows
    without a label count in it as in the task loss. B is fixed and random, as for :class:`TargetFeedback`. The unit's
    graph waits until the output is known.

    Args:
        sign: of e only its sign is sent.

    Reference: Nokland, Direct Feedback Alignment Provides Learning in Deep Neural Networks (2016), section 3.
    Differs from the paper: the mean over the batch, as torch has it, not the sum.
    """

    needs_error = True
    feedback: Tensor

    def __init__(self, sign: bool = False) -> None:
        super().__init__()
        if not isinstance(sign, bool):
            raise ArgumentError("error feedback", "sign= is on or off", got=repr(sign), fix="sign=True")
        self.sign = sign

    def bind(self, spec: Spec, labels: Labels) -> None:
        """Draw B, ``[numel of an output, features]``."""
        super().bind(spec, labels)
        self.register_buffer("feedback", draw(torch.Size(spec.output).numel(), spec))

    def forward(self, view: View) -> Tensor:
        """The mean over labelled rows."""
        error, y = view.context.error, view.context.y
        assert error is not None and y is not None
        h = view.h.flatten(1)
        error = error.reshape(len(error), -1).to(h.dtype)
        if (error.shape[1], h.shape[1]) != tuple(self.feedback.shape):
            raise ShapeError(
                "error feedback", "the model's output, or the unit's, has another size than at bind",
                expected=f"{self.feedback.shape[0]} numbers out, {self.feedback.shape[1]} in the unit",
                got=f"{error.shape[1]} and {h.shape[1]}", fix="pool to a fixed size before the unit ends",
            )  # fmt: skip
        wanted = (error.sign() if self.sign else error) @ self.feedback.to(h.dtype)
        return (h * wanted).sum() / self.labels.labelled(y)
