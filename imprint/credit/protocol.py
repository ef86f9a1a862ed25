"""The contract between what runs (Unit) and who is responsible for it (Credit)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.func import grad_and_value
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

Params = dict[str, Tensor]
Tree = Any
Diff = Callable[[Callable[[Params], tuple[Tensor, Tree]], Params], tuple[Params, Tensor, Tree]]
"""Turns ``f(params) -> (loss, aux)`` into ``(grads, loss, aux)``. Credits never call autograd themselves."""


def detach(tree: Tree) -> Tree:
    """The same tree with every tensor cut from its graph.

    >>> detach((torch.ones(1, requires_grad=True), None))
    (tensor([1.]), None)
    """
    kind = type(tree)
    if kind is Tensor:
        return tree.detach()
    if kind is dict:  # by hand: once a tick, a general tree walk would cost more than the arithmetic
        return {k: detach(v) for k, v in tree.items()}
    if kind is tuple:
        return tuple([detach(v) for v in tree])
    return tree_map(lambda a: a.detach() if isinstance(a, Tensor) else a, tree)


def eager(f: Callable[[Params], tuple[Tensor, Tree]], params: Params) -> tuple[Params, Tensor, Tree]:
    """`Diff` by autograd over the weights themselves; a parameter the loss does not reach is left out.

    >>> w = torch.tensor(3.0, requires_grad=True)
    >>> eager(lambda p: (p["w"] ** 2, "aux"), {"w": w})
    ({'w': tensor(6.)}, tensor(9.), 'aux')
    """
    with torch.enable_grad():
        loss, aux = f(params)
    trained = {k: p for k, p in params.items() if p.requires_grad}
    grads: tuple[Tensor | None, ...] = (None,) * len(trained)
    if trained and loss.requires_grad:
        grads = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    return {k: g for k, g in zip(trained, grads, strict=True) if g is not None}, loss.detach(), detach(aux)


def functional(f: Callable[[Params], tuple[Tensor, Tree]], params: Params) -> tuple[Params, Tensor, Tree]:
    """`Diff` by ``torch.func``: pure, traceable; a parameter the loss does not reach gets zeros.

    >>> functional(lambda p: (p["w"] ** 2, ()), {"w": torch.tensor(3.0)})
    ({'w': tensor(6.)}, tensor(9.), ())
    >>> functional(lambda p: (p["w"] ** 2, ("text", None)), {"w": torch.tensor(3.0)})[2]
    ('text', None)
    """
    around: list[tuple[TreeSpec, list[Any]]] = []

    def tensors_only(p: Params) -> tuple[Tensor, Tree]:
        loss, aux = f(p)
        leaves, spec = tree_flatten(aux)
        if all(isinstance(v, Tensor) for v in leaves):
            return loss, aux
        # torch.func hands back tensors alone: what else a unit returns is kept beside them
        around.append((spec, [None if isinstance(v, Tensor) else (v,) for v in leaves]))
        return loss, [v for v in leaves if isinstance(v, Tensor)]

    grads, (loss, aux) = detach(grad_and_value(tensors_only, has_aux=True)(detach(params)))
    if around:
        spec, facts = around[0]
        tensors = iter(aux)
        aux = tree_unflatten([next(tensors) if fact is None else fact[0] for fact in facts], spec)
    return grads, loss, aux


class Unit(Protocol):
    """What runs: pure in (params, state). ``x`` is detached; ``y`` are this tick's targets, None if nothing is due."""

    def init(self, batch: int) -> Tree:
        """State before the first tick."""

    def cell(self, p: Params, state: Tree, x: Tree) -> Tree:
        """The recurrent half: the next state."""

    def readout(self, p: Params, state: Tree, x: Tree) -> Tree:
        """The emitted half: the unit's output."""

    def loss(self, p: Params, out: Tree, state: Tree, x: Tree, y: Tree) -> Tensor:
        """The local objective, a scalar."""


@runtime_checkable
class Credit(Protocol):
    """Who is responsible: folds ticks into `carry`, and `carry` into gradients."""

    @property
    def block(self) -> int | None:
        """Ticks after which the past is a constant; None: the whole rollout is one block."""

    @property
    def updates(self) -> tuple[str, ...]:
        """The update modes it is legal with."""

    def init(self, unit: Unit, p: Params, state: Tree, x: Tree) -> Tree:
        """The carry before the first tick."""

    def tick(
        self, unit: Unit, p: Params, state: Tree, carry: Tree, x: Tree, y: Tree, diff: Diff
    ) -> tuple[Tree, Tree, Tree, Tensor | None]:
        """Run the unit once: ``(out, state, carry, loss or None)``."""

    def collect(self, unit: Unit, p: Params, state: Tree, carry: Tree, diff: Diff) -> tuple[Params, Tree]:
        """Gradients since the last update, and the carry to go on with."""
