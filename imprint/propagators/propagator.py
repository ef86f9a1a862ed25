"""The core: one unit that learns from a local objective while data flows forward."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..credit import Credit, Diff, Instant, Params, Tree, Unit, add, detach, eager
from .host import EAGER, Host
from .layer import Call
from .probe import Probe
from .switch import learning_enabled


class Propagator(nn.Module):
    r"""A unit, its credit and its optimizers: :math:`\Delta\theta = -\mathrm{opt}(L\cdot e)`, inside the forward pass.

    ``tick`` runs the unit once and emits, cut from its graph, what the weights of *before* the update say;
    ``update`` turns what the ticks since the last one gathered into one optimizer step and leaves ``.grad`` None.
    The same class serves layers of a torch model, hand-wired chains and modules of a graph.
    Without arguments it is a propagator that learns nothing: subclass it and write ``forward``.

    Args:
        unit: what runs; see :class:`imprint.credit.Unit`.
        name: how errors and tables call it.
        params: the tensors the unit is pure in, by name. Those with ``requires_grad`` are learned.
        credit: who is responsible; :class:`imprint.credit.Instant` by default.
        optimizers: each steps once an update, over its own share of `params`.
        grad_clip: largest 2-norm of this propagator's whole gradient.

    Raises:
        NonFiniteError: the loss, or with `grad_clip` the gradient, is NaN or infinite; weights and optimizer state are
            as they were.

    Differs from the paper: emissions use the weights of before the update, as in the reference implementation of
    signal propagation; the gradient never leaves the unit.
    """

    def __init__(
        self,
        unit: Unit | None = None,
        name: str = "",
        params: Params | None = None,
        credit: Credit | None = None,
        optimizers: Iterable[Optimizer] = (),
        grad_clip: float | None = None,
    ) -> None:
        super().__init__()
        self.unit, self.name, self.params = unit, name, params or {}
        self.credit: Credit = credit or Instant()
        self.optimizers, self.grad_clip = list(optimizers), grad_clip
        self.probes: list[Probe] = []
        self.host: Host = EAGER
        self.diff: Diff = eager
        self.reset()

    def reset(self) -> None:
        """Forget what was gathered since the last update."""
        self.carry: Tree = None
        self.ticks = 0

    def tick(self, state: Tree, x: Tree, y: Tree, learn: bool = True) -> tuple[Tree, Tree]:
        """Run the unit once on `x`: ``(out, state)``, detached. Learns if `learn`, an optimizer and targets `y`."""
        assert self.unit is not None, "this propagator has no unit: write its forward"
        x, state = x if type(x) is Call else detach(x), detach(state)
        if not (learn and self.optimizers and learning_enabled()):
            with torch.no_grad():
                state = self.unit.cell(self.params, state, x)
                return self.unit.readout(self.params, state, x), state
        if self.carry is None:
            self.carry = self.credit.init(self.unit, self.params, state, x)
        out, state, carry, loss = self.credit.tick(self.unit, self.params, state, self.carry, x, y, self.diff)
        if loss is not None:
            self.check(loss)
            self.ticks += 1
            for probe in self.probes:
                probe.learned(self, x, out, y, loss)
        self.carry = carry
        return out, state

    def receive(self, grads: Params) -> None:
        """Gather gradients found outside: of a loss that reaches this unit through others."""
        self.carry = add(self.carry or {}, grads)
        self.ticks += 1

    def update(self, share: float = 1.0) -> None:
        """One optimizer step with `share` times the gradient gathered since the last update, if any."""
        if not self.ticks:
            return
        assert self.unit is not None
        grads, self.carry = self.credit.collect(self.unit, self.params, None, self.carry, self.diff)
        self.ticks = 0
        if share != 1.0:
            grads = {k: g * share for k, g in grads.items()}
        self.apply_gradients(grads)

    def descend(self, loss: Tensor) -> None:
        """One optimizer step down a `loss` whose graph is already there; without optimizers it is only checked."""
        self.check(loss.detach())
        if self.optimizers and any(p.requires_grad for p in self.params.values()):
            grads, _, _ = eager(lambda p: (loss, ()), self.params)
            self.apply_gradients(grads)

    def check(self, loss: Tensor) -> None:
        """Refuse a loss that is NaN or infinite, before anything is written."""
        self.host.check(self, loss)

    def apply_gradients(self, grads: Params) -> None:
        """Clip, step every optimizer, and leave ``.grad`` None on all `grads`' parameters."""
        if not grads:
            return
        grads = self.host.ready(self, grads)
        for probe in self.probes:
            probe.updating(self, grads)
        if self.grad_clip is not None:
            norm = torch.nn.utils.get_total_norm(list(grads.values()))
            self.host.check_norm(self, norm)
            share = (self.grad_clip / (norm + 1e-6)).clamp(max=1.0)
            grads = {k: g * share for k, g in grads.items()}
        self.host.step(self, grads)
        for probe in self.probes:
            probe.updated(self, grads)
