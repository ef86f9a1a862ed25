"""Propagators of hand-wired chains that learn: ``(h0, t0, context) -> (h1, t1, context)``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from ..credit import Tree, detach
from ..errors import ArgumentError, ShapeError, StateError
from .propagator import Propagator
from .switch import learning_enabled


class Learn(Propagator):
    r"""Runs one module on both streams, learns from them at once, and passes on what they gave before.

    The module runs on h0, then, in a second call, on t0, both cut from what made them. With a context, in training
    mode, with gradients enabled and outside :func:`imprint.no_learning`, ``train_`` takes a step; in evaluation
    mode or without gradients ``eval_`` finds the loss and nothing is written. Without a context only h runs.
    Afterwards no parameter holds a ``.grad``.

    Three methods may be overridden; each gets ``(h1, t1, h0, t0, y_onehot)``:
    ``loss_`` returns the loss; ``train_`` and ``eval_`` return ``(loss, ..., ...)`` or the loss, tensor or number, and
    ``train_`` may call ``backward`` and ``self.optimizer.step`` itself.

    Args:
        module: what runs, on ``[B, ...]`` and ``[R, ...]``.
        optimizer: over the parameters that learn; None learns nothing.
        name: how errors and monitors call it; the module's class if empty.
        grad_clip: largest 2-norm of the whole gradient in ``train_`` as it is.

    Attributes:
        optimizer: may be replaced at any time.
        last_loss: what ``train_`` or ``eval_`` found last, unread; None before.

    Raises:
        ArgumentError: the optimizer holds none of its parameters; the input is not the triple of a chain.
        NonFiniteError: the loss is NaN or infinite; weights are as they were.

    Reference: Kohan, Rietman & Siegelmann, Signal Propagation (2022).
    Differs from the paper: nothing; outputs are those of before the update, as in its reference implementation.

    >>> class Distance(Learn):
    ...     def loss_(self, h1, t1, h0, t0, y_onehot):
    ...         return (h1 - t1).square().mean()
    >>> layer = nn.Linear(2, 2)
    >>> unit = Distance(layer, torch.optim.SGD(layer.parameters(), lr=0.1))
    >>> h, t, y = unit((torch.ones(3, 2), torch.zeros(3, 2), torch.arange(3)))
    >>> h.requires_grad, layer.weight.grad
    (False, None)
    """

    def __init__(
        self, module: nn.Module, optimizer: Optimizer | None = None, name: str = "", grad_clip: float | None = None
    ) -> None:
        super().__init__(name=name or type(module).__name__, grad_clip=grad_clip)
        self.module = module
        self.optimizer = optimizer
        self.last_loss: Any = None

    @property
    def optimizer(self) -> Optimizer | None:
        """What moves the parameters."""
        return self.optimizers[0] if self.optimizers else None

    @optimizer.setter
    def optimizer(self, optimizer: Optimizer | None) -> None:
        if optimizer is not None and not isinstance(optimizer, Optimizer):
            raise ArgumentError(
                f"propagator {self.name!r}", "this is no optimizer", expected="a torch.optim.Optimizer or None",
                got=type(optimizer).__name__, fix="optimizer=torch.optim.Adam(module.parameters())",
            )  # fmt: skip
        own = {id(p) for p in self.parameters()}
        if optimizer is not None and own and not any(id(p) in own for g in optimizer.param_groups for p in g["params"]):
            raise ArgumentError(
                f"propagator {self.name!r}", "its optimizer holds none of its parameters, so nothing of it would learn",
                expected="parameters of its module or its loss", got=", ".join(_sizes(optimizer)),
                fix="optimizer=torch.optim.Adam(module.parameters()), or None",
            )  # fmt: skip
        self.optimizers = [] if optimizer is None else [optimizer]

    def loss_(self, h1: Tensor, t1: Tensor, h0: Tensor, t0: Tensor, y_onehot: Any) -> Tensor:
        """The local loss, a scalar."""
        raise StateError(
            f"propagator {self.name!r}", f"{type(self).__name__} does not say what its loss is",
            fix="override loss_, or train_ and eval_; or use propagators.Loss(module, optimizer, loss)",
        )  # fmt: skip

    def train_(self, h1: Tensor, t1: Tensor, h0: Tensor, t0: Tensor, y_onehot: Any) -> Any:
        """Find the loss and take one step down."""
        loss = self.scalar(self.loss_(h1, t1, h0, t0, y_onehot))
        self.params = self.trained()
        for probe in self.probes:
            probe.learned(self, (h0, t0), (h1.detach(), t1.detach()), y_onehot, loss.detach())
        self.descend(loss)
        return loss.detach(), None, None

    def eval_(self, h1: Tensor, t1: Tensor, h0: Tensor, t0: Tensor, y_onehot: Any) -> Any:
        """Find the loss."""
        return self.scalar(self.loss_(h1, t1, h0, t0, y_onehot)).detach(), None, None

    def streams(self, h0: Tensor, t0: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """``(h1, t1, h0, t0)``: outputs and inputs of both streams."""
        return self.module(h0), None if t0 is None else self.module(t0), h0, t0

    def forward(self, input: tuple[Tensor, Tensor | None, Any]) -> tuple[Any, ...]:
        """Run both streams, learn, and emit ``(h1, t1, context)`` cut from the graph."""
        h0, t0, context = detach(triple(input, f"propagator {self.name!r}"))
        learns = t0 is not None and self.training and torch.is_grad_enabled() and learning_enabled()
        with torch.set_grad_enabled(learns):
            h1, t1, h0, t0 = self.streams(h0, t0)
            emitted = self.emit(_emitted(h1), _emitted(t1), context)  # before the step moves anything
            if t1 is not None and t0 is not None and learning_enabled():
                found = (self.train_ if learns else self.eval_)(h1, t1, h0, t0, context)
                self.last_loss = found[0] if isinstance(found, tuple) else found
        if learns:
            for p in (*self.parameters(), *self.trained().values()):
                p.grad = None
        return emitted

    def emit(self, h1: Tensor, t1: Tensor | None, context: Any) -> tuple[Any, ...]:
        """What goes to the next propagator."""
        return h1, t1, context

    def trained(self) -> dict[str, Tensor]:
        """The optimizer's parameters by name; those of no module of this propagator are called ``other.<i>``."""
        names = {id(p): name for name, p in self.named_parameters()}
        held = [p for optimizer in self.optimizers for group in optimizer.param_groups for p in group["params"]]
        return {names.get(id(p), f"other.{i}"): p for i, p in enumerate(held)}

    def scalar(self, loss: Any) -> Tensor:
        """The loss, if it is one number in a tensor."""
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise ShapeError(
                f"propagator {self.name!r}", "its loss is not one number in a tensor", expected="a scalar tensor",
                got=tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__, fix="loss.mean()",
            )  # fmt: skip
        return loss


