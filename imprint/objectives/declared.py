"""Losses that graph modules declare: means over the rows that count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ArgumentError, ShapeError
from ..utils import is_number
from .labels import Labels
from .objective import Objective, Spec, View


def row_mean(losses: Tensor, valid: Tensor | None) -> Tensor:
    """Mean of one loss a row over the valid rows; zero if there is none.

    >>> row_mean(torch.tensor([1.0, 5.0]), torch.tensor([True, False])).item()
    1.0
    """
    if valid is None:
        return losses.mean()
    share = valid.to(losses.dtype)
    return (losses * share).sum() / share.sum().clamp_min(1)


def class_loss(labels: Labels, logits: Tensor, view: View) -> Tensor:
    """Cross entropy of `logits` with the view's labels, mean over rows that count and have one.

    Shape: logits ``[B, C]``; labels ``[B]`` or ``[B, C]``.
    """
    y = view.context.y
    assert y is not None
    weight = None if labels.weight is None else labels.weight.to(logits)
    if view.complete and not y.is_floating_point():
        return F.cross_entropy(logits, y, weight, label_smoothing=labels.label_smoothing)
    if view.valid is None:
        return labels.cross_entropy(logits, y)
    if labels.soft(y):
        options: dict[str, Any] = {"weight": weight, "label_smoothing": labels.label_smoothing}
        return row_mean(F.cross_entropy(logits, y.to(logits.dtype), reduction="none", **options), view.valid)
    return labels.cross_entropy(logits, y.masked_fill(~view.valid, labels.ignore_index))


def label_mean(labels: Labels, losses: Tensor, view: View) -> Tensor:
    """Mean of one loss a row over rows that count and have a label, by the weights of their classes.

    >>> from imprint.objectives import Target
    >>> view = View(context=Target(torch.tensor([0, -100])))
    >>> label_mean(Labels(2), torch.tensor([1.0, 5.0]), view).item()
    1.0
    """
    y = view.context.y
    assert y is not None
    if view.valid is None:
        return labels.mean(losses, y)
    if labels.num_classes is None or labels.soft(y):
        return row_mean(losses, view.valid)
    return labels.mean(losses, y.masked_fill(~view.valid, labels.ignore_index))


class CrossEntropy(Objective):
    r""":math:`-\log\mathrm{softmax}(h)_y` of the module's own output, mean over labelled, valid rows.

    Shape: h ``[B, C]``; targets ``[B]`` labels or ``[B, C]`` probabilities.
    """

    rowwise = True

    def bind(self, spec: Spec, labels: Labels) -> None:
        """Fix the classes; refuse an output that is too narrow for them."""
        super().bind(spec, labels)
        if labels.num_classes is not None and spec.features < labels.num_classes:
            raise ShapeError(
                "ce", "the output has fewer units than there are classes", expected=f"at least {labels.num_classes}",
                got=spec.features, fix="leave the last width Auto, or widen it",
            )  # fmt: skip
        if labels.weight is not None and len(labels.weight) != spec.features:
            raise ShapeError(
                "ce", "class_weight= has no number for every unit of the output", expected=spec.features,
                got=len(labels.weight), fix="one weight a unit, or an output as wide as there are classes",
            )  # fmt: skip

    def forward(self, view: View) -> Tensor:
        """The mean cross entropy."""
        return class_loss(self.labels, view.h, view)

    def scores(self, view: View) -> Tensor:
        """The output itself."""
        return view.h


class MeanSquare(Objective):
    """:math:`(h - y)^2`, mean over valid rows and all elements."""

    rowwise = True

    def forward(self, view: View) -> Tensor:
        """The mean square error."""
        y = view.context.y
        assert y is not None
        return row_mean((view.h - y.to(view.h.dtype)).square().flatten(1).mean(1), view.valid)


class Activity(Objective):
    """Mean of :math:`|h|^p` over valid rows and units; a regulariser.

    Args:
        p: 1 or 2.
    """

    rowwise, needs_labels = True, False

    def __init__(self, p: int) -> None:
        super().__init__()
        self.p = p

    def forward(self, view: View) -> Tensor:
        """The mean activity."""
        return row_mean(view.h.abs().pow(self.p).flatten(1).mean(1), view.valid)


class StateActivity(Objective):
    """Mean of :math:`|s|^p` over the module's recurrent state, valid rows only; a regulariser.

    Args:
        p: 1 or 2.
        tag: which states; see ``Proto.tagged_state``.
    """

    tagged: Callable[[Any, str], Tensor] | None

    rowwise, needs_labels, needs_state = False, False, True

    def __init__(self, p: int, tag: str = "recurrent") -> None:
        super().__init__()
        self.p, self.tag, self.tagged = p, tag, None

    def forward(self, view: View) -> Tensor:
        """The mean over all tensors of the tagged state."""
        assert self.tagged is not None, "the graph gives the proto's tagged_state"
        return row_mean(self.tagged(view.state, self.tag).abs().pow(self.p).mean(1), view.valid)


class Function(Objective):
    """A user's ``fn(view) -> scalar``."""

    rowwise, needs_labels, needs_state = False, False, True

    def __init__(self, fn: Callable[[View], Tensor]) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, view: View) -> Tensor:
        """Call it; refuse what is not a scalar."""
        made = self.fn(view)
        if not isinstance(made, Tensor) or made.numel() != 1:
            got = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise ShapeError(
                "objectives.add",
                "the function's result is no scalar",
                expected="a tensor ()",
                got=got,
                fix="loss.mean()",
            )
        return made.reshape(())


