"""A layer, or a run of layers, of an existing torch model as a unit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from ..credit import Params, Tree
from ..errors import DtypeError
from ..functional.operations import Operations
from ..objectives import Objective, Target, View
from ..objectives.synapses import Synapse, recorded
from .buffers import Buffers
from .buffers import borrowed_buffers as borrowed_buffers

Entry = Callable[[Tensor], Tensor]
OBJECTIVE = "objective:"


@dataclass(frozen=True)
class Call:
    """One call of a unit: its arguments on the data, and its call on the context, if any.

    Who makes it cuts what is in it from its graph. `ran` is what it has given already, with its graph, made with the
    weights as they are, and the products that ran in it: for units that learn after the forward.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    context: Remembered | None = None
    ran: tuple[Tree, tuple[Synapse, ...]] | None = None


@dataclass(frozen=True)
class Remembered:
    """A unit's call in the context pass; `out` still has its graph, made with the weights as they are.

    `versions` are those of the tensors that were not copied: later ones say that somebody wrote into them.
    """

    call: Call
    out: Tree = None
    versions: tuple[tuple[Tensor, int], ...] = ()


def first_floating(tree: Tree) -> Tensor | None:
    """The first floating tensor in the order of torch's trees, if there is one.

    >>> first_floating(((torch.tensor([1]), None), {"x": torch.tensor([2.0])}))
    tensor([2.])
    """
    if isinstance(tree, Tensor):
        return tree if tree.is_floating_point() else None
    if type(tree) is tuple or type(tree) is dict:  # by hand: a general walk costs more than a small layer
        for v in tree.values() if type(tree) is dict else tree:
            found = first_floating(v)
            if found is not None:
                return found
        return None
    return next((v for v in tree_flatten(tree)[0] if isinstance(v, Tensor) and v.is_floating_point()), None)


def primary(tree: Tree, where: str) -> Tensor:
    """The first floating tensor of what a module takes or returns.

    >>> primary((torch.tensor([1]), torch.tensor([2.0])), "unit 'a'")
    tensor([2.])
    """
    found = first_floating(tree)
    if found is not None:
        return found
    raise DtypeError(
        where, "no floating tensor goes through it", expected="a floating output", got=type(tree).__name__,
        fix="leave it out of layers",
    )  # fmt: skip


