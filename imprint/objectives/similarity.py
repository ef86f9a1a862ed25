"""Similarity matching against the labels, with a learned projection."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from ..functional.similarity_matching import matching_error, sample_features
from .labels import Labels
from .objective import Objective, Spec, View, refuse_several_labels


class SimilarityMatching(Objective):
    r"""Similarity matching: :math:`L = \mathrm{mean}_{ij}(S(C h)_{ij} - S(Y)_{ij})^2`.

    C is a learned, bias-free map that keeps the width: a matrix for vectors, a 3x3 convolution for maps, one matrix
    for all tokens. S is :func:`imprint.functional.centered_cosine`. Class weights weigh pairs by their product; label
    smoothing changes nothing, since S takes the mean off: :math:`S((1-\epsilon)Y + \epsilon/K) = S(Y)`.

    Args:
        project: use C; without it the unit's output is compared itself.
    """

    def __init__(self, project: bool = True) -> None:
        super().__init__()
        self.project = project

    def bind(self, spec: Spec, labels: Labels) -> None:
        """Make C."""
        if labels.num_classes is None:
            raise ArgumentError(
                "similarity matching", "it compares class labels, and the targets are values",
                expected="num_classes=", fix="use local_ce or sigprop for regression",
            )  # fmt: skip
        refuse_several_labels("similarity matching", spec, labels)
        super().bind(spec, labels)
        if not self.project:
            self.projection: nn.Module = nn.Identity()
        elif len(spec.shape) == 3 and not spec.channels_last:
            self.projection = nn.Conv2d(spec.shape[0], spec.shape[0], 3, padding=1, bias=False)
        elif len(spec.shape) == 2 and not spec.channels_last:
            self.projection = nn.Conv1d(spec.shape[0], spec.shape[0], 3, padding=1, bias=False)
        else:
            self.projection = nn.Linear(spec.shape[-1], spec.shape[-1], bias=False)
        self.projection.to(spec.device, spec.dtype)

    def forward(self, view: View) -> Tensor:
        """The matching error of the batch."""
        y = view.context.y
        assert y is not None
        z = sample_features(self.projection(view.h), self.spec.channels_last)
        return matching_error(z, self.labels.onehot(y, z.dtype), self.labels.share(y, z))


class Mix(Objective):
    r"""Weighted sum of objectives, :math:`L = \sum_i w_i L_i`; the first that has scores speaks for all.

    Args:
        parts: pairs of weight and objective.
    """

    def __init__(self, *parts: tuple[float, Objective]) -> None:
        super().__init__()
        self.weights = [w for w, _ in parts]
        self.parts = nn.ModuleList([part for _, part in parts])
        self.needs_labels = any(part.needs_labels for _, part in parts)
        self.needs_context = any(part.needs_context for _, part in parts)
        self.uses_data = any(part.uses_data for _, part in parts)
        self.needs_synapses = any(part.needs_synapses for _, part in parts)
        self.needs_error = any(part.needs_error for _, part in parts)

    def bind(self, spec: Spec, labels: Labels) -> None:
        """Bind every part."""
        super().bind(spec, labels)
        for part in self.parts:
            assert isinstance(part, Objective)
            part.bind(spec, labels)

    def forward(self, view: View) -> Tensor:
        """The weighted sum."""
        losses = []
        for weight, part in zip(self.weights, self.parts, strict=True):
            assert isinstance(part, Objective)
            losses.append(weight * part(view))
        return torch.stack(losses).sum()

    def scores(self, view: View) -> Tensor | None:
        """Scores of the first part that has any."""
        for part in self.parts:
            assert isinstance(part, Objective)
            if (scores := part.scores(view)) is not None:
                return scores
        return None
