"""Signal propagation: the target travels forward through the same weights as the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..objectives import Contrast, Objective
from ..signals.context import ClassContext
from ..signals.stream import ContextStream
from .rule import Rule, register_rule


@register_rule("sigprop")
@dataclass(frozen=True)
class SigProp(Rule):
    r"""Signal propagation: each output should resemble the output for its own class, :math:`\mathrm{CE}(z, y)`,
    :math:`z_{ik} = s(h_i, t_k)`.

    h is the unit's output on the data, :math:`t_k` on the context of class k, which entered the model in place of an
    input. Both pass through the same weights, and both are learned from.

    Args:
        loss: ``"v1"`` (labels), ``"v9"``, ``"v14"`` or ``"v15"``: how classes weigh in the batch;
            see :class:`imprint.objectives.Contrast`.
        similarity: ``"cosine"``, ``"dot"`` or ``"l2"``.
        temperature: divides the similarity.
        k: of v15, and of no other; None is 5.
        learned: learn the context inputs, of a torch model; else they keep their random start.

    On a graph the context is a signal beside the data, on every port and at every tick; modules that declare a data
    objective keep it, and the others contrast. Inference needs no context; of an attached model
    ``manager.predict(x, by="local")`` picks the nearest one.

    Optimizer: Adam, lr 5e-4.

    Reference: Kohan, Rietman & Siegelmann, Signal Propagation (2022), sections 3 and 4.
    Differs from the paper: one context row a class; it enters at the model's input; positives are the labels;
    similarity with a temperature; in the context pass running statistics are not updated.
    """

    worlds: ClassVar[tuple[str, ...]] = ("layers", "graph")
    loss: str = "v1"
    similarity: str = "cosine"
    temperature: float = 0.1
    k: int | None = None
    learned: bool = False

    def __post_init__(self) -> None:
        self.objective()

    def objective(self) -> Objective:
        """The contrast with the context rows."""
        return Contrast(self.loss, self.similarity, self.temperature, self.k)

    def filling(self) -> str:
        """The contrast with the signal that runs through the same modules."""
        return "contrast"

    def stream(self) -> ContextStream:
        """One context input a class."""
        return ClassContext(self.learned)
