"""Targets thrown straight at a unit through fixed random feedback."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .labels import Labels
from .objective import Objective, Spec, View, refuse_several_labels


class TargetFeedback(Objective):
    r""":math:`L = \mathrm{mean}_i \langle h_i, Y_i B\rangle`, whose gradient with respect to h is Y B.

    B is fixed, drawn uniformly from :math:`\pm\sqrt{6/D}` for D features (Kaiming's rule on ``[classes, D]``).

    Reference: Frenkel et al., Learning without feedback: DRTP (2021), section 2.
    Differs from the paper: the mean over the batch, as torch has it, not the sum.
    """

    feedback: Tensor

    def bind(self, spec: Spec, labels: Labels) -> None:
        """Draw B, ``[num_classes or target width, features]``."""
        refuse_several_labels("target feedback", spec, labels)
        super().bind(spec, labels)
        rows = labels.num_classes or torch.Size(spec.target).numel()
        bound = math.sqrt(6 / spec.features)
        feedback = torch.empty(rows, spec.features, dtype=spec.dtype, device=spec.device).uniform_(-bound, bound)
        self.register_buffer("feedback", feedback)

    def forward(self, view: View) -> Tensor:
        """The mean over labelled rows."""
        y = view.context.y
        assert y is not None
        target = y if self.labels.num_classes is None else self.labels.smoothed(y)
        wanted = target.to(self.feedback.dtype).flatten(1 if target.dim() > 1 else 0).view(len(y), -1) @ self.feedback
        return self.labels.mean((view.h.flatten(1) * wanted).sum(1), y)
