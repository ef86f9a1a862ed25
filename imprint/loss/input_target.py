"""Losses that find, by the similarity of targets or by labels, which context rows a sample should resemble."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..errors import ArgumentError
from ..functional import (
    by_class,
    find_positives,
    input_target_max_all,
    input_target_max_rand,
    similarity_logits,
)
from .loss import check_rows, configurable

POSITIVES = ("targets", "labels")


def _contrast(
    where: str, h1: Tensor, t1: Tensor, t0: Tensor, y: Any, similarity: str, temperature: float,
    positives: str | None, rows: str, k: int | None = None, one: bool = False,
) -> Tensor:  # fmt: skip
    check_rows(where, rows, h1, t1)
    if positives is None:
        positives = "labels" if rows == "class" else "targets"
    if positives not in POSITIVES:
        raise ArgumentError(
            where, "unknown positives", expected=" | ".join(map(repr, POSITIVES)), got=repr(positives),
            fix="positives='labels'",
        )  # fmt: skip
    if rows == "class" and positives == "targets":
        raise ArgumentError(
            where, "rows='class' takes its positives from the labels", expected="positives='labels'",
            got="positives='targets'", fix="leave positives= out, or rows='sample' for positives by similar targets",
        )  # fmt: skip
    logits = similarity_logits(h1, t1, similarity, temperature)
    if rows == "class":
        return by_class(logits, y, 1 if one else k)
    found = find_positives(t0, y, positives, similarity, k)
    return input_target_max_rand(logits, found) if one else input_target_max_all(logits, found)


@configurable
def v9_input_target_max_all(
    sp_learn: Any, h1: Tensor, t1: Tensor, h0: Tensor, t0: Tensor, y_onehot: Any, *,
    similarity: str = "dot", temperature: float = 1.0, positives: str | None = None, rows: str = "sample",
) -> Tensor:  # fmt: skip
    r"""Resemble every context row whose target is most similar to one's own.

    .. math:: L = \mathrm{mean}_i \sum_j -P_{ij}\log\mathrm{softmax}(Y_i)_j,\quad P_{ij} = 1[Q_{ij} = \max_j Q_{ij}]

    with :math:`Y = HT^\top/S` and the constant :math:`Q = T_0T_0^\top/S_0`.

    Args:
        sp_learn: the propagator; not used.
        h1: H, output on the data.
        t1: T, output on the context.
        h0: not used.
        t0: :math:`T_0`, input on the context.
        y_onehot: the labels; read if `positives` or `rows` asks for them.
        similarity: of H with T and of targets: ``"dot"``, ``"cosine"`` or ``"l2"`` (right for regression).
        temperature: divides the logits.
        positives: ``"targets"``, by Q; ``"labels"``, rows of the same label: right also after dropout. None is
            ``"targets"`` for a row a sample, ``"labels"`` for a row a class, which has no others.
        rows: ``"sample"``, one context row each; ``"class"``, one row a class, in order. The latter is the loss with
            ``positives="labels"`` at less cost, by :func:`imprint.functional.class_contrast`; it is exact where all
            samples of a class have the same context output, that is without BatchNorm or dropout on the context.

    Shape: h1 ``[B, ...]``, t1 ``[R, ...]``, t0 ``[R, ...]``; result a scalar.

    Raises:
        ShapeError: the number of context rows does not fit `rows`.
        LabelError: labels are needed and missing or out of range.

    Reference: Kohan, Rietman & Siegelmann, Signal Propagation (2022); name as in its reference implementation.
    Differs from the paper: targets within rounding of the maximum count as equal; the options are added.

    >>> import torch
    >>> t = torch.tensor([[4.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    >>> v9_input_target_max_all(None, torch.zeros(3, 2), t, None, t, None) * 3 / torch.log(torch.tensor(3.0))
    tensor(5.)
    """
    return _contrast("v9_input_target_max_all", h1, t1, t0, y_onehot, similarity, temperature, positives, rows)


@configurable
def v14_input_target_max_rand(
    sp_learn: Any, h1: Tensor, t1: Tensor, h0: Tensor, t0: Tensor, y_onehot: Any, *,
    similarity: str = "dot", temperature: float = 1.0, positives: str | None = None, rows: str = "sample",
) -> Tensor:  # fmt: skip
    r"""Resemble one context row among those most similar to one's own, drawn at random.

    .. math:: L = \mathrm{CE}(Y, \arg\max_j Q_{ij})

    Arguments, shapes and errors are those of :func:`v9_input_target_max_all`.

    Reference: Kohan, Rietman & Siegelmann, Signal Propagation (2022); name as in its reference implementation.
    Differs from the paper: nothing; the reference implementation takes the first of equal maxima.

    >>> import torch
    >>> t = torch.tensor([[4.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    >>> v14_input_target_max_rand(None, torch.zeros(3, 2), t, None, t, None).exp().round(decimals=4)
    tensor(3.)
    """
    return _contrast(
        "v14_input_target_max_rand", h1, t1, t0, y_onehot, similarity, temperature, positives, rows, one=True
    )


@configurable
def v15_input_target_topk(
    sp_learn: Any, h1: Tensor, t1: Tensor, h0: Tensor, t0: Tensor, y_onehot: Any, *,
    k: int = 5,
    similarity: str = "dot", temperature: float = 1.0, positives: str | None = None, rows: str = "sample",
) -> Tensor:  # fmt: skip
    r"""Resemble the k context rows whose targets are most similar to one's own: v9 with the top k of Q.

    ``v15_input_target_topk`` itself is the loss with k = 5, ``v15_input_target_topk(k=3)`` the one with another k.

    Args:
        sp_learn: the propagator; not used.
        h1: H, output on the data.
        t1: T, output on the context.
        h0: not used.
        t0: :math:`T_0`, input on the context.
        y_onehot: the labels; read if `positives` or `rows` asks for them.
        k: positives a sample; fewer where the batch, or with labels the class, has fewer. ``topk=``, the reference
            implementation's name, is read as well.
        similarity: see :func:`v9_input_target_max_all`, as for the other options.
        temperature: divides the logits.
        positives: ``"targets"``, ``"labels"`` or None, as there; labels have no false positives in a
            class of fewer than k.
        rows: ``"sample"`` or ``"class"``.

    Shape: h1 ``[B, ...]``, t1 ``[R, ...]``, t0 ``[R, ...]``; result a scalar.

    Raises:
        ShapeError: the number of context rows does not fit `rows`.
        LabelError: labels are needed and missing or out of range.

    Reference: Kohan, Rietman & Siegelmann, Signal Propagation (2022); name as in its reference implementation.
    Differs from the paper: a batch smaller than k is legal; the options are added.

    >>> import torch
    >>> t = torch.tensor([[4.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    >>> v15_input_target_topk(k=2)(None, torch.zeros(3, 2), t, None, t, None) / torch.log(torch.tensor(3.0))
    tensor(2.)
    """
    return _contrast("v15_input_target_topk", h1, t1, t0, y_onehot, similarity, temperature, positives, rows, k=k)
