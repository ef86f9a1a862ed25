"""The error of a first pass as what the second one starts from."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..errors import ShapeError
from .context import ClassContext
from .stream import ContextStream

Tree = Any


class ErrorInput(ContextStream):
    r"""The first floating input plus a fixed random map of the error: :math:`x + F e`.

    F is uniform in :math:`\pm s\sqrt{6/n}` for n numbers in a sample's input; for cross entropy e is softmax minus
    one-hot.

    Args:
        scale: s.
    """

    from_error = modulates = True
    feedback: Tensor

    def __init__(self, scale: float = 0.05) -> None:
        super().__init__()
        self.scale = scale

    def describe(self, inputs: Tree, dims: list[int | None], num_classes: int | None, width: int) -> dict[str, Any]:
        """Find the input to add to."""
        leaves = tree_flatten(inputs)[0]
        fits = [d is not None and v.is_floating_point() for v, d in zip(leaves, dims, strict=True)]
        if True not in fits:
            raise ShapeError(
                "the second pass", "no floating input has a batch dimension, to which an error could be added",
                expected="a floating input [batch, ...]", got=[tuple(v.shape) for v in leaves if isinstance(v, Tensor)],
                fix="embed tokens outside of the model, or choose another rule",
            )  # fmt: skip
        leaf = fits.index(True)
        dim = dims[leaf] or 0
        return {"leaf": leaf, "dim": dim, "size": tuple(leaves[leaf].movedim(dim, 0).shape[1:]), "width": width,
                "dtype": leaves[leaf].dtype}  # fmt: skip

    def build(self, record: dict[str, Any], device: torch.device) -> None:
        """Draw F, ``[width of the output, numel of an input]``."""
        self.leaf, self.dim, self.size = record["leaf"], record["dim"], tuple(record["size"])
        numel = torch.Size(self.size).numel()
        bound = self.scale * math.sqrt(6 / numel)
        drawn = torch.empty(record["width"], numel, dtype=record["dtype"], device=device).uniform_(-bound, bound)
        self.register_buffer("feedback", drawn)

    def modulated(self, inputs: Tree, error: Tensor) -> Tree:
        """``x + F e``."""
        leaves, spec = tree_flatten(inputs)
        x, flat = leaves[self.leaf].movedim(self.dim, 0), error.reshape(len(error), -1)
        if tuple(x.shape[1:]) != self.size:
            raise ShapeError(
                "the second pass", "inputs have another size than at bind, for which there is no feedback",
                expected=("batch", *self.size), got=tuple(x.shape), fix="crop or pad, or choose another rule",
            )  # fmt: skip
        added = flat.to(self.feedback.dtype) @ self.feedback
        leaves[self.leaf] = (x + added.to(x.dtype).view(x.shape)).movedim(0, self.dim)
        return tree_unflatten(leaves, spec)


class ErrorContext(ClassContext):
    r"""The context inputs of the second pass are made from the error of the first, :math:`t_0 = e W`, one a sample.

    For scoring, class k has the error of a flat prediction, :math:`1/C - \mathrm{onehot}(k)`.
    """

    from_error = True

    def codes(self, onehot: Tensor | None, rows: int, error: Tensor | None) -> tuple[Tensor, bool]:
        """The error of each sample."""
        assert error is not None
        return error.reshape(len(error), -1), False

    def candidates(self, inputs: Tree) -> Tensor | None:
        """What the error is when nothing is known."""
        classes = self.num_classes or 0
        eye = super().candidates(inputs)
        assert eye is not None
        return 1 / max(1, classes) - eye
