"""How an output changed between two passes, as what to learn from."""

from __future__ import annotations

from torch import Tensor

from .labels import Labels
from .objective import Objective, Spec, View, refuse_several_labels


class Perturbation(Objective):
    r""":math:`L = \mathrm{mean}_i \langle \tilde h_i, \mathrm{sg}(h_i - \tilde h_i)\rangle`.

    h is the output in the first pass, :math:`\tilde h` in the second, whose input the error has changed. With
    activations that let gradients through, the gradient with respect to a layer's weights is
    :math:`(h - \tilde h)\,\tilde h_{l-1}^\top`, averaged over labelled rows.

    Reference: Dellaferrera & Kreiman, Error-driven Input Modulation (2022), algorithm 1.
    """

    needs_context = held = True

    def bind(self, spec: Spec, labels: Labels) -> None:
        """Nothing is made; refuse several labels a sample, whose errors have no place in one input."""
        refuse_several_labels("error-driven input modulation", spec, labels)
        super().bind(spec, labels)

    def forward(self, view: View) -> Tensor:
        """The mean over labelled rows."""
        y = view.context.y
        assert y is not None
        h, first = view.h.flatten(1), view.t.flatten(1)
        return (h * (first - h).detach()).sum() / self.labels.labelled(y)
