"""Labels written into the input: forward-forward's positives and negatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..errors import ShapeError
from .stream import ContextStream

Tree = Any


class LabelOverlay(ContextStream):
    """The label overlaid on the first `num_classes` values of each sample of the first floating input.

    Those values are zeroed and the label's one is set to the largest value seen at bind; the neutral label sets all of
    them to maximum / num_classes. Negatives carry a label drawn evenly from the wrong ones, never the true one.

    Reference: Hinton, The Forward-Forward Algorithm (2022), section 3.3.
    """

    def describe(self, inputs: Tree, dims: list[int | None], num_classes: int | None, width: int) -> dict[str, Any]:
        """Find the input to write on and the value to write."""
        leaves = tree_flatten(inputs)[0]
        fits = [d == 0 and v.is_floating_point() for v, d in zip(leaves, dims, strict=True)]
        leaf = fits.index(True) if True in fits else -1
        if leaf < 0 or num_classes is None or leaves[leaf][0].numel() < num_classes:
            raise ShapeError(
                "forward_forward's label overlay", "no floating input [batch, ...] is wide enough for the label",
                expected=f"class labels, and at least {num_classes} values a sample",
                got=[tuple(v.shape) for v in leaves if isinstance(v, Tensor)], fix="flatten or widen the input",
            )  # fmt: skip
        return {"leaf": leaf, "num_classes": num_classes, "high": leaves[leaf].max().item()}

    def build(self, record: dict[str, Any], device: torch.device) -> None:
        """Keep what :meth:`describe` found."""
        self.leaf, self.num_classes, self.high = record["leaf"], record["num_classes"], record["high"]

    def write(self, inputs: Tree, onehot: Tensor) -> Tree:
        """`inputs` with ``onehot * max`` over the first values; rows are repeated to fill ``len(onehot)``."""
        leaves, spec = tree_flatten(inputs)
        times = len(onehot) // len(leaves[self.leaf])
        made = []
        for i, v in enumerate(leaves):
            if isinstance(v, Tensor) and v.dim() and len(v) == len(leaves[self.leaf]):
                v = v.repeat(times, *[1] * (v.dim() - 1))
            if i == self.leaf:
                flat = v.flatten(1)
                flat[:, : self.num_classes] = onehot.to(v.dtype) * self.high
                v = flat.view(v.shape)
            made.append(v)
        return tree_unflatten(made, spec)

    def data(self, inputs: Tree) -> Tree:
        """The data pass carries the neutral label."""
        v = tree_flatten(inputs)[0][self.leaf]
        return self.write(inputs, v.new_full((len(v), self.num_classes), 1 / self.num_classes))

    def codes(self, onehot: Tensor | None, rows: int, error: Tensor | None) -> tuple[Tensor, bool]:
        """True labels, then as many wrong ones, ``[2 B, num_classes]``."""
        assert onehot is not None
        true = onehot.argmax(1)
        wrong = (true + torch.randint(1, self.num_classes, true.shape, device=true.device)) % self.num_classes
        classes = torch.arange(self.num_classes, device=true.device)
        return (torch.cat([true, wrong])[:, None] == classes).to(onehot.dtype), False

    def candidates(self, inputs: Tree) -> Tensor | None:
        """Every label for every sample, class by class, ``[num_classes * B, num_classes]``."""
        v = tree_flatten(inputs)[0][self.leaf]
        eye = torch.eye(self.num_classes, dtype=v.dtype, device=v.device)
        return eye.repeat_interleave(len(v), 0)

    def forward(self, inputs: Tree, codes: Tensor) -> Tree:
        """Context inputs with one row a code."""
        return self.write(inputs, codes)
