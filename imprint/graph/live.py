"""Gradient groups whose credit reaches back in time: autograd over a block of ticks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..credit import Params, eager
from ..errors import NonFiniteError
from ..propagators import Propagator
from .agenda import Agenda
from .evaluate import term_loss
from .rollout import Rollout, both
from .unit import GraphUnit
from .within import members_within


class LiveGroup:
    """A gradient group under ``Window(k)`` or ``Unrolled``: its modules run as plain autograd sees them, and the loss
    of a block is differentiated when the block is over.

    The tape itself is kept for the block, where a compiled tick replays it; the numbers are the same.

    Args:
        unit: the modules of the group with their terms.
        prop: what learns.
        update: a number of ticks, or ``"rollout"``.
    """

    def __init__(self, unit: GraphUnit, prop: Propagator, update: str | int) -> None:
        self.unit, self.prop, self.update = unit, prop, update
        self.names = tuple(unit.modules)
        self.agenda: Agenda
        self.owners = {id(p): n for n, m in unit.modules.items() for o in (m, *m.incoming) for p in o.parameters()}
        self.penalized = {id(p) for m, t in unit.penalties for p in m.iter_parameters_by_tag(t.tag)}

    def prepare(self, run: Rollout) -> None:
        """Line the targets of this rollout up."""
        self.agenda = Agenda(run, self.unit, self.update)
        run.watched |= {d.module.name for d in self.agenda.dues.values() if d.term.objective.needs_state}

    def learn(self, run: Rollout, start: int, stop: int) -> None:
        """The block `start` to `stop` has run: gather its gradient, and update if its period is over."""
        if not self.prop.optimizers:
            return
        loss = self.lost(run, start, stop)
        if loss is not None:
            grads, _, _ = eager(lambda p: (loss, ()), self.prop.params)
            self.gather(run, start, stop, grads, loss.detach())
        self.finish_block(stop)

    def lost(self, run: Rollout, start: int, stop: int) -> Tensor | None:
        """The loss of a block that has run; None if nothing in it is due.

        Raises:
            NonFiniteError: it is not finite.
        """
        agenda = self.agenda
        ticks = [t for t in range(start, stop) if t in agenda.at]
        found = [self._loss(run, name, ticks) for name in agenda.dues]
        losses = [v for v in found if v is not None]
        if not losses:
            return None
        if self.unit.penalties:
            share = len(ticks) / agenda.sizes[agenda.period(ticks[0])]
            losses += [t.loss(list(m.iter_parameters_by_tag(t.tag))) * share for m, t in self.unit.penalties]
        loss = torch.stack(losses).sum()
        try:
            self.prop.check(loss.detach())
        except NonFiniteError as error:
            error.where += f", ticks {start} to {stop - 1}"
            raise
        return loss

    def gather(self, run: Rollout, start: int, stop: int, grads: Params, loss: Tensor) -> None:
        """Take the gradients of a block's loss."""
        ticks = [t for t in range(start, stop) if t in self.agenda.at]
        self.prop.receive(self._within(run, grads, ticks, start))
        for probe in self.prop.probes:
            probe.learned(self.prop, None, None, None, loss)

    def finish_block(self, stop: int) -> None:
        """Update if a period is over."""
        if self.agenda.ends_period(stop - 1):
            self.prop.update()
            for module in self.unit.modules.values():
                module.project_()

    def _within(self, run: Rollout, grads: Params, ticks: list[int], start: int) -> Params:
        """Of these gradients, those of weights that the loss of the block reaches within it."""
        if len(self.names) == 1:
            return grads
        losses = ((name.split(".")[0], t) for t in ticks for name, _ in self.agenda.at[t])
        found = members_within(run, self.unit, losses, start)
        if found >= self.unit.reached:
            return grads
        out = {i for i, name in self.owners.items() if name not in found} - self.penalized
        return {k: grad for k, grad in grads.items() if id(self.prop.params[k]) not in out}

    def _loss(self, run: Rollout, name: str, ticks: list[int]) -> Tensor | None:
        """Loss of one term over the block; None if it has no emission there that counts."""
        due = self.agenda.dues[name]
        emissions = [e for t in ticks for other, e in self.agenda.at[t] if other == name]
        if not emissions:
            return None
        first = next(e for e, t in enumerate(due.ticks) if t >= run.start)
        if due.read is not None:
            block = [t for t in due.ticks[first:] if t < run.stop]
            shown = torch.stack([due.read(run, min(t, run.stop - 1 - due.lag)) for t in block])
            due.y = shown if first == 0 else torch.cat([shown.new_zeros(first, *shown.shape[1:]), shown])
        shares, states = self.agenda.shares[name], run.state_log.get(due.module.name, [])
        return term_loss(due, emissions, shares, lambda key: self._stack(run, due.module.name, key), states, first)

    @staticmethod
    def _stack(run: Rollout, name: str, key: str) -> Tensor:
        stack = run.signals[key.removesuffix("@emissions")].stacked()
        if not key.endswith("@emissions"):
            return stack
        steps = [t for t in range(run.start, run.stop) if run.schedule.steps(name, t)]
        return stack[[j for j, t in enumerate(steps) if run.schedule.emits(name, t)]]

    def finish(self, run: Rollout) -> None:
        """Nothing waits."""

    def reset(self) -> None:
        """Forget what was gathered."""
        self.prop.reset()


class Inside:
    """A runner of a module of a live group: with a graph, or without one where the module rests."""

    def __init__(self, runner: Any, learns: bool) -> None:
        self.runner, self.learns, self.names = runner, learns, runner.names

    def chunk(self, run: Rollout, start: int, stop: int) -> None:
        """All ticks of the chunk."""
        with torch.set_grad_enabled(self.learns):
            for each in both(run):
                with self.runner.on(each):
                    self.runner.chunk(each, start, stop)

    def tick(self, run: Rollout, t: int) -> None:
        """One tick."""
        with torch.set_grad_enabled(self.learns):
            for each in both(run):
                with self.runner.on(each):
                    self.runner.tick(each, t)

    def settle(self, run: Rollout, t: int) -> None:
        """Nothing waits."""
