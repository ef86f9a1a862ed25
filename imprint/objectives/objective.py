"""What is wanted: a local loss over a view of one unit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from .labels import Labels
from .synapses import Synapse


@dataclass(frozen=True)
class Target:
    """The targets of one step, and where each sample's context is.

    Attributes:
        y: the user's targets.
        rows: ``[B]``, the context row that belongs to each sample; None without a context stream.
        counts: ``[R]``, labelled samples of the batch in the class of each context row.
        distinct: one context row a class (True) or a sample (False).
        x: the model's first floating input in this step, detached.
        error: of each sample's output, ``[B, ...]``: the gradient of the task loss times the number of labelled rows,
            for cross entropy softmax minus one-hot; to objectives that need it, and in rules with two passes.
    """

    y: Tensor | None = None
    rows: Tensor | None = None
    counts: Tensor | None = None
    distinct: bool = True
    x: Tensor | None = None
    error: Tensor | None = None


@dataclass(frozen=True)
class View:
    """What an objective sees of its unit, batch first.

    Attributes:
        h: output on the data, ``[B, ...]``; None if the objective does not use it.
        x: input on the data, detached.
        t: output on the context, ``[R, ...]``; None without one.
        t_in: input on the context, detached.
        context: the :class:`Target`.
        batch: everything the step was given.
        tick: number of the tick in a rollout, in a compiled one a tensor; 0 for layers.
        valid: ``[B]`` bool rows that count, or None for all.
        complete: every row is known to count and to have a label, so that nobody has to look.
        output: of a graph module, what each of its ports emits, ``{port: [B, D]}``; `h` is one of them.
        drive: of a graph module, ``{input port: [B, D]}``.
        state: of a graph module, its proto's recurrent state.
        synapses: the products with a weight that ran in the unit, for objectives that need them.
    """

    h: Any = None
    x: Any = None
    t: Any = None
    t_in: Any = None
    context: Target = Target()
    batch: Any = None
    tick: Any = 0
    valid: Tensor | None = None
    complete: bool = False
    output: dict[str, Tensor] = field(default_factory=dict)
    drive: dict[str, Tensor] = field(default_factory=dict)
    state: Any = None
    synapses: tuple[Synapse, ...] = ()


@dataclass(frozen=True)
class Spec:
    """Sizes an objective is built from: of one unit's output, without its batch dimension.

    Attributes:
        shape: of one sample's output.
        batch_dim: where the batch is in the unit's output.
        dtype, device: of the unit's weights.
        target: shape of one sample's target, ``()`` for a label.
        channels_last: are the features of a sample in the last dimension (tokens) rather than the first (maps)?
        input: shape of one sample of the model's first floating input; ``()`` if there is none.
        output: shape of one sample of the model's output.
        depth: where the unit is among the model's units, from 0 (first) to 1 (last).
    """

    shape: tuple[int, ...]
    batch_dim: int = 0
    dtype: torch.dtype = torch.float32
    device: torch.device = torch.device("cpu")
    target: tuple[int, ...] = ()
    channels_last: bool = False
    input: tuple[int, ...] = ()
    output: tuple[int, ...] = ()
    depth: float = 0.0

    @property
    def features(self) -> int:
        """Numbers in one sample's output."""
        return int(torch.Size(self.shape).numel())


def refuse_several_labels(where: str, spec: Spec, labels: Labels) -> None:
    """Refuse a label a token, and several a sample, for what compares whole samples.

    Raises:
        ArgumentError: the targets of a sample are more than one class.

    >>> refuse_several_labels("similarity", Spec((5,), target=(7,)), Labels())
    """
    if labels.num_classes is not None and spec.target != ():
        raise ArgumentError(
            where, "it needs one label a sample", expected="labels [batch]",
            got=f"targets of shape [batch, {', '.join(map(str, spec.target))}]", fix="use local_ce for a label a token",
        )  # fmt: skip


class Objective(nn.Module):
    """A local loss: ``forward(view) -> scalar``. Its parameters learn with the unit, by the unit's optimizer.

    Attributes:
        needs_labels: it cannot be computed without targets.
        needs_context: it compares with a context stream.
        uses_data: the unit's output on the data is part of it (else only the context learns).
        lag: ticks by which its target comes late.
        rowwise: a mean over rows, so that many ticks can be evaluated as one batch of rows.
        needs_state: it looks at the recurrent state.
        any_width: it maps the output to the width of its target, which may be any.
        needs_synapses: it looks at the products with a weight inside the unit.
        needs_error: it is computed once the model's output and its error are known; until then the unit's graph waits.
        held: the context stream's output is a constant to it.
        fits: it is not descended but fitted: :meth:`fit` takes in each batch.
    """

    needs_labels = True
    needs_context = False
    uses_data = True
    lag = 0
    rowwise = False
    needs_state = False
    any_width = False
    needs_synapses = False
    needs_error = False
    held = False
    fits = False

    def bind(self, spec: Spec, labels: Labels) -> None:
        """Make parameters and buffers for a unit of these sizes."""
        self.spec, self.labels = spec, labels

    def forward(self, view: View) -> Tensor:
        """The loss, a scalar."""
        raise ArgumentError(
            f"objective {type(self).__name__!r}", "it has no loss", fix="write forward(self, view) -> scalar"
        )

    def check(self, synapses: tuple[Synapse, ...]) -> None:
        """Refuse products it cannot learn from; called when it is bound, where it needs them."""

    def fit(self, view: View) -> Tensor:
        """Take in one batch, without gradient; returns the loss before it."""
        raise ArgumentError(
            f"objective {type(self).__name__!r}", "it says that it fits, and does not say how",
            fix="write fit(self, view) -> scalar",
        )  # fmt: skip

    def scores(self, view: View) -> Tensor | None:
        """``[B, num_classes]``: what this unit alone says about the label; None if it says nothing."""
        return None
