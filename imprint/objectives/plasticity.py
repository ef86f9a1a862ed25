"""Hebbian rules as losses: the gradient with respect to a weight is minus its change."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ArgumentError, ShapeError
from ..functional.plasticity import by_group, outer_sum
from ..utils import is_number
from .objective import Objective, View
from .synapses import Synapse


class Plasticity(Objective):
    r""":math:`L = -\sum_W \langle W, \mathrm{sg}(\Delta W)\rangle` over the unit's weights W, whose gradient is
    :math:`-\Delta W`.

    :math:`\Delta w_i = \mathrm{mean}_n\,(s_{ni}\,x_n - d_{ni}\,w_i)`: x is what a linear map is given, or each patch of
    a convolution; u what it makes of it, bias included, before any activation; s what takes part in the change and d
    how much of the weight is forgotten. The mean runs over rows, tokens and positions. Weights inside one unit do not
    hear of each other; other parameters, biases among them, stay as they are.

    Subclasses write :meth:`post` and, if something is forgotten, :meth:`decay`.

    Shape: u ``[N, groups, units, positions]``; units of one group at one position may compete.

    Raises:
        ArgumentError: no weight of the unit was multiplied with anything.

    Reference: Miconi, Hebbian learning with gradients: Hebbian convolutional neural networks with modern deep learning
    frameworks (2021), section 3, for losses that have these gradients.
    Differs from the paper: the change itself is in the loss; means, not sums.
    """

    needs_labels, needs_synapses = False, True

    def post(self, u: Tensor) -> Tensor:
        """s, shaped like u."""
        raise ArgumentError(
            f"objective {type(self).__name__!r}", "it does not say what takes part", fix="write post(self, u)"
        )

    def decay(self, s: Tensor, u: Tensor) -> Tensor | None:
        """d, shaped like u; None forgets nothing."""
        return None

    @torch.no_grad()
    def change(self, synapse: Synapse) -> Tensor:
        r""":math:`\Delta W` of one weight."""
        weight, o = synapse.weight.detach(), synapse.operation
        u = by_group(synapse.out.detach().to(weight.dtype), o.dims, o.groups)
        s = self.post(u)
        with torch.autocast(weight.device.type, enabled=False):
            x = synapse.x.to(weight.dtype)
            grown = outer_sum(x, s, weight, o.dims, o.stride, o.padding, o.dilation, o.groups)
        d = self.decay(s, u)
        if d is not None:
            grown = grown - d.sum((0, 3)).view(-1, *[1] * (weight.dim() - 1)) * weight
        return grown / (len(u) * u.shape[3])

    def check(self, synapses: tuple[Synapse, ...]) -> None:
        """Refuse units without a product to learn from, and products in which too few compete."""
        if not synapses:
            raise ArgumentError(
                f"objective {type(self).__name__!r}", "no weight of the unit that learns is multiplied with anything",
                expected="a linear map or a convolution, called as such",
                fix="leave the unit out of layers=, or give it the rule imprint.Frozen()",
            )  # fmt: skip
        for synapse in synapses:
            self.change(synapse)

    def forward(self, view: View) -> Tensor:
        """The loss."""
        if not view.synapses:
            self.check(())
        return -torch.stack([(s.weight * self.change(s).detach()).sum() for s in view.synapses]).sum()


class Hebb(Plasticity):
    r""":math:`\Delta w = u\,x`."""

    def post(self, u: Tensor) -> Tensor:
        """The output."""
        return u


class Oja(Plasticity):
    r""":math:`\Delta w = u\,(x - u\,w)`."""

    def post(self, u: Tensor) -> Tensor:
        """The output."""
        return u

    def decay(self, s: Tensor, u: Tensor) -> Tensor:
        """Its square."""
        return u.square()


class Instar(Plasticity):
    r""":math:`\Delta w = \max(u, 0)\,(x - w)`."""

    def post(self, u: Tensor) -> Tensor:
        """What is active."""
        return u.relu()

    def decay(self, s: Tensor, u: Tensor) -> Tensor:
        """The same."""
        return s


class Ranked(Plasticity):
    r""":math:`\Delta w = g\,(x - u\,w)`, where g is 1 for the strongest unit, :math:`-\Delta` for the k-th, else 0.

    Args:
        k: rank of the unit that is pushed away.
        delta: how much.

    Raises:
        ArgumentError: k is no rank from 2, or delta no number from 0.
        ShapeError: fewer than k units compete.
    """

    def __init__(self, k: int = 2, delta: float = 0.4) -> None:
        super().__init__()
        if isinstance(k, bool) or not isinstance(k, int) or k < 2:
            raise ArgumentError("krotov", "k is no rank from 2", got=repr(k), fix="k=2")
        if not is_number(delta) or delta < 0:
            raise ArgumentError("krotov", "delta is no number from 0", got=repr(delta), fix="delta=0.4")
        self.k, self.delta = k, delta

    def post(self, u: Tensor) -> Tensor:
        """g."""
        if u.shape[2] < self.k:
            raise ShapeError(
                "krotov", f"fewer than k={self.k} units compete", expected=f"at least {self.k}", got=u.shape[2],
                fix="a wider layer, fewer groups, or a smaller k",
            )  # fmt: skip
        first = u.topk(self.k, 2).indices
        pushed = torch.zeros_like(u).scatter_(2, first[:, :, -1:], -self.delta)
        return pushed.scatter_(2, first[:, :, :1], 1.0)

    def decay(self, s: Tensor, u: Tensor) -> Tensor:
        """So that the weights of units that win come to length one."""
        return s * u


class SoftCompetition(Plasticity):
    r""":math:`\Delta w_i = y_i\,(x - u_i\,w_i)`, with :math:`p = \mathrm{softmax}(\beta u)` and :math:`y_i = p_i` for
    the strongest unit, :math:`-p_i` for the others.

    Args:
        beta: how sharply units compete.

    Raises:
        ArgumentError: beta is no positive number.
    """

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        if not is_number(beta) or beta <= 0:
            raise ArgumentError("softhebb", "beta is no positive number", got=repr(beta), fix="beta=1.0")
        self.beta = beta

    def post(self, u: Tensor) -> Tensor:
        """y."""
        p = (self.beta * u).softmax(2)
        return (-p).scatter(2, winner := u.argmax(2, keepdim=True), p.gather(2, winner))

    def decay(self, s: Tensor, u: Tensor) -> Tensor:
        """So that the weights of units that win come to length one."""
        return s * u
