"""Losses that compare the data with one context row a class."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..errors import ArgumentError
from ..functional import input_label_direct, similarity_logits
from .loss import check_rows, configurable


@configurable
def v1_input_label_direct(
    sp_learn: Any, h1: Tensor, t1: Tensor, h0: Tensor, t0: Tensor, y_onehot: Any, *,
    similarity: str = "dot", temperature: float = 1.0, rows: str = "class",
) -> Tensor:  # fmt: skip
    r"""Classify each sample by its similarity with K context rows: :math:`L = \mathrm{CE}(HT^\top/S, y)`.

    The signal gives one row a class, in order: put :class:`imprint.signals.DistinctBatchLabelsOnehot` in front of it.

    Args:
        sp_learn: the propagator; not used.
        h1: H, output on the data.
        t1: T, output on the K context rows.
        h0: not used.
        t0: not used.
        y_onehot: y, labels ``[B]``, or probabilities ``[B, K]``.
        similarity: ``"dot"``, ``"cosine"`` or ``"l2"``; see :func:`imprint.functional.similarity_logits`.
        temperature: divides the logits.
        rows: always ``"class"``; monitors read it.

    Shape: h1 ``[B, ...]``, t1 ``[K, ...]``; result a scalar.

    Raises:
        LabelError: a label names no context row.
        ArgumentError: `rows` is anything else.

    Reference: Kohan, Rietman & Siegelmann, Signal Propagation (2022); name as in its reference implementation.
    Differs from the paper: similarity and temperature are added.

    >>> import torch
    >>> v1_input_label_direct(None, 9 * torch.eye(2, 3), 9 * torch.eye(3), None, None, torch.tensor([0, 1])).round()
    tensor(0.)
    """
    if rows != "class":
        raise ArgumentError(
            "v1_input_label_direct", "its context rows are the classes", expected="'class'", got=repr(rows),
            fix="v9_input_target_max_all for one context row a sample",
        )  # fmt: skip
    check_rows("v1_input_label_direct", rows, h1, t1)
    return input_label_direct(similarity_logits(h1, t1, similarity, temperature), y_onehot)
