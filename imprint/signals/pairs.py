"""Pairs of samples: a sample with itself, and with another one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..errors import ShapeError
from .stream import ContextStream

Tree = Any


class PairStream(ContextStream):
    r"""Positives :math:`(x_k + x_k)/2 = x_k`, then negatives :math:`(x_k + x_n)/2`, n another sample of the batch.

    Other inputs with a batch dimension are repeated. Targets are not needed.

    Reference: Chen et al., Self-Contrastive Forward-Forward Algorithm (2025), figure 1.
    Differs from the paper: the two parts of a pair share their weights in the first layer (they are added, not put
    side by side), so that the model keeps its size.
    """

    needs_labels = False

    def describe(self, inputs: Tree, dims: list[int | None], num_classes: int | None, width: int) -> dict[str, Any]:
        """Find the input that is mixed."""
        leaves = tree_flatten(inputs)[0]
        fits = [d == 0 and v.is_floating_point() for v, d in zip(leaves, dims, strict=True)]
        if True not in fits:
            raise ShapeError(
                "pairs", "no floating input [batch, ...] could be mixed with that of another sample",
                expected="a floating input", got=[tuple(v.shape) for v in leaves if isinstance(v, Tensor)],
                fix="embed tokens outside of the model, or choose another rule",
            )  # fmt: skip
        return {"leaf": fits.index(True), "dims": list(dims)}

    def build(self, record: dict[str, Any], device: torch.device) -> None:
        """Keep what :meth:`describe` found."""
        self.leaf, self.dims = record["leaf"], record["dims"]

    def codes(self, onehot: Tensor | None, rows: int, error: Tensor | None) -> tuple[Tensor, bool]:
        """For each sample another one, drawn evenly; itself if it is alone."""
        shift = torch.randint(1, max(2, rows), (rows,))
        return (torch.arange(rows) + shift) % max(1, rows), False

    def forward(self, inputs: Tree, codes: Tensor) -> Tree:
        """Context inputs with two rows a sample."""
        leaves, spec = tree_flatten(inputs)
        made = []
        for i, (v, dim) in enumerate(zip(leaves, self.dims, strict=True)):
            if i == self.leaf:
                v = torch.cat([v, (v + v[codes.to(v.device)]) / 2])
            elif dim is not None:
                v = torch.cat([v, v], dim)
            made.append(v)
        return tree_unflatten(made, spec)
