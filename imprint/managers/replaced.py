"""Weights that were exchanged for others since bind: units and optimizers go on with the new ones, or refuse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..errors import StateError
from ..propagators.buffers import Buffers
from .intercept import Attached

if TYPE_CHECKING:
    from .manager import Manager

ATTACH = "detach: model = manager.detach(), change it, and attach it anew"


@dataclass(frozen=True, eq=False)
class Hung:
    """What hung on one module of the model at bind."""

    path: str
    module: nn.Module
    params: dict[str, Tensor | None]
    children: dict[str, nn.Module | None]

    def same(self) -> bool:
        """Is it all still there?"""
        params, children = self.module._parameters, self.module._modules
        if len(params) != len(self.params) or len(children) != len(self.children):
            return False
        for name, p in self.params.items():
            if params.get(name) is not p:
                return False
        return all(children.get(name) is child for name, child in self.children.items())

    def name(self, key: str) -> str:
        """Of what hangs on the module, in the model."""
        return f"{self.path}.{key}" if self.path else key

    def check_structure(self) -> None:
        """Refuse other modules, and weights that came, went or changed their size."""
        params, children = self.module._parameters, self.module._modules
        for key in sorted(self.children.keys() | children.keys()):
            old, new = self.children.get(key), children.get(key)
            if old is not new and (_matters(old) or _matters(new)):
                raise StateError(f"module {self.name(key)!r}", "it was replaced since the model was bound", fix=ATTACH)
        for key in sorted(self.params.keys() | params.keys()):
            was, now = self.params.get(key), params.get(key)
            if was is not now and (was is None or now is None or was.shape != now.shape):
                raise StateError(
                    f"parameter {self.name(key)!r}", "it is not the one the model was bound with, and does not fit",
                    expected=None if was is None else tuple(was.shape), got=None if now is None else tuple(now.shape),
                    fix=ATTACH,
                )  # fmt: skip


def _matters(module: nn.Module | None) -> bool:
    """Has it weights, or does a unit run in it?"""
    return module is not None and any(isinstance(m, Attached) or m._parameters for m in module.modules())


def hang(manager: Manager) -> None:
    """Note what hangs on every module now."""
    manager.hung = [Hung(path, m, dict(m._parameters), dict(m._modules)) for path, m in manager.model.named_modules()]
    manager.buffers = Buffers([manager.model, *(agent.unit.objective for agent in manager.units.values())])
    manager.model_buffers = manager.buffers.of([manager.model])
    for agent in manager.units.values():
        agent.unit.buffers = manager.buffers.of(agent.unit.modules)


def follow_replaced(manager: Manager) -> bool:
    """Let units and optimizers go on with weights put in place of those they know; were there any?

    Raises:
        StateError: a module with weights was replaced, or what came fits no optimizer; nothing was changed.
    """
    if all(hung.same() for hung in manager.hung):
        return False
    for hung in manager.hung:
        hung.check_structure()
    swapped = _swapped(manager)
    for agent in manager.units.values():
        agent.prop.params = agent.unit.parameters()
    manager.task.params = {k: swapped.get(p, p) for k, p in manager.task.params.items()}
    for prop in manager.propagators.values():
        for optimizer in prop.optimizers:
            for group in optimizer.param_groups:
                group["params"] = [swapped.get(p, p) for p in group["params"]]
            for old in [p for p in optimizer.state if p in swapped]:
                optimizer.state[swapped[old]] = optimizer.state.pop(old)
    manager.places = {name: (swapped.get(p, p), place) for name, (p, place) in manager.places.items()}
    hang(manager)
    return True


def _swapped(manager: Manager) -> dict[Tensor, Tensor]:
    """The new weight of each old one, both once."""
    sites = [(h.name(k), p, h.module._parameters[k]) for h in manager.hung for k, p in h.params.items()]
    pairs = [(name, old, new) for name, old, new in sites if old is not None and new is not None]
    swapped: dict[Tensor, Tensor] = {old: new for _, old, new in pairs if new is not old}
    olds: dict[Tensor, Tensor] = {}
    held = {
        p for prop in manager.propagators.values() for o in prop.optimizers for g in o.param_groups for p in g["params"]
    }
    for name, old, new in pairs:
        if new is not swapped.get(old, old) or olds.setdefault(new, old) is not old:
            raise StateError(
                f"parameter {name!r}", "other weights share a tensor than when the model was bound",
                fix="share them as before, or " + ATTACH,
            )  # fmt: skip
        if new is not old and new.requires_grad and not old.requires_grad and old not in held:
            raise StateError(
                f"parameter {name!r}", "it wants gradient, and the one it replaced had none: no optimizer knows it",
                fix="requires_grad_(False) on it, or " + ATTACH,
            )  # fmt: skip
    return swapped
