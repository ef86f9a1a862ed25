"""Which targets are due when: declared objectives against one rollout's batch and schedule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import ArgumentError, DataError, LabelError, NonFiniteError, ShapeError, StateError
from ..objectives import BatchKey, Head, PortDrive, PortOutput, ShiftedInput, Term
from ..objectives.declared import CrossEntropy, InfoNCE, MeanSquare
from .module import Module

if TYPE_CHECKING:
    from .rollout import Rollout

FINITE = (CrossEntropy, Head, InfoNCE, MeanSquare)
"""For these NaN in a target is no target; an objective of the user's own may mean "missing" by it."""


@dataclass
class Due:
    """One term over the emissions of one rollout.

    Attributes:
        ticks: emission ticks of the module.
        y: ``[E, B, …]`` targets from the batch, or None where `read` finds them as the rollout goes, or there are none.
        read: ``(rollout, tick) -> [B, …]`` for targets that other ports hold.
        valid: ``[E, B]`` pairs that count, or None for all.
        counts: ``[E]`` how much each emission weighs in a mean; None if all weigh alike.
        batch: what the rollout was given.
        lag: ticks after which a target that comes from another port is there.
        facts: what :attr:`alive` and :attr:`whole` say, once they are known.
    """

    name: str
    module: Module
    term: Term
    ticks: list[int]
    y: Tensor | None = None
    read: Callable[[Rollout, int], Tensor] | None = None
    valid: Tensor | None = None
    counts: Tensor | None = None
    lag: int = 0
    batch: Any = None
    facts: tuple[list[bool], list[bool]] | None = None

    @property
    def alive(self) -> list[bool]:
        """Of each emission: does any pair count?"""
        return self._facts()[0]

    @property
    def whole(self) -> list[bool]:
        """Of each emission: do all pairs count?"""
        return self._facts()[1]

    def tick(self, emission: int) -> int:
        """When that was, as objectives are told."""
        return self.ticks[emission]

    def _facts(self) -> tuple[list[bool], list[bool]]:
        """Read once, since reading waits for the device."""
        if self.facts is None:
            if self.valid is None:
                self.facts = [True] * len(self.ticks), [True] * len(self.ticks)
            else:
                self.facts = self.valid.any(1).tolist(), self.valid.all(1).tolist()
        return self.facts


def make_due(run: Rollout, module: Module, name: str, term: Term) -> Due:
    """Line the targets of one term up with the emissions of `run`.

    Raises:
        DataError: a missing batch key; lists those that are there.
        ShapeError: targets that fit no reading; gives both shapes.
        LabelError: labels out of range, or no probabilities.
        NonFiniteError: targets that are NaN or infinite.
    """
    ticks = run.emission_ticks(module.name)
    where = f"module {module.name!r}, objective {term.name!r}"
    if not ticks and term.data and not run.streaming:
        raise ArgumentError(
            where, "its module never emits in this rollout", expected=f"an emission within {run.ticks} ticks",
            got=run.schedule.pace[module.name], fix="emit more often, or roll out longer sequences",
        )  # fmt: skip
    due = Due(name, module, term, ticks, batch=run.batch)
    length = run.valid_at(ticks)
    target = term.target
    if isinstance(target, BatchKey):
        y, labelled = _from_batch(run, module, term, ticks, where)
        due.y = y
        length = _both(length, labelled)
    elif isinstance(target, ShiftedInput):
        length = _both(length, _shifted(run, due, target))
    elif isinstance(target, PortDrive):
        due.read = _reader(run, f"{target.module.name}.{target.port}:drive", 0, where)
    elif isinstance(target, PortOutput):
        due.read = _reader(run, f"{target.module.name}.{target.port}", target.shift, where)
        due.lag = target.shift
        if target.shift and not run.streaming:
            length = _both(length, run.valid_at([t + target.shift for t in ticks]))
    if term.at == "last" and run.streaming:
        raise StateError(
            where, "a stream has no last emission", got="at='last'", expected="at='all'",
            fix="graph.eval() to run without learning, or graph.rollout(batch) with whole sequences",
        )  # fmt: skip
    if term.at == "last":
        length = run.last_of(ticks) if length is None else length & run.last_of(ticks)
    due.valid = length
    if isinstance(target, BatchKey) and due.y is not None:
        due.y = _shown(due, due.y, where, run.offset)
    if length is not None:
        due.counts = length.sum(1).to(run.dtype)
    weight = None if term.labels is None else term.labels.weight
    if weight is not None and due.y is not None and not due.y.is_floating_point():
        shown = weight.to(device=run.device, dtype=run.dtype)[due.y.clamp_min(0)]
        due.counts = (shown if length is None else shown * length).sum(1)
    return due


