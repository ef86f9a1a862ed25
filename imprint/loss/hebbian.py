"""Hebb's rule as a loss."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import functional
from .loss import check_rows, configurable


@configurable
def hebbian(
    sp_learn: Any, h1: Tensor, t1: Tensor, h0: Tensor, t0: Tensor, y_onehot: Any, *,
    similarity: str = "dot", rows: str = "sample",
) -> Tensor:  # fmt: skip
    r"""Pull each sample's output and the output for its own context together, against nothing.

    .. math:: L = -\mathrm{mean}_i\, s(H_i, T_{r_i})

    With ``dot`` the step of a linear unit is Hebb's: :math:`\Delta W \propto t x_h^\top + h x_t^\top`. It has no
    negatives and no bound: keep activity in place by a norm in the layer, ``similarity="cosine"`` or weight decay.
    ``cosine`` and ``l2`` are the plain cosine and squared-distance losses.

    Args:
        sp_learn: the propagator; not used.
        h1: H, output on the data.
        t1: T, output on the context.
        h0: not used.
        t0: not used.
        y_onehot: the labels; read with ``rows="class"``.
        similarity: ``"dot"``, ``"cosine"`` or ``"l2"``.
        rows: r_i is i for ``"sample"``, the label for ``"class"``.

    Shape: h1 ``[B, ...]``, t1 ``[R, ...]``; result a scalar.

    Raises:
        ShapeError: the number of context rows does not fit `rows`.

    Reference: Kohan, Rietman & Siegelmann, Signal Propagation (2022), which trains continuous networks with Hebbian
    updates.
    Differs from the paper: a loss whose gradient is the update; rate units without dynamics.

    >>> import torch
    >>> hebbian(None, torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]), None, None, None)
    tensor(-11.)
    """
    check_rows("hebbian", rows, h1, t1)
    if rows == "class":
        t1 = t1[functional.class_numbers(y_onehot, len(t1), "hebbian with rows='class'")]
    return functional.hebbian(functional.paired_similarity(h1, t1, similarity))
