"""Losses over logits ``[B, R]`` of samples against context rows."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..errors import ShapeError
from .labels import check_labels


def softmax_contrast(logits: Tensor, positives: Tensor) -> Tensor:
    r"""Cross entropy with a set of positives: :math:`L = \mathrm{mean}_i \sum_j -P_{ij}\log\mathrm{softmax}(Y_i)_j`.

    The rows of P are not normalised: a sample with three positives counts three times.

    Shape: logits, positives ``[B, R]``; result a scalar.

    Raises:
        ShapeError: the two shapes differ.

    >>> import torch
    >>> softmax_contrast(torch.zeros(2, 4), torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0]])) / torch.log(torch.tensor(4.0))
    tensor(1.5000)
    """
    if logits.shape != positives.shape:
        raise ShapeError(
            "softmax_contrast", "positives and logits differ in shape", expected=tuple(logits.shape),
            got=tuple(positives.shape), fix="pass rows='class' to the loss if there is one context row a class",
        )  # fmt: skip
    return F.cross_entropy(logits, positives.to(logits.dtype))


def class_counts(labels: Tensor, num_classes: int) -> Tensor:
    """How many samples of each class are in the batch.

    Shape: labels ``[B]``; result ``[num_classes]`` int64.

    >>> import torch
    >>> class_counts(torch.tensor([2, 0, 2]), 4)
    tensor([1, 0, 2, 0])
    """
    check_labels(labels, num_classes)
    return F.one_hot(labels.long(), num_classes).sum(0)


def class_contrast(logits: Tensor, labels: Tensor, counts: Tensor, weight: Tensor | None = None) -> Tensor:
    r"""The contrast of B rows, computed with K: :math:`L=\mathrm{mean}_i\,w_i[-z_{iy_i}+\log\sum_k n_ke^{z_{ik}}]`.

    Where all samples of a class have the same context output this equals the contrast with one row a sample:
    with weight 1 one positive a sample, with weight :math:`n_{y_i}` all of its class. Absent classes (n = 0) drop out.

    Args:
        logits: z, against one context row a class.
        labels: y, the class of each sample.
        counts: n, samples of each class in the batch; see :func:`class_counts`.
        weight: w, one a sample; 1 if None.

    Shape: logits ``[B, K]``, labels ``[B]``, counts ``[K]``, weight ``[B]``; result a scalar.

    >>> import torch
    >>> class_contrast(torch.zeros(2, 3), torch.tensor([0, 1]), torch.tensor([1, 1, 0])).exp()
    tensor(2.)
    """
    own = logits.gather(1, labels.long()[:, None])[:, 0]
    losses = (logits + counts.to(logits.dtype).log()).logsumexp(1) - own
    return (losses if weight is None else losses * weight.to(logits.dtype)).mean()


def hebbian(similarity: Tensor) -> Tensor:
    r"""Fire together, wire together: :math:`L = -\mathrm{mean}_i\, s(H_i, T_i)`.

    With the dot product of one linear unit :math:`h = Wx` its step is :math:`\Delta W \propto t x_h^\top + h x_t^\top`:
    activity of one stream times input of the other.

    Args:
        similarity: of each sample with its own context; see :func:`imprint.functional.paired_similarity`.

    Shape: similarity ``[B]``; result a scalar.

    >>> import torch
    >>> hebbian(torch.tensor([1.0, 3.0]))
    tensor(-2.)
    """
    return -similarity.mean()
