"""Gradient descent by hand: read ``.grad``, move the weight, clear ``.grad``. Nothing of torch.optim."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


class SGD:
    """Down the gradient."""

    def __init__(self, params: Iterable[Tensor], lr: float = 0.05) -> None:
        self.params, self.lr = list(params), lr

    @torch.no_grad()
    def step(self) -> None:
        for p in self.params:
            if p.grad is not None:
                p -= self.lr * p.grad
                p.grad = None


class Adam:
    """First moment over the root of the second, both corrected for their start at zero."""

    def __init__(self, params: Iterable[Tensor], lr: float = 0.02) -> None:
        self.params, self.lr = list(params), lr
        self.first = [torch.zeros_like(p) for p in self.params]
        self.second = [torch.zeros_like(p) for p in self.params]
        self.taken = [0] * len(self.params)

    @torch.no_grad()
    def step(self) -> None:
        for i, p in enumerate(self.params):
            if p.grad is None:
                continue
            self.taken[i] += 1
            self.first[i] = 0.9 * self.first[i] + 0.1 * p.grad
            self.second[i] = 0.999 * self.second[i] + 0.001 * p.grad**2
            first = self.first[i] / (1 - 0.9 ** self.taken[i])
            second = self.second[i] / (1 - 0.999 ** self.taken[i])
            p -= self.lr * first / (second**0.5 + 1e-8)
            p.grad = None


Descent = Callable[[Iterable[Tensor]], "SGD | Adam"]


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Mean over samples, one by one."""
    total = logits.new_zeros(())
    for i in range(len(y)):
        total = total + logits[i].exp().sum().log() - logits[i, int(y[i])]
    return total / len(y)


def softmax(logits: Tensor) -> Tensor:
    """Of one sample."""
    return logits.exp() / logits.exp().sum()


def keep_buffers(module: torch.nn.Module) -> Callable[[], None]:
    """Let a module write to copies of its running statistics; calling the result brings the old ones back."""
    saved = [(m, name, b) for m in module.modules() for name, b in m.named_buffers(recurse=False)]
    for m, name, b in saved:
        setattr(m, name, b.clone())

    def restore() -> None:
        for m, name, b in saved:
            setattr(m, name, b)

    return restore
