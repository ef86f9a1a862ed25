"""How a model's own forward reaches its propagators: the class of a layer is swapped, nothing is wrapped."""

from __future__ import annotations

import copy
import copyreg
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils._pytree import tree_flatten

from ..graph import Graph


class Agent(Protocol):
    """What an attached layer calls instead of its forward."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The layer's output, as its caller shall see it."""


class Attached:
    """Mixed in front of a layer's own class: same parameters, names and isinstance; hooks run once, around ``forward``.

    A copy or a pickle of it is the plain layer.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Hand the call to the agent; an object that user code made from this class has none, and runs plainly."""
        agent = self.__dict__.get(AGENT)
        return plain_class(self).forward(self, *args, **kwargs) if agent is None else agent(self, args, kwargs)  # type: ignore[attr-defined]

    def __copy__(self) -> Any:
        with plain(self):
            return copy.copy(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        with plain(self):
            return copy.deepcopy(self, memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        with plain(self):
            made = self.__reduce_ex__(protocol)
            if isinstance(made, str):
                return made
            make, *rest = made
            # pickle takes torch's usual maker only for the class the object has now, which is the attached one
            make = _make if make is copyreg.__newobj__ else make  # type: ignore[attr-defined]
            # the state may be the very dict that gets its agent back
            return (make, *(dict(v) if v is self.__dict__ else v for v in rest))


def _make(cls: type, *args: Any) -> Any:
    return cls.__new__(cls, *args)


AGENT = "_imprint_agent"


@contextmanager
def plain(module: Any) -> Iterator[None]:
    """`module` in the class it had before it was attached, for as long as the block runs."""
    attached, agent = type(module), module.__dict__.pop(AGENT, None)
    module.__class__ = plain_class(module)
    try:
        yield
    finally:
        module.__class__ = attached
        if agent is not None:
            module.__dict__[AGENT] = agent


_swapped: dict[type, type] = {}


def plain_class(module: Any) -> type:
    """The class a layer had before it was attached."""
    mro = type(module).__mro__
    return mro[mro.index(Attached) + 1] if isinstance(module, Attached) else type(module)


def intercept(module: nn.Module, agent: Agent) -> None:
    """Route calls of `module` to `agent`."""
    cls = type(module)
    if cls not in _swapped:
        body = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
        _swapped[cls] = type(cls.__name__, (Attached, cls), body)
    module.__class__ = _swapped[cls]
    module.__dict__[AGENT] = agent


def release(module: nn.Module) -> None:
    """Give `module` its own class back."""
    if isinstance(module, Attached):
        module.__class__ = plain_class(module)
        module.__dict__.pop(AGENT, None)


def detach(model: nn.Module) -> nn.Module:
    """Give every attached layer of `model` its own class back; returns `model`. For when its manager is out of reach.

    A graph is detached as by its manager.

    >>> detach(nn.Linear(1, 1))
    Linear(in_features=1, out_features=1, bias=True)
    """
    if isinstance(model, Graph):
        return model if model.manager is None else model.manager.detach()
    for module in model.modules():
        release(module)
    return model


class Follower:
    """The agent of a layer that runs as part of the unit before it: it lets that unit's output through, untouched.

    Called with anything else, it runs the layer, so an activation shared by several places works.
    """

    def __init__(self) -> None:
        self.emitted: list[tuple[list[weakref.ref[torch.Tensor]], list[int]]] = []
        self.waiting = 0

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Pass a unit's emission on, once, or run the layer."""
        if len(args) == 1 and not kwargs and self.emitted:
            given = tensors_in(args[0])
            for i, (refs, versions) in enumerate(self.emitted):
                same = len(refs) == len(given) and all(ref() is v for ref, v in zip(refs, given, strict=True))
                if same and versions == [_version(v) for v in given]:
                    del self.emitted[i]
                    self.waiting -= 1
                    return args[0]
        return plain_class(module).forward(module, *args, **kwargs)  # type: ignore[attr-defined]

    def expect(self, out: Any) -> None:
        """A unit emitted `out`: the layer's part of it is already done."""
        self.emitted = [(refs, versions) for refs, versions in self.emitted if all(ref() is not None for ref in refs)]
        made = tensors_in(out)
        self.emitted.append(([weakref.ref(v) for v in made], [_version(v) for v in made]))
        self.waiting += 1


def _version(v: torch.Tensor) -> int:
    return 0 if v.is_inference() else v._version


def tensors_in(tree: Any) -> list[torch.Tensor]:
    """All tensors of what a layer takes or returns."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    return [v for v in tree_flatten(tree)[0] if isinstance(v, torch.Tensor)]