class LayerUnit:
    """Modules of a torch model run one after the other, with a local objective; it has no recurrent half.

    Args:
        path: dotted name of the first module in the model.
        modules: the first module and those joined to it; each with its plain class, whose ``forward`` is run.
        objective: the local loss; its parameters are named ``objective:<name>`` among the unit's.
        entry: map of the first floating input on entry, such as forward-forward's normalisation.
        operations: under which its modules run, where some are differentiated in another way.

    Attributes:
        still: its own weights do not learn, and are none of its parameters.
    """

    def __init__(
        self, path: str, modules: Sequence[tuple[str, nn.Module]], objective: Objective, entry: Entry | None = None,
        operations: Operations | None = None,
    ) -> None:  # fmt: skip
        self.path, self.objective, self.entry, self.operations = path, objective, entry, operations
        self.synapses: tuple[Synapse, ...] = ()
        self.names, self.modules = [name for name, _ in modules], [module for _, module in modules]
        self.plain = [type(module) for module in self.modules]
        self.own: Params = {}
        self.batch_dim, self.channels_last = 0, False
        self.context_mode = "kept"
        self.left_out: set[str] = set()
        self.still = False
        self.buffers = Buffers(self.modules)

    def weights(self) -> list[Tensor]:
        """All parameters of its modules, whether they learn or not."""
        return [p for m in self.modules for p in m.parameters()]

    def parameters(self) -> Params:
        """Weights by their name in the model, then the objective's."""
        own: Params = {}
        for name, module in zip(self.names, self.modules, strict=True):
            own |= {f"{name}.{k}": p for k, p in module.named_parameters()}
        own = {} if self.still else {k: p for k, p in own.items() if k not in self.left_out}
        own |= {OBJECTIVE + k: p for k, p in self.objective.named_parameters()}
        if own.keys() != self.own.keys() or any(own[k] is not p for k, p in self.own.items()):
            self.own = own  # the very object says that the weights are the modules' own
        return self.own

    def init(self, batch: int) -> Tree:
        """No state."""
        return ()

    def cell(self, p: Params, state: Tree, x: Call) -> Tree:
        """No recurrence."""
        return state

    def call(self, p: Params, call: Call) -> Tree:
        """Run the modules on one call, past their hooks: those run once, around what the unit emits."""
        args, kwargs = call.args, call.kwargs
        if self.entry is not None:
            args, kwargs = self._enter(args, kwargs)
        if self.operations is not None:
            self.operations.names = {id(v): k for k, v in p.items()}
            with self.operations:
                return self._run(p, args, kwargs)
        return self._run(p, args, kwargs)

    def _run(self, p: Params, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tree:
        out: Tree = None
        for name, module, plain in zip(self.names, self.modules, self.plain, strict=True):
            if p is self.own:
                out = plain.forward(module, *args, **kwargs)
            else:
                cut = len(name) + 1
                own = {k[cut:]: v for k, v in p.items() if k.startswith(name + ".")}
                out = functional_call(_without_hooks(module, plain), own, args, kwargs)
            args, kwargs = (out,), {}
        return out

    def _enter(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        assert self.entry is not None
        leaves, spec = tree_flatten((args, kwargs))
        first = next((i for i, v in enumerate(leaves) if isinstance(v, Tensor) and v.is_floating_point()), None)
        if first is None:  # what comes instead, its modules will refuse
            return args, kwargs
        leaves[first] = self.entry(leaves[first])
        return tree_unflatten(leaves, spec)

    def readout(self, p: Params, state: Tree, x: Call) -> tuple[Tree, Tree]:
        """Outputs on the data and on the context (None without one)."""
        if (
            self.context_mode == "together"
            and x.context is not None
            and self.objective.uses_data
            and _stackable(x, x.context.call)
        ):
            return self._together(p, x, x.context.call)
        out, self.synapses = self.forward(p, x) if self.objective.uses_data else (None, ())
        if x.context is None:
            return out, None
        if x.context.out is not None and (p is self.own or self.objective.held):
            return out, x.context.out
        with self.buffers.borrowed():
            return out, self.call(p, x.context.call)

    def forward(self, p: Params, x: Call) -> tuple[Tree, tuple[Synapse, ...]]:
        """Run on the data, unless it has run already; and what ran in it, where the objective looks at that."""
        if x.ran is not None and p is self.own:
            return x.ran
        if self.still:
            with torch.no_grad():
                return self.call(p, x), ()
        if not self.objective.needs_synapses:
            return self.call(p, x), ()
        own = {id(v): k for k, v in p.items()}
        with recorded(own) as seen:
            out = self.call(p, x)
        return out, tuple([s for s in seen if id(s.weight) in own])

    def _together(self, p: Params, x: Call, context: Call) -> tuple[Tensor, Tensor]:
        """Both outputs from one product over the rows of both: each weight is read, and its gradient written, once."""
        (data,), (rows,) = x.args, context.args
        out = self.call(p, Call((torch.cat([data, rows]),), x.kwargs))
        return out[: len(data)], out[len(data) :]

    def view(self, out: tuple[Tree, Tree], x: Call, y: Target) -> View:
        """What the objective sees, batch first."""
        where = f"unit {self.path!r}"

        def first(tree: Tree) -> Tensor:
            v = primary(tree, where)
            return v.movedim(self.batch_dim, 0) if v.dim() > self.batch_dim else v

        h, t = (None if tree is None else first(tree) for tree in out)
        t_in = None if x.context is None else _first_input(x.context.call)
        return View(h, _first_input(x), t, t_in, context=y, batch=y.y, synapses=self.synapses)

    def scores(self, out: tuple[Tree, Tree], x: Call, y: Target) -> Tensor | None:
        """``[B, classes]``: what this unit alone says about the label, without gradient."""
        with torch.no_grad():
            return self.objective.scores(self.view(out, x, y))

    def loss(self, p: Params, out: tuple[Tree, Tree], state: Tree, x: Call, y: Target) -> Tensor:
        """The local objective."""
        view, self.synapses = self.view(out, x, y), ()
        if p is self.own:
            return self.objective(view)
        cut = len(OBJECTIVE)
        return functional_call(self.objective, {k[cut:]: v for k, v in p.items() if k.startswith(OBJECTIVE)}, (view,))


def rows_are_independent(unit: LayerUnit, call: Call) -> bool:
    """Is each row of the unit's output a function of that row of its only input alone? Tried, in training mode.

    BatchNorm, dropout, a mean over the batch, several inputs or another batch dimension say no.
    """
    only = call.args[0] if len(call.args) == 1 and not call.kwargs else None
    if not isinstance(only, Tensor) or not only.is_floating_point() or only.dim() < 2 or unit.batch_dim != 0:
        return False
    only = only.clone()
    untouched = only._version
    other = (only.flip(0) * 1.5 + 0.5)[: max(1, len(only) // 2)]
    devices = [only.device] if only.is_cuda else []
    try:
        with torch.no_grad(), borrowed_buffers(unit.modules), in_training(unit.modules), torch.random.fork_rng(devices):
            made = [unit.call(unit.own, Call((v,), {})) for v in (torch.cat([only, other]), only, other)]
    except Exception:  # a unit may refuse another number of rows in any way it likes
        return False
    if only._version != untouched:  # what it writes into its input would be lost in a copy
        return False
    if not all(isinstance(v, Tensor) and v.dim() > 1 for v in made):
        return False
    together, expected = made[0], torch.cat(made[1:])
    if together.shape != expected.shape:
        return False
    largest = float(expected.abs().max())
    if not math.isfinite(largest):
        return False
    scale = 1e-5 if expected.dtype == torch.float32 else 1e-10 if expected.dtype == torch.float64 else 1e-2
    return torch.allclose(together, expected, rtol=scale, atol=scale * largest)


def saved_bytes(unit: LayerUnit, call: Call) -> int:
    """Memory that the graph of one call of the unit holds until it is differentiated, its weights left out."""
    own = {p.untyped_storage()._cdata for p in unit.weights()}
    held: dict[int, int] = {}

    def hold(v: Tensor) -> Tensor:
        storage = v.untyped_storage()
        if storage._cdata not in own:
            held[storage._cdata] = storage.nbytes()
        return v.detach()  # an output itself would hold its own graph

    args, kwargs = tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, (call.args, call.kwargs))
    devices = [p.device for p in unit.weights() if p.is_cuda][:1]
    with borrowed_buffers(unit.modules), torch.random.fork_rng(devices), torch.enable_grad():
        with torch.autograd.graph.saved_tensors_hooks(hold, lambda v: v):
            unit.call(unit.own, Call(args, kwargs))
    return sum(held.values())


@contextmanager
def in_training(modules: Sequence[nn.Module]) -> Iterator[None]:
    """All modules in training mode, whatever mode they are in now: the one in which rows may depend on each other."""
    modes = [(m, m.training) for top in modules for m in top.modules()]
    for m, _ in modes:
        m.training = True
    try:
        yield
    finally:
        for m, mode in modes:
            m.training = mode


def _stackable(data: Call, context: Call) -> bool:
    """Has each call a single tensor, of one kind?"""
    if data.kwargs or context.kwargs or len(data.args) != 1 or len(context.args) != 1:
        return False
    h, t = data.args[0], context.args[0]
    return isinstance(h, Tensor) and isinstance(t, Tensor) and h.shape[1:] == t.shape[1:] and h.dtype == t.dtype


def _first_input(call: Call) -> Tensor | None:
    """What a unit is given: its first floating input, as a mask may come before it; else its first tensor."""
    found = first_floating((call.args, call.kwargs))
    if found is not None:
        return found
    leaves = tree_flatten((call.args, call.kwargs))[0]
    return next((v for v in leaves if isinstance(v, Tensor)), None)


_raw: dict[type, type] = {}


def _without_hooks(module: nn.Module, plain: type) -> nn.Module:
    """The same module, sharing its ``__dict__``, under a class that skips hooks.

    It is made per call: deepcopy would split it from the module.
    """
    if plain not in _raw:
        forward: Any = plain.forward  # type: ignore[attr-defined]
        _raw[plain] = type(plain.__name__, (plain,), {"__call__": lambda self, *a, **k: forward(self, *a, **k)})
    view: nn.Module = object.__new__(_raw[plain])
    view.__dict__ = module.__dict__
    return view
