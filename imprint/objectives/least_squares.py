"""A local linear head that is solved for, not descended."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..functional.pooling import pool_features, pooled_width
from ..utils import is_number
from .labels import Labels
from .objective import Objective, Spec, View, refuse_several_labels


class LeastSquares(Objective):
    r"""Head :math:`W = (X^\top X + \lambda I)^{-1} X^\top Y` over all rows seen so far, exact after every batch.

    X are pooled outputs, Y one-hot labels (or values). The inverse P is kept and updated by each batch:
    :math:`K = P X^\top (S^{-1} + X P X^\top)^{-1}`, :math:`W \leftarrow W + K (Y - X W)`,
    :math:`P \leftarrow P - K X P`, where S are the rows' class weights; rows without a label do not count. All of it is
    done in float64. A row that comes again, in a second epoch, counts again.

    Args:
        ridge: λ, above zero.
        limit: most features after average pooling; P takes 8 limit² bytes.

    Shape: scores ``[B, C]``: softmax of X W for classes, so that sums over layers weigh them alike.

    Reference: Zhao et al., The Cascaded Forward Algorithm for Neural Network Training (2023), section 3.2.
    Differs from the paper: a small ridge, batch by batch; features are pooled down to `limit`.
    """

    fits = any_width = True
    weight: Tensor
    inverse: Tensor

    def __init__(self, ridge: float = 1e-3, limit: int = 2048) -> None:
        super().__init__()
        if not is_number(ridge) or not ridge > 0:
            raise ArgumentError("least squares", "ridge= must be positive", got=repr(ridge), fix="ridge=1e-3")
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ArgumentError(
                "least squares", "limit must be a whole number from 1", got=repr(limit), fix="limit=2048"
            )
        self.ridge, self.limit = float(ridge), limit

    def bind(self, spec: Spec, labels: Labels) -> None:
        """W is zero, and P is the inverse of the ridge."""
        refuse_several_labels("least squares", spec, labels)
        super().bind(spec, labels)
        width = pooled_width(spec.shape, self.limit, spec.channels_last)
        out = labels.num_classes or torch.Size(spec.target).numel()
        self.register_buffer("weight", torch.zeros(width, out, dtype=torch.float64, device=spec.device))
        inverse = torch.eye(width, dtype=torch.float64, device=spec.device) / self.ridge
        self.register_buffer("inverse", inverse)

    def _apply(self, fn: Any, recurse: bool = True) -> LeastSquares:
        """Follow to another device; never to another precision."""
        for name, b in self._buffers.items():
            if b is not None:
                self._buffers[name] = b.to(fn(b.new_empty(0)).device)
        return self

    def features(self, view: View) -> Tensor:
        """X, ``[B, D]``."""
        return pool_features(view.h, self.limit, channels_last=self.spec.channels_last).to(self.weight.dtype)

    @torch.no_grad()
    def fit(self, view: View) -> Tensor:
        """Take in a batch; returns the mean square error of W before it."""
        y, x = view.context.y, self.features(view)
        assert y is not None
        share = self.labels.share(y, x[:, 0])
        wanted = (
            y.to(x.dtype).view(len(y), -1) if self.labels.num_classes is None else self.labels.smoothed(y).to(x.dtype)
        )
        known = share > 0
        x, error = x * known[:, None], (wanted - x @ self.weight) * known[:, None]
        # rows with weight s are as if divided by a noise of 1/s; what does not count is zero in x
        noise = torch.diag(1 / share.where(known, 1.0))
        gain = torch.linalg.solve_ex(noise + x @ self.inverse @ x.T, x @ self.inverse).result.T  # positive definite
        self.weight += gain @ error
        self.inverse -= gain @ (x @ self.inverse)
        return self.labels.mean(error.square().mean(1), y).to(view.h.dtype)

    def scores(self, view: View) -> Tensor:
        """What X W says about the classes."""
        with torch.no_grad():
            made = (self.features(view) @ self.weight).to(view.h.dtype)
        return made if self.labels.num_classes is None else made.softmax(1)
