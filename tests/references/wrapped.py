"""Local learning of any torch model by plain wrappers: each unit is replaced by a module that cuts, learns and emits.

Nothing of imprint: autograd, one optimizer a unit, gradients of several calls summed, a second run of the unit on what
it saw in a first, unlearned pass over the context. Slow, and it renames weights, so the library does otherwise.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Builder = Callable[[list[Tensor]], torch.optim.Optimizer]


def sgd(params: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, 0.1, momentum=0.9)


def first_float(tree: Any) -> Tensor:
    items = tree.values() if isinstance(tree, dict) else tree
    return (
        tree if isinstance(tree, Tensor) else next(v for v in items if isinstance(v, Tensor) and v.is_floating_point())
    )


def cut(v: Any) -> Any:
    if isinstance(v, Tensor):
        return v.detach()
    if isinstance(v, dict):
        return {k: cut(x) for k, x in v.items()}
    return type(v)(cut(x) for x in v) if isinstance(v, tuple | list) else v


class Wrapped(nn.Module):
    """One unit: `inner` in place of its first module; the rest of it became ``nn.Identity``."""

    def __init__(self, inner: nn.Module, owner: Naive) -> None:
        super().__init__()
        self.inner = inner
        object.__setattr__(self, "owner", owner)
        self.head: nn.Linear | None = None
        self.optimizer: torch.optim.Optimizer | None = None
        self.opened = False
        self.remembered: list[Any] = []
        self.grads: list[Tensor] | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.opened:
            return self.inner(*args, **kwargs)
        args, kwargs = cut(args), cut(kwargs)
        owner = self.owner
        if owner.mode == "context":
            self.remembered.append(copy.deepcopy((args, kwargs)))
        if owner.mode != "learn":
            with torch.no_grad():
                return self.inner(*args, **kwargs)
        if owner.rule == "ce":
            out = self.inner(*args, **kwargs)
            loss = self.classify(features(owner.batch_first(out)), owner.y)
        else:
            t_args, t_kwargs = self.remembered.pop(0)
            out = self.inner(*args, **kwargs)
            borrowed = {k: v.clone() for k, v in self.inner.named_buffers()}  # running statistics are of the data alone
            t = torch.func.functional_call(self.inner, borrowed, t_args, t_kwargs)
            loss = contrast(owner.batch_first(out), owner.batch_first(t), owner.y)
        found = torch.autograd.grad(loss, self.weights(), allow_unused=True)
        found = [torch.zeros_like(p) if g is None else g for p, g in zip(self.weights(), found, strict=True)]
        self.grads = found if self.grads is None else [a + b for a, b in zip(self.grads, found, strict=True)]
        return cut(out)

    def weights(self) -> list[Tensor]:
        return [*self.inner.parameters(), *(self.head.parameters() if self.head else ())]

    def classify(self, h: Tensor, y: Tensor) -> Tensor:
        if self.head is None:
            self.head = nn.Linear(h.shape[-1], self.owner.classes, dtype=h.dtype)
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)
        z = self.head(h)
        return F.cross_entropy(z.flatten(0, -2), y.flatten())

    def step(self, share: float, clip: float | None) -> None:
        if self.grads is None:
            return
        if self.optimizer is None:
            self.optimizer = self.owner.builder(self.weights())
        descend(self.optimizer, self.weights(), [g * share for g in self.grads], clip)
        self.grads = None


def descend(
    optimizer: torch.optim.Optimizer, params: Sequence[Tensor], grads: Sequence[Tensor | None], clip: float | None
) -> None:
    for p, g in zip(params, grads, strict=True):
        p.grad = g
    if clip is not None:
        torch.nn.utils.clip_grad_norm_(params, clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def contrast(h: Tensor, t: Tensor, y: Tensor) -> Tensor:
    z = F.normalize(h.flatten(1)) @ F.normalize(t.flatten(1)).T / 0.1
    return F.cross_entropy(z, y)


def features(h: Tensor) -> Tensor:
    """Tokens are averaged, maps flattened."""
    return h.mean(1) if h.dim() == 3 else h.flatten(1)


class Naive:
    """Trains a copy of `model`, its `units` (paths, or tuples of paths run one after the other) from local losses.

    Args:
        rule: ``"ce"``, a zero-started linear head a unit; or ``"contrast"`` with the context inputs given to ``step``.
        opened: the unit that learns from the task loss instead.
        frozen: the names of weights that nothing trains begin so.
    """

    def __init__(
        self, model: nn.Module, units: Sequence[str | tuple[str, ...]], classes: int, rule: str = "ce",
        opened: str | None = None, builder: Builder = sgd, clip: float | None = None,
        batch_dim: int = 0, frozen: str = "never",
    ) -> None:  # fmt: skip
        self.model, self.classes, self.rule, self.builder, self.clip = (
            copy.deepcopy(model),
            classes,
            rule,
            builder,
            clip,
        )
        self.batch_dim, self.mode, self.y = batch_dim, "off", torch.empty(0)
        self.tensors = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        modules = dict(self.model.named_modules(remove_duplicate=False))
        self.units: list[Wrapped] = []
        for unit in units:
            first, *rest = (unit,) if isinstance(unit, str) else unit
            chain = [modules[p] for p in (first, *rest)]
            made = Wrapped(chain[0] if not rest else nn.Sequential(*chain), self)
            made.opened = first == opened
            self.units.append(made)
            self._put(chain[0], made)
            for path, module in zip(rest, chain[1:], strict=True):
                self._put(module, nn.Identity(), only=path)
        inside = {id(p) for u in self.units if not u.opened for p in u.inner.parameters()}
        held = {id(p) for n, p in self.tensors.items() if n.startswith(frozen)}
        self.task = [p for p in self.model.parameters() if id(p) not in inside | held]
        self.task_optimizer: torch.optim.Optimizer | None = None

    def batch_first(self, out: Any) -> Tensor:
        return first_float(out).movedim(self.batch_dim, 0)

    def _put(self, old: nn.Module, new: nn.Module, only: str | None = None) -> None:
        """Replace `old` wherever the model holds it (or in one place)."""
        for path, parent in list(self.model.named_modules()):
            if isinstance(parent, Wrapped):
                continue
            for name, child in list(parent._modules.items()):
                if child is old and (only is None or only == f"{path}.{name}".lstrip(".")):
                    parent._modules[name] = new

    def step(self, x: tuple[Any, ...], y: Tensor, context: tuple[Any, ...] | None = None, **kwargs: Any) -> Any:
        self.learn(x, y, context, **kwargs)
        self.update()
        return self.out

    def learn(self, x: tuple[Any, ...], y: Tensor, context: tuple[Any, ...] | None = None, **kwargs: Any) -> None:
        self.y = y
        if context is not None:
            before = {k: v.clone() for k, v in self.model.named_buffers()}
            self.mode = "context"
            with torch.no_grad():
                self.model(*context, **kwargs)
            for k, v in self.model.named_buffers():
                v.copy_(before[k])
        self.mode = "learn"
        out = self.model(*x, **kwargs)
        self.mode = "off"
        self.out = cut(out)
        if self.task:
            logits = first_float(out)
            loss = F.cross_entropy(logits.flatten(0, -2), y.flatten())
            found = torch.autograd.grad(loss, self.task, allow_unused=True)
            for p, g in zip(self.task, found, strict=True):
                if g is not None:
                    p.grad = g if p.grad is None else p.grad + g

    def update(self, share: float = 1.0) -> None:
        for unit in self.units:
            if not unit.opened:
                unit.step(share, self.clip)
        if self.task and any(p.grad is not None for p in self.task):
            reached = [p for p in self.task if p.grad is not None]
            if self.task_optimizer is None:
                self.task_optimizer = self.builder(reached)
            descend(self.task_optimizer, reached, [p.grad * share for p in reached], self.clip)  # type: ignore[operator]


def distance(naive: Naive, model: nn.Module) -> float:
    """Largest difference of any weight or buffer from `model`'s."""
    mine = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert mine.keys() == naive.tensors.keys()
    return max(
        float((mine[k].detach().double() - v.detach().double()).abs().max())
        for k, v in naive.tensors.items()
        if v.numel()
    )
