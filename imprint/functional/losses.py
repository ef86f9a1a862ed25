"""The contrastive losses of signal propagation as functions of logits; :mod:`imprint.loss` gives them six arguments."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..errors import ShapeError
from .contrast import class_contrast, class_counts, softmax_contrast
from .labels import class_numbers
from .positives import choose_one, positives_labels, positives_max, positives_topk
from .similarity import target_similarity


def input_label_direct(logits: Tensor, labels: Tensor) -> Tensor:
    r"""Classify by similarity with one context row a class: :math:`L = \mathrm{CE}(Y, y)`.

    Shape: logits ``[B, K]``; labels ``[B]`` class numbers or ``[B, K]`` probabilities.

    Raises:
        LabelError: a label names no context row.

    >>> import torch
    >>> input_label_direct(torch.zeros(2, 4), torch.tensor([0, 3])).exp()
    tensor(4.)
    """
    if isinstance(labels, Tensor) and labels.is_floating_point() and labels.shape == logits.shape:
        return F.cross_entropy(logits, labels.to(logits.dtype))
    return F.cross_entropy(logits, class_numbers(labels, logits.shape[1], "v1, whose context rows are the classes"))


def input_target_max_all(logits: Tensor, positives: Tensor) -> Tensor:
    r"""All positives count: :math:`L = \mathrm{mean}_i \sum_j -P_{ij}\log\mathrm{softmax}(Y_i)_j`.

    Shape: logits, positives ``[B, B]``.

    >>> import torch
    >>> input_target_max_all(torch.zeros(2, 2), torch.ones(2, 2).bool()).div(2).exp()
    tensor(2.)
    """
    return softmax_contrast(logits, positives)


def input_target_max_rand(logits: Tensor, positives: Tensor) -> Tensor:
    r"""One positive a sample, drawn at random: :math:`L = \mathrm{CE}(Y, j_i)`.

    Shape: logits, positives ``[B, B]``.

    >>> import torch
    >>> input_target_max_rand(torch.zeros(2, 2), torch.ones(2, 2).bool()).exp()
    tensor(2.)
    """
    return F.cross_entropy(logits, choose_one(positives))


def by_class(logits: Tensor, labels: Tensor, most: int | None = 1) -> Tensor:
    r"""The same losses with one context row a class; see :func:`imprint.functional.class_contrast`.

    Args:
        logits: against the K class rows.
        labels: class numbers or one-hot rows.
        most: positives a sample counts: 1 (v14), k (v15), None for all of its class (v9).

    Shape: logits ``[B, K]``; labels ``[B]`` or ``[B, K]``.

    >>> import torch
    >>> by_class(torch.zeros(3, 2), torch.tensor([0, 0, 1])).exp()
    tensor(3.)
    """
    labels = class_numbers(labels, logits.shape[1], "a loss with rows='class'")
    counts = class_counts(labels, logits.shape[1])
    own = counts[labels]
    return class_contrast(logits, labels, counts, own if most is None else own.clamp(max=most))


def find_positives(
    t0: Tensor, labels: Tensor, source: str = "targets", similarity: str = "dot", k: int | None = None
) -> Tensor:
    r"""Positives of each sample among the batch's context rows.

    ``targets``: the rows most similar to its own by :math:`Q = T_0T_0^\top/S_0`; ``labels``: the rows of its label.
    With `k`, at most k of them: the top k of Q, restricted to rows of its label if the source is ``labels``.

    Shape: t0 ``[B, ...]``, labels ``[B]`` or ``[B, K]``; result ``[B, B]`` bool.

    >>> import torch
    >>> find_positives(torch.tensor([[1.0], [1.0], [-1.0]]), torch.tensor([0, 1, 0]))[0]
    tensor([ True,  True, False])
    >>> find_positives(torch.tensor([[1.0], [1.0], [-1.0]]), torch.tensor([0, 1, 0]), "labels")[0]
    tensor([ True, False,  True])
    """
    if source == "targets":
        q = target_similarity(t0, similarity)
        if k is not None:
            return positives_topk(q, k)
        return positives_max(q, rounding=0.0) if similarity == "l2" else positives_max(q)
    same = positives_labels(labels)
    if len(same) != len(t0):
        raise ShapeError(
            "positives from labels", "not one label a context row", expected=len(t0), got=len(same),
            fix="for one context row a class pass rows='class'",
        )  # fmt: skip
    if k is None:
        return same
    q = target_similarity(t0, similarity)
    return positives_topk(q.masked_fill(~same, -float("inf")), k) & same
