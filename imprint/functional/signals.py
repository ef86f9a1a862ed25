"""Signals without state: labels into rows, rows into the shape of the data. None, no context, stays None."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import DtypeError, LabelError, ShapeError
from ..utils import shape_numel
from .digits import draw_digits
from .labels import onehot
from .similarity import as_rows

Pair = tuple[Tensor, Tensor | None]
Signal = tuple[Tensor, Tensor | None, Tensor, Tensor | None]


def label_number_to_onehot(t0: Tensor | None, num_classes: int, dtype: torch.dtype | None = None) -> Tensor | None:
    """One-hot rows of class numbers; see :func:`imprint.functional.onehot`.

    Shape: ``[B]`` to ``[B, num_classes]``.

    >>> label_number_to_onehot(torch.tensor([1]), 2)
    tensor([[0., 1.]])
    """
    return None if t0 is None else onehot(t0, num_classes, dtype)


def distinct_batch_labels_onehot(t0: Tensor | None) -> Tensor | None:
    """One row a class in place of one a sample: the unit matrix of as many classes as `t0` has columns.

    Shape: ``[B, K]`` to ``[K, K]``.

    Raises:
        LabelError: `t0` has no column a class.

    >>> distinct_batch_labels_onehot(torch.zeros(5, 2))
    tensor([[1., 0.],
            [0., 1.]])
    """
    if t0 is None:
        return None
    return torch.eye(_columns(t0), dtype=_floating(t0), device=t0.device)


def distinct_batch_labels(t0: Tensor | None) -> Tensor | None:
    """The class numbers 0 … K − 1 in place of one row a sample.

    Shape: ``[B, K]`` to ``[K]``, floating.

    Raises:
        LabelError: `t0` has no column a class.

    >>> distinct_batch_labels(torch.zeros(5, 3))
    tensor([0., 1., 2.])
    """
    if t0 is None:
        return None
    return torch.arange(_columns(t0), dtype=_floating(t0), device=t0.device)


def label_vector_to_number(t0: Tensor | None) -> Tensor | None:
    """The column of each row's largest entry, as a number.

    Shape: ``[B, K]`` to ``[B, 1]``, floating.

    Raises:
        LabelError: `t0` has no column a class.

    >>> label_vector_to_number(torch.eye(2))
    tensor([[0.],
            [1.]])
    """
    if t0 is None:
        return None
    _columns(t0)
    return t0.argmax(1, keepdim=True).to(_floating(t0))


def project(
    t0: Tensor, func: Callable[[Tensor], Tensor], input_shape: Sequence[int], output_shape: Sequence[int]
) -> Tensor:
    """Context rows mapped by `func`, as flat vectors, and laid out in the shape of the data.

    Args:
        t0: the context, floating; plain numbers are rows of one column.
        func: maps ``[R, numel(input_shape)]`` to ``[R, numel(output_shape)]``.
        input_shape: of one context row.
        output_shape: of one row of the data stream.

    Shape: t0 ``[R, *input_shape]``; result ``[R, *output_shape]``.

    Raises:
        DtypeError: the context is not floating.
        ShapeError: the context or what `func` returns has another size.

    >>> project(torch.tensor([1.0, 2.0]), lambda t: t.repeat(1, 4), (1,), (1, 2, 2)).shape
    torch.Size([2, 1, 2, 2])
    """
    if not t0.is_floating_point():
        raise DtypeError(
            "signal", "the context is not floating", expected="a floating tensor [rows, ...]", got=t0.dtype,
            fix="put LabelNumberToOnehot(num_classes) in front of the signal",
        )  # fmt: skip
    rows = as_rows(t0)
    if rows.shape[1] != shape_numel(input_shape):
        raise ShapeError(
            "signal", "the context does not have the input shape", expected=("rows", *input_shape), got=tuple(t0.shape),
            fix="input_shape=(num_classes,) for one-hot labels, (1,) for a single number",
        )  # fmt: skip
    t1 = func(rows)
    if t1.numel() != len(rows) * shape_numel(output_shape):
        raise ShapeError(
            "signal", "the context's projection does not have the output shape", expected=("rows", *output_shape),
            got=tuple(t1.shape), fix="end the context's module with shape_numel(output_shape) features",
        )  # fmt: skip
    return t1.reshape(len(rows), *output_shape)


def projection_context(
    input: Pair, func: Callable[[Tensor], Tensor], input_shape: Sequence[int], output_shape: Sequence[int]
) -> Signal:
    """The data as it is, the context projected: ``(h0, t1, h0, t0)``; see :func:`project`.

    >>> h1, t1, h0, t0 = projection_context((torch.zeros(3, 2), torch.eye(3)), lambda t: t[:, :2], (3,), (2,))
    >>> h1 is h0, t1.shape
    (True, torch.Size([3, 2]))
    """
    h0, t0 = input
    return h0, None if t0 is None else project(t0, func, input_shape, output_shape), h0, t0


def projection_context_input(
    input: Pair,
    func_context: Callable[[Tensor], Tensor],
    func_input: Callable[[Tensor], Tensor],
    input_shape: Sequence[int],
    output_shape: Sequence[int],
) -> Signal:
    """Data and context each projected: ``(h1, t1, h0, t0)``; see :func:`project`.

    Raises:
        ShapeError: the two projections differ in shape.

    >>> pair = torch.ones(3, 2), torch.eye(3)
    >>> h1, t1, h0, t0 = projection_context_input(pair, lambda t: t[:, :2], torch.neg, (3,), (2,))
    >>> h1[0], t1[0]
    (tensor([-1., -1.]), tensor([1., 0.]))
    """
    h0, t0 = input
    t1 = None if t0 is None else project(t0, func_context, input_shape, output_shape)
    h1 = func_input(h0)
    if h1.shape[1:] != torch.Size(output_shape):
        raise ShapeError(
            "signal", "the input's projection does not have the output shape", expected=("rows", *output_shape),
            got=tuple(h1.shape), fix="let output_shape be what the input's module gives for one sample",
        )  # fmt: skip
    return h1, t1, h0, t0


def fixed_draw_context(input: Pair, places: int, glyphs: Tensor | None = None) -> Signal:
    """The data as it is, the context's number as a picture like it; see :func:`imprint.functional.draw_digits`.

    >>> fixed_draw_context((torch.zeros(2, 3, 8, 8), torch.tensor([4, 2])), places=1)[1].shape
    torch.Size([2, 3, 8, 8])
    """
    h0, t0 = input
    return h0, None if t0 is None else draw_digits(t0, tuple(h0.shape[1:]), places, glyphs).to(h0.dtype), h0, t0


def _columns(t0: Tensor) -> int:
    if t0.dim() != 2:
        raise LabelError(
            "label formatter", "labels have no column a class", expected="one-hot rows (batch, classes)",
            got=tuple(t0.shape), fix="put LabelNumberToOnehot(num_classes) in front",
        )  # fmt: skip
    return t0.shape[1]


def _floating(t0: Tensor) -> torch.dtype:
    return t0.dtype if t0.is_floating_point() else torch.get_default_dtype()