def _both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a & b


def _reader(run: Rollout, key: str, shift: int, where: str) -> Callable[[Rollout, int], Tensor]:
    if key not in run.signals:
        raise ArgumentError(where, "its target is no port of this graph", got=key, fix="a port that graph.sizes lists")
    return lambda now, tick: now.value(key, tick + shift).detach()


def _shifted(run: Rollout, due: Due, target: ShiftedInput) -> Tensor | None:
    """Targets from a source's own batch, inside the row's length; returns which pairs have one."""
    source = run.sources.get(target.source.name)
    if source is None:
        raise ArgumentError(
            f"module {due.module.name!r}", "shifted_input needs a source of this graph", got=target,
            expected=f"one of {', '.join(run.sources)}", fix="graph.add(source)",
        )  # fmt: skip
    if run.streaming:
        if target.shift < 0:
            raise StateError(
                f"module {due.module.name!r}, objective {due.term.name!r}", "a stream does not keep its past inputs",
                expected="a shift of 0, 1, …", got=target, fix="a batch key with the target of each tick, or rollouts",
            )  # fmt: skip
        due.read, due.lag = _reader(run, f"{target.source.name}.out", target.shift, due.name), target.shift
        return None
    at = [t + target.shift - run.offset for t in due.ticks]
    index = [min(max(t, 0), run.ticks - 1) for t in at]
    due.y = source[:, torch.tensor(index, device=run.device)].transpose(0, 1)
    valid = run.valid_at([t + run.offset for t in index])
    if at != index:
        inside = torch.tensor([t == i for t, i in zip(at, index, strict=True)], device=run.device)
        valid = _both(valid, inside[:, None].expand(-1, run.rows))
    if due.term.kind == "masked_mse":
        hidden = run.hidden[target.source.name]
        shown = torch.zeros(run.rows, run.ticks, dtype=torch.bool, device=run.device) if hidden is None else hidden
        valid = _both(valid, shown[:, torch.tensor(index, device=run.device)].T)
    return valid


def _from_batch(run: Rollout, module: Module, term: Term, ticks: list[int], where: str) -> tuple[Tensor, Tensor | None]:
    assert isinstance(term.target, BatchKey)
    key = term.target.key
    if key not in run.batch:
        raise DataError(
            where,
            f"the batch has no key {key!r}",
            got=sorted(map(str, run.batch)),
            fix=f"batch[{key!r}], or another target",
        )
    y = run.batch[key]
    if not isinstance(y, Tensor) or y.dim() == 0 or len(y) != run.rows:
        got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise ShapeError(where, f"batch[{key!r}] has no row for every input", expected=(run.rows, "…"), got=got,
                         fix="a tensor with one target a row")  # fmt: skip
    labels = term.labels
    if labels is None or (labels.num_classes is None and term.kind != "ce"):
        width = run.size(f"{module.name}.{term.on}")
        if term.objective.any_width:
            width = term.objective.spec.target
        return _lined_up(run, module, term, y, ticks, width, where), None
    if y.is_floating_point():
        return _lined_up(run, module, term, y, ticks, labels.num_classes, where), None
    if not torch.compiler.is_compiling():
        try:
            labels.check(y, where)
        except (LabelError, ShapeError) as error:
            error.fix = error.fix and "check the labels, or give ce(num_classes=…)"
            raise
    made = _lined_up(run, module, term, y, ticks, None, where).long()
    labelled = made != labels.ignore_index
    return made, None if made.device.type == "cpu" and bool(labelled.all()) else labelled


