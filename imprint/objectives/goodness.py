"""Forward-forward's objectives: high activity for true labels, low for wrong ones."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..errors import ArgumentError
from ..utils import is_number
from .labels import Labels
from .objective import Objective, Spec, View, refuse_several_labels


def goodness(h: Tensor, reduce: str = "sum") -> Tensor:
    r""":math:`g = \sum_j h_j^2` or its mean, ``[B]``.

    >>> import torch
    >>> goodness(torch.tensor([[1.0, 2.0]]), "mean")
    tensor([2.5000])
    """
    square = h.flatten(1).square()
    return square.sum(1) if reduce == "sum" else square.mean(1)


class TrueAndWrong(Objective):
    """Compares the goodness of two streams: positives in the first half of the context, negatives in the second.

    Subclasses write :meth:`compare`.

    Args:
        reduce: ``"sum"`` or ``"mean"`` of squares.
    """

    needs_context, uses_data = True, False

    def __init__(self, reduce: str = "mean") -> None:
        super().__init__()
        if reduce not in ("sum", "mean"):
            raise ArgumentError("goodness", "unknown reduction", expected="sum | mean", got=reduce, fix="reduce='mean'")
        self.reduce = reduce

    def bind(self, spec: Spec, labels: Labels) -> None:
        """Nothing is made."""
        self.check_labels(spec, labels)
        super().bind(spec, labels)

    def check_labels(self, spec: Spec, labels: Labels) -> None:
        """Refuse what has no wrong labels."""
        if labels.num_classes is None or labels.num_classes < 2:
            raise ArgumentError(
                "goodness",
                "it needs class labels",
                expected="num_classes >= 2",
                got=labels.num_classes,
                fix="local_ce or sigprop for values",
            )
        if labels.label_smoothing:
            raise ArgumentError(
                "goodness", "it compares whole labels with wrong ones, which cannot be smoothed",
                expected="label_smoothing=0", got=labels.label_smoothing,
                fix="smooth the model's output alone: task_loss=partial(F.cross_entropy, label_smoothing=...)",
            )  # fmt: skip
        refuse_several_labels("goodness", spec, labels)

    def compare(self, positive: Tensor, negative: Tensor) -> Tensor:
        """``[B]``: the loss of each sample, from its goodness with the true and with a wrong label."""
        raise ArgumentError(
            f"objective {type(self).__name__!r}", "it has no loss", fix="write compare(self, positive, negative)"
        )

    def forward(self, view: View) -> Tensor:
        """The mean over labelled rows."""
        assert view.context.y is not None
        positive, negative = (goodness(half, self.reduce) for half in view.t.chunk(2))
        return self.labels.mean(self.compare(positive, negative), view.context.y)

    def scores(self, view: View) -> Tensor | None:
        """Goodness of each label, when the context stream brings all of them: ``[num_classes * B, ...]`` rows."""
        if view.t is None or view.context.y is not None:
            return None
        return goodness(view.t, self.reduce).view(self.labels.num_classes or 0, -1).T


class Goodness(TrueAndWrong):
    r""":math:`L = \mathrm{mean}\,\mathrm{softplus}(-(g^+-\theta)) + \mathrm{mean}\,\mathrm{softplus}(g^--\theta)`.

    The context stream brings the positives in its first half and the negatives in its second.

    Args:
        reduce: ``"sum"`` or ``"mean"`` of squares.
        threshold: θ; None is the number of features for ``"sum"`` and 2 for ``"mean"``.

    Reference: Hinton, The Forward-Forward Algorithm (2022), section 2.
    Differs from the paper: both halves in one batch (the same gradient).
    """

    def __init__(self, reduce: str = "mean", threshold: float | None = None) -> None:
        super().__init__(reduce)
        if threshold is not None and (isinstance(threshold, bool) or not isinstance(threshold, int | float)):
            raise ArgumentError("goodness", "threshold is no number", got=repr(threshold), fix="threshold=2.0")
        self.threshold = threshold

    def bind(self, spec: Spec, labels: Labels) -> None:
        """Settle the threshold."""
        super().bind(spec, labels)
        default = float(spec.features) if self.reduce == "sum" else 2.0
        self.theta = default if self.threshold is None else self.threshold

    def compare(self, positive: Tensor, negative: Tensor) -> Tensor:
        """Both softplus."""
        return F.softplus(self.theta - positive) + F.softplus(negative - self.theta)


class PairGoodness(Goodness):
    """Goodness of pairs without labels: all rows count.

    Args:
        reduce: ``"sum"`` or ``"mean"`` of squares.
        threshold: θ; None is the number of features for ``"sum"`` and 2 for ``"mean"``.
    """

    needs_labels = False

    def check_labels(self, spec: Spec, labels: Labels) -> None:
        """Any target will do."""

    def forward(self, view: View) -> Tensor:
        """The mean over all rows."""
        positive, negative = (goodness(half, self.reduce) for half in view.t.chunk(2))
        return self.compare(positive, negative).mean()

    def scores(self, view: View) -> Tensor | None:
        """Nothing about classes."""
        return None


class GoodnessGap(TrueAndWrong):
    r""":math:`L = \mathrm{mean}\,\mathrm{softplus}(-\alpha (g^+ - g^-))`: a sample's two goodnesses compete.

    Args:
        reduce: ``"sum"`` or ``"mean"`` of squares.
        alpha: how steep.

    Raises:
        ArgumentError: alpha is no positive number.

    Reference: Lee & Song, SymBa: Symmetric Backpropagation-Free Contrastive Learning (2023), section 3.
    Differs from the paper: nothing.
    """

    def __init__(self, reduce: str = "mean", alpha: float = 4.0) -> None:
        super().__init__(reduce)
        if not is_number(alpha) or alpha <= 0:
            raise ArgumentError("goodness gap", "alpha is no positive number", got=repr(alpha), fix="alpha=4.0")
        self.alpha = alpha

    def compare(self, positive: Tensor, negative: Tensor) -> Tensor:
        """The softplus of the gap."""
        return F.softplus(-self.alpha * (positive - negative))
