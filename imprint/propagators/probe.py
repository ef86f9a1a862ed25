"""What a learning step shows of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from ..credit import Params, Tree
from ..objectives import Labels, Target

if TYPE_CHECKING:
    from .propagator import Propagator


class Learner(Protocol):
    """Who runs the steps, as far as a probe may look: a manager.

    Attributes:
        model: what is trained.
        labels: how its targets are read.
        gathered: batches since the last update, with the present one.
        steps: learning steps taken, without the present one.
    """

    model: nn.Module
    gathered: int
    steps: int

    @property
    def labels(self) -> Labels:
        """How targets are read."""

    def task_loss(self, output: Any, y: Tensor) -> Tensor:
        """The loss of the model's output."""


class Probe:
    """Watches a learning step; every method may be left as it is.

    In the order of a step: ``started`` once, then for each unit that learns ``learned``, ``updating`` and ``updated``,
    and ``emitted`` where it runs on the data; what learns from the model's output comes last. Where batches are
    gathered, all updates come at the end of the last one.

    Values stay tensors on their device until they are read: a probe never makes the host wait during a step, draws no
    random numbers and writes to nothing that the step reads.
    """

    def started(self, learner: Learner, x: Any, y: Tensor | None) -> None:
        """A step on inputs `x` (as the user gave them) and targets `y` begins; the weights are those of before it."""

    def emitted(self, prop: Propagator, out: Tree, y: Target) -> None:
        """The unit of `prop` ran on the data, learning or not, and `out` (which may have a graph) goes on."""

    def learned(self, prop: Propagator, x: Tree, out: Tree, y: Tree, loss: Tensor) -> None:
        """`prop` ran on input `x`, emitted `out` and found this `loss` (detached) against the targets `y`."""

    def updating(self, prop: Propagator, grads: Params) -> None:
        """The optimizers of `prop` are about to step with `grads` (before clipping)."""

    def updated(self, prop: Propagator, grads: Params) -> None:
        """The optimizers of `prop` have stepped."""