class Loss(Learn):
    """Learns from any loss of six arguments; see :class:`Learn` for how and when.

    Args:
        module: what runs.
        optimizer: over the parameters that learn; None learns nothing.
        loss: ``loss(sp_learn, h1, t1, h0, t0, context) -> scalar``, such as those of :mod:`imprint.loss`.
        name: how errors and monitors call it; the module's class if empty.
        grad_clip: largest 2-norm of the whole gradient.

    Raises:
        ArgumentError: the loss is not callable, or the input is not the triple of a chain.

    >>> from imprint.loss import v9_input_target_max_all
    >>> layer = nn.Linear(2, 2)
    >>> unit = Loss(layer, optimizer=torch.optim.Adam(layer.parameters()), loss=v9_input_target_max_all)
    >>> h, t, y = unit((torch.ones(3, 2), torch.eye(3, 2), torch.arange(3)))
    >>> h.shape, y
    (torch.Size([3, 2]), tensor([0, 1, 2]))
    """

    def __init__(
        self, module: nn.Module, optimizer: Optimizer | None, loss: Callable[..., Any], name: str = "",
        grad_clip: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__(module, None, name, grad_clip)
        if not callable(loss):
            raise ArgumentError(
                f"propagator {self.name!r}", "its loss is not callable", got=type(loss).__name__,
                fix="loss=imprint.loss.v9_input_target_max_all",
            )  # fmt: skip
        self.loss = loss
        self.optimizer = optimizer  # it may hold weights of the loss alone

    def loss_(self, h1: Tensor, t1: Tensor, h0: Tensor, t0: Tensor, y_onehot: Any) -> Tensor:
        """The loss it was given."""
        loss: Tensor = self.loss(self, h1, t1, h0, t0, y_onehot)
        return loss


def triple(input: Any, where: str) -> tuple[Any, Any, Any]:
    """The input of a chain's link, if it is one.

    >>> triple((1, 2, 3), "here")
    (1, 2, 3)
    """
    if not isinstance(input, (tuple, list)) or len(input) != 3:
        raise ArgumentError(
            where, "its input is not a triple", expected="(h, t, context), with None for what there is not",
            got=f"{len(input)} values" if isinstance(input, (tuple, list)) else type(input).__name__,
            fix="wrap every layer of the chain in a propagator, such as propagators.Fixed(nn.Flatten())",
        )  # fmt: skip
    h, t, context = input
    return h, t, context


def _sizes(optimizer: Optimizer) -> list[str]:
    """Of the first few tensors it holds."""
    return [str(tuple(p.shape)) for g in optimizer.param_groups for p in g["params"]][:4]


def _emitted(tree: Tree) -> Tree:
    """Cut from the graph; copied where it is a weight itself, which the step has moved."""

    def cut(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        root = x._base if x._is_view() and x._base is not None else x
        return x.detach().clone() if root.is_leaf and root.requires_grad else x.detach()

    return tree_map(cut, tree)