def _shown(due: Due, y: Tensor, where: str, offset: int) -> Tensor:
    """Floating targets ``[E, B, …]``, zero where they do not count; the others checked on the CPU, stalling nothing."""
    if not y.is_floating_point() or not due.ticks:
        return y
    term, whole = due.term, y.stride(0) == 0  # one a row, which counts at some emission
    if due.valid is not None and not whole:
        y = y.masked_fill(~due.valid.view(*due.valid.shape, *[1] * (y.dim() - 2)), 0)
    if y.device.type != "cpu" or torch.compiler.is_compiling():
        return y
    looked, soft = y[:1] if whole else y, term.labels is not None and term.labels.soft(y)
    if (soft or isinstance(term.objective, FINITE)) and not bool(looked.isfinite().all()):
        e, row = (~looked.isfinite().flatten(2).all(2)).nonzero()[0].tolist()
        raise NonFiniteError(
            where, f"batch[{term.target.key!r}] is not finite", expected="finite targets",  # type: ignore[union-attr]
            got=f"row {row}" if whole else f"row {row}, tick {due.ticks[e] - offset}",
            fix="clean the data; ce(ignore_index=) knows labels that are missing",
        )  # fmt: skip
    if soft and term.labels is not None:
        try:
            term.labels.check(looked.flatten(0, 1), where)
        except LabelError as error:
            error.fix = "y.softmax(-1) makes probabilities of scores; objectives.add(fn) takes a loss of your own"
            raise
    return y


def _lined_up(run: Rollout, module: Module, term: Term, y: Tensor, ticks: list[int], width: Any, where: str) -> Tensor:
    """``[E, B, …]``: one target a row, one an emission, one a tick, or one a period of another module."""
    emissions, feature = len(ticks), (() if width is None else tuple(width) if isinstance(width, tuple) else (width,))
    if tuple(y.shape[1:]) == feature or (feature == (1,) and y.dim() == 1):
        whole = y.reshape(run.rows, *feature)
        return whole[None].expand(emissions, *whole.shape)
    if feature == (1,) and y.dim() == 2:
        y = y[..., None]
    if tuple(y.shape[2:]) == feature and y.dim() >= 2:
        if run.streaming and y.shape[1] == 1:
            return y.transpose(0, 1).expand(emissions, *y.shape[:1], *y.shape[2:])
        if y.shape[1] == emissions:
            return y.transpose(0, 1)
        if y.shape[1] == run.full_ticks:
            return y[:, torch.tensor([t - run.offset for t in ticks], device=y.device)].transpose(0, 1)
        whole_batch = run.schedule.emission_ticks(module.name, run.offset, run.offset + run.full_ticks)
        if y.shape[1] == len(whole_batch):  # labels also for emissions past the longest row
            return y[:, :emissions].transpose(0, 1)
        held = _held_labels(run, y.shape[1], ticks)
        if held is not None:
            return y[:, torch.tensor(held, device=y.device)].transpose(0, 1)
    one = ", ".join(map(str, ("B", *feature)))
    raise ShapeError(
        where, f"batch[{term.target.key!r}] does not fit the emissions",  # type: ignore[union-attr]
        expected=f"[{one}], or [B, {emissions} emissions or {run.full_ticks} ticks{', ' if feature else ''}"
        f"{', '.join(map(str, feature))}]; the output is {(run.rows, emissions, *run.shape(module, term.on))}",
        got=tuple(y.shape), fix="give one target a row, an emission or a tick, or ce(at='last') with one a row; a loss "
        "of your own finds it as it is in view.batch",
    )  # fmt: skip


def _held_labels(run: Rollout, count: int, ticks: list[int]) -> list[int] | None:
    """The label sequence of another module's cadence, held over its period."""
    for name in run.graph.order:
        if name in run.sources:
            continue
        theirs = run.schedule.emission_ticks(name, run.offset, run.offset + run.full_ticks)
        if len(theirs) == count:
            return [min(sum(s < t for s in theirs), count - 1) for t in ticks]
    return None


def resolve_labels(term: Term, num_classes: int | None) -> None:
    """Give a term the number of classes it was not told."""
    if term.labels is not None and term.labels.num_classes is None and num_classes is not None:
        term.labels = replace(term.labels, num_classes=num_classes)