class InfoNCE(Objective):
    r"""Contrast of each row with the targets of all rows of its tick,
    :math:`-\log \mathrm{softmax}_j(s(W h_i, y_j)/\tau)_i`.

    s is cosine similarity; W maps the output to the target's width and learns with the module. An output of zeros, of
    spiking neurons that are silent for example, is like nothing and gets no gradient.

    Args:
        temperature: :math:`\tau`.

    Reference: van den Oord et al., Contrastive Predictive Coding (2018), section 2.3.
    Differs from the paper: cosine similarity; negatives are the other rows of the same tick.
    """

    rowwise, needs_labels, any_width = False, False, True

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        if not is_number(temperature) or temperature <= 0:
            raise ArgumentError(
                "contrastive", "the temperature must be positive", got=repr(temperature), fix="temperature=0.1"
            )
        self.temperature = temperature

    def bind(self, spec: Spec, labels: Labels) -> None:
        """Make W."""
        super().bind(spec, labels)
        self.map = torch.nn.Linear(
            spec.features, torch.Size(spec.target).numel(), bias=False, device=spec.device, dtype=spec.dtype
        )

    def forward(self, view: View) -> Tensor:
        """The contrast, mean over valid rows; rows that do not count are no negatives either."""
        y = view.context.y
        assert y is not None
        if y.dim() < 2 or y[0].numel() != self.map.out_features:
            raise ShapeError(
                "contrastive", "its target has no features, or others than those it was bound with",
                expected=(len(y), self.map.out_features), got=tuple(y.shape),
                fix="values [B, D] such as Targets.shifted_input(src, 1); ce() for labels",
            )  # fmt: skip
        h, y = directions(self.map(view.h.flatten(1))), directions(y.to(view.h.dtype).flatten(1))
        z = h @ y.T / self.temperature
        if view.valid is not None:
            z = z.masked_fill(~view.valid[None] & ~torch.eye(len(z), dtype=torch.bool, device=z.device), -torch.inf)
        return row_mean(z.logsumexp(1) - z.diagonal(), view.valid)


def directions(rows: Tensor, eps: float = 1e-12) -> Tensor:
    """Rows of length one; those shorter than `eps` have no direction: zero, with zero gradient rather than its 1/eps.

    >>> directions(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return torch.where(length > eps, rows / length.clamp_min(eps), 0)
