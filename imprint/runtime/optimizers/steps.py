"""Optimizer steps of a whole plan, over vectors that a captured block of ticks reads and writes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ...errors import ArgumentError, DtypeError, ShapeError, StateError
from .eligible import facts, why_not
from .row import Row


class Steps:
    r"""Optimizer steps of one plan as maths over the user's own state tensors.

    A captured block calls :meth:`step` for whoever is due and :meth:`hoist` at the end of each tick. What a step needs
    beside weights and gradients was computed before it, for all parameters at once: with the number :math:`t` of a
    parameter's next step, :math:`-\eta / (1 - \beta_1^t)` and :math:`\sqrt{1 - \beta_2^t}`, in float64. Each parameter
    has a count of its own, which only its own steps advance.

    Around a rollout, :meth:`load` and :meth:`store` carry lr and counts from and to the optimizers. State that torch
    has not made yet is kept aside until its parameter has stepped: ``state_dict()`` is what torch's own steps leave.

    A tensor lr in float32 counts with its exact value; torch rounds what it computes from it to float32.

    Args:
        optimizers: those of the plan; twice is once.
        device: where their parameters are.

    Attributes:
        left: why an optimizer, by its ``id``, has to step by itself.

    >>> p = torch.nn.Parameter(torch.ones(2))
    >>> optimizer = torch.optim.Adam([p], lr=0.5)
    >>> steps = Steps([optimizer], "cpu")
    >>> steps.load()
    >>> for _ in range(2):
    ...     steps.step(optimizer, {p: torch.tensor([1.0, -3.0])}, None)
    ...     steps.hoist()
    >>> steps.store()
    >>> [round(x, 4) for x in p.tolist()], optimizer.state[p]["step"].item()
    ([0.0, 2.0], 2.0)
    """

    def __init__(self, optimizers: Iterable[torch.optim.Optimizer], device: torch.device | str) -> None:
        self.device = torch.empty(0, device=device).device
        self.optimizers = list({id(o): o for o in optimizers}.values())
        reasons = {id(o): why_not(o, self.device) for o in self.optimizers}
        self.left = {which: why for which, why in reasons.items() if why}
        self._facts = self._now()
        self._of: dict[int, list[Row]] = {}
        self._rows: list[Row] = []
        for optimizer in self.optimizers:
            if id(optimizer) not in self.left:
                own = self._of[id(optimizer)] = []
                for place, group in enumerate(optimizer.param_groups):
                    own += [
                        Row(len(self._rows) + len(own) + i, optimizer, place, p) for i, p in enumerate(group["params"])
                    ]
                self._rows += own
        betas = [row.maths.betas(row.group) for row in self._rows]
        self._count, self._lr = self._vector([0.0] * len(betas)), self._vector([0.0] * len(betas))
        self._beta1, self._beta2 = self._vector([b for b, _ in betas]), self._vector([b for _, b in betas])
        self._corrects = any("root" in row.maths.scalars for row in self._rows)
        names = ("size", "root", "keep") if self._corrects else ("size",)
        dtypes = dict.fromkeys(row.param.dtype for row in self._rows)
        self._scalars = {dtype: {name: self._count.to(dtype, copy=True) for name in names} for dtype in dtypes}
        self._base = [0.0] * len(self._rows)
        self._due: dict[int, Tensor | None] = {}
        self._held: list[Tensor] = []

    def tensors(self) -> list[Tensor]:
        """All that :meth:`step` and :meth:`hoist` read or write beside weights and gradients; in the same order always.

        The addresses stay; only another state loaded into an optimizer brings others, which changes :meth:`key`.
        """
        if not self._rows:
            return []
        state = [tensor for row in self._rows for tensor in row.state().values()]
        vectors = [self._count, *[self._lr, self._beta1, self._beta2] * self._corrects]
        return state + vectors + [vector for named in self._scalars.values() for vector in named.values()]

    @torch.no_grad()
    def load(self) -> None:
        """Before a rollout: read lr and counts of steps from the optimizers, and compute what the next steps need.

        Raises:
            StateError: the optimizers are not those any more of which the steps were made, or a state does not fit.
        """
        self._due.clear()
        if self._now() != self._facts:
            what = "an optimizer has other parameters, settings or hooks than when its steps were captured"
            raise StateError("optimizers of a plan", what, fix="Steps(optimizers, device) anew, and capture anew")
        if not self._rows:
            return
        for row in self._rows:
            row.check()
            if row.state() is row.spare:
                # a rollout that failed may have left something in them
                for tensor in row.spare.values():
                    tensor.zero_()
        rates = [float(row.group["lr"]) for row in self._rows]
        self._base = self._counts()
        self._count.copy_(self._vector(self._base))
        self._lr.copy_(self._vector(rates))
        self._correct()
        if self._corrects:
            keep = self._vector(
                [1 - lr * row.maths.decay(row.group) for lr, row in zip(rates, self._rows, strict=True)]
            )
            for named in self._scalars.values():
                named["keep"].copy_(keep)
        # as long as they live, no other tensor can have their id, which is what key() compares
        self._held = self.tensors()

    def step_those(
        self, optimizers: Iterable[torch.optim.Optimizer], params: Mapping[str, Tensor], grads: Mapping[str, Tensor],
        ok: Tensor | None,
    ) -> list[tuple[torch.optim.Optimizer, list[str]]]:  # fmt: skip
        """One step of each that has maths; the others, with the names of their gradients.

        Args:
            params, grads: by name.
            ok: as in :meth:`step`.
        """
        by_param = {params[k]: g for k, g in grads.items()}
        left = []
        for optimizer in optimizers:
            if id(optimizer) not in self.left:
                self.step(optimizer, by_param, ok)
                continue
            held = {id(p) for group in optimizer.param_groups for p in group["params"]}
            left.append((optimizer, [k for k in grads if id(params[k]) in held]))
        return left

    @torch.no_grad()
    def step(self, optimizer: torch.optim.Optimizer, grads: Mapping[Tensor, Tensor], ok: Tensor | None) -> None:
        """One step of `optimizer`, for those of its parameters that have a gradient; in place.

        Args:
            grads: gradients by parameter; those of parameters of others are left alone.
            ok: where it is False, weights, state and counts keep their values; None: always step.

        Raises:
            StateError: the optimizer has to step by itself, or steps twice without :meth:`hoist`.
            ArgumentError: it is none of the plan's.
            ShapeError, DtypeError: a gradient does not fit its parameter.
        """
        rows, given = self._rows_of(optimizer), {id(p): g for p, g in grads.items() if g is not None}
        due = [row for row in rows if id(row.param) in given]
        if not due:
            return
        names = due[0].maths.scalars
        first, dtypes = rows[0].index, {row.param.dtype for row in due}
        scalars = {
            dtype: {name: self._scalars[dtype][name].narrow(0, first, len(rows)).unbind() for name in names}
            for dtype in dtypes
        }
        for row in due:
            grad, place = self._checked(row, given[id(row.param)]), row.index - first
            numbers = {name: of[place] for name, of in scalars[row.param.dtype].items()}
            state = row.state()
            moved, new = row.maths.new(row.param, grad, state, row.group, numbers)
            for old, value in [*((state[name], value) for name, value in new.items()), (row.param, moved)]:
                old.copy_(value if ok is None else torch.where(ok, value, old))
            self._due[row.index] = ok

    @torch.no_grad()
    def hoist(self) -> None:
        """At the end of a tick: count its steps, and compute what the next steps need."""
        if not self._due:
            return
        runs = groupby(range(len(self._rows)), key=lambda i: (i in self._due, id(self._due.get(i))))
        pieces = [(steps, len(places := list(run)), self._due.get(places[0])) for (steps, _), run in runs]
        self._due.clear()
        if len(pieces) == 1:
            self._count.add_(1 if pieces[0][2] is None else pieces[0][2])
        else:
            # one addition for all: in-place slices of one vector make compilers write a loop for each
            none, one = self._count.new_zeros(()), self._count.new_ones(())
            cast = {id(ok): ok.to(none.dtype) for _, _, ok in pieces if ok is not None}
            values = [(cast.get(id(ok), one) if steps else none).expand(size) for steps, size, ok in pieces]
            self._count.add_(torch.cat(values))
        if self._corrects:
            self._correct()

    @torch.no_grad()
    def store(self) -> None:
        """After a rollout: write the counts of steps, and state that torch had not made yet, into the optimizers.

        Raises:
            StateError: steps were not counted, for want of :meth:`hoist`.
        """
        if self._due:
            raise StateError("optimizers of a plan", "steps are not counted yet", fix="steps.hoist() before store()")
        if not self._rows:
            return
        for row, steps, before in zip(self._rows, self._count.tolist(), self._base, strict=True):
            if steps != before:
                row.keep(steps)
                # what torch's schedulers look at before they warn of being called too early
                row.optimizer._opt_called = True  # type: ignore[attr-defined]

    def key(self) -> tuple[Any, ...]:
        """What a capture bakes in: if it changes, the capture is stale. The lr is not among it."""
        state = [tensor for row in self._rows for tensor in row.state().values()]
        return self._now(), tuple((id(tensor), tensor.data_ptr()) for tensor in state)

    def _now(self) -> tuple[Any, ...]:
        reasons = [(o, why_not(o, self.device)) for o in self.optimizers]
        return tuple((id(o), why or facts(o)) for o, why in reasons)

    def _vector(self, values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=self.device)

    def _counts(self) -> list[float]:
        """Steps of each row up to now, with one read of each device that holds counts."""
        counts = [0.0] * len(self._rows)
        held = [(row.index, row.own["step"]) for row in self._rows if row.maths.counts and row.own]
        for device in {step.device for _, step in held}:
            here = [(i, step.reshape(()).to(torch.float64)) for i, step in held if step.device == device]
            for (i, _), count in zip(here, torch.stack([step for _, step in here]).tolist(), strict=True):
                counts[i] = count
        return counts

    def _correct(self) -> None:
        t, size, root = self._count + 1, -self._lr, None
        if self._corrects:
            size, root = -(self._lr / (1 - self._beta1**t)), (1 - self._beta2**t).sqrt()
        for named in self._scalars.values():
            named["size"].copy_(size)
            if root is not None:
                named["root"].copy_(root)

    def _rows_of(self, optimizer: torch.optim.Optimizer) -> list[Row]:
        where = f"step of {type(optimizer).__name__}"
        if why := self.left.get(id(optimizer)):
            raise StateError(where, f"it has to step by itself: {why}", fix="optimizer.step() after the block")
        if id(optimizer) not in self._of:
            raise ArgumentError(where, "the optimizer is none of the plan's", fix="Steps([..., optimizer], device)")
        return self._of[id(optimizer)]

    def _checked(self, row: Row, grad: Tensor) -> Tensor:
        p = row.param
        if row.index in self._due:
            raise StateError(row.where, "it stepped already in this tick", fix="steps.hoist() after each tick")
        if grad.layout is not torch.strided or grad.dtype != p.dtype:
            got = f"{grad.layout}, {grad.dtype}"
            fix = "a dense gradient of the parameter's dtype"
            raise DtypeError(row.where, "its gradient is of another kind", expected=p.dtype, got=got, fix=fix)
        if grad.shape != p.shape:
            sizes = {"expected": tuple(p.shape), "got": tuple(grad.shape)}
            raise ShapeError(
                row.where, "its gradient has other sizes", **sizes, fix="torch.autograd.grad(loss, params)"
            )
        return grad
