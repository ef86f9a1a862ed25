"""What credit by eligibility traces keeps between ticks."""

from __future__ import annotations

from collections.abc import Collection
from copy import copy
from hashlib import sha256
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ..errors import CheckpointError
from ..etrace.algorithm import Algorithm
from ..etrace.analysis import Structure
from ..etrace.deliver import Gradients, deliver
from ..etrace.engine import hold
from ..etrace.hybrid import trace_of
from ..etrace.linearize import GroupBlock, Use, linearize
from ..etrace.recursion import seen
from ..etrace.signal import of_group
from ..etrace.structure import HiddenGroup, HiddenParamOpRelation, tapped
from ..etrace.tap import Call
from ..etrace.trace import Trace
from .etrace_cells import Cells, Tick
from .etrace_signal import Signal, signal_of
from .instant import add
from .protocol import Params, Tree

Key = tuple[Any, ...]


class Kept(NamedTuple):
    """The trace of one weight of one hidden group, and at what kind of ticks it was first used."""

    trace: Trace
    relation: HiddenParamOpRelation
    compiled: Any


class Traces:
    """Gradients gathered since the last update, the trace of every weight, and ticks that wait to be taken in.

    Each weight has a trace of its own, so that it goes on where modules step at different ticks.

    Args:
        unit: what runs.
        algorithm: which traces.
        block: ticks taken in at once.
        in_place: weights move after each tick, so that nobody goes back to before it: no copies are made.

    Attributes:
        trusts: losses that are not finite are somebody else's affair.
    """

    def __init__(self, unit: Any, algorithm: Algorithm, block: int, in_place: bool = False) -> None:
        self.unit, self.algorithm, self.in_place = unit, algorithm, in_place
        self.cells: Cells = unit.cells
        self.block = block if self.cells.rowwise else 1
        self.grads: Params = {}
        self.kept: dict[Key, Kept] = {}
        self.waiting: list[Tick] = []
        self.names = {p: k for k, p in unit.own.items()}
        self.keys: dict[int, dict[int, Key]] = {}
        self.owns, self.trusts = True, False

    # -- a tick

    def fork(self) -> Traces:
        """What the next tick changes, while these stay as they are: whoever kept them can go back to before a failure.

        The numbers are copied where they are first written, in each block once.
        """
        made = copy(self)
        made.kept, made.waiting, made.owns = dict(self.kept), list(self.waiting), self.in_place
        return made

    def _own(self) -> None:
        """Before numbers are written: they may be those of another."""
        if not self.owns:
            self.kept = {key: self._copied(kept) for key, kept in self.kept.items()}
            self.owns = True

    def _copied(self, kept: Kept) -> Kept:
        trace = kept.trace
        like = next(iter(trace.store.values()))
        made = self._made(trace.group, kept.relation, kept.compiled, trace.rows, like)
        for name, v in trace.store.items():
            made.trace.store[name].copy_(v)
        return made

    def tick(self, state: Tree, x: Tree, y: Tree) -> tuple[Tree, Tree, Tensor | None]:
        """Run the unit once: ``(out, new state, loss)``."""
        self._begin(state, x)
        if self.block == 1:
            signal = self._learn([(state, x, y)])
            if signal is not None:
                return signal.out, signal.new, signal.loss
            return (*self._run(state, x), None)
        out, new = self._run(state, x)
        loss = None
        if y is not None:
            with torch.no_grad():
                loss = self.unit.loss(self.unit.own, out, new, x, y)
        self.waiting.append((state, x, y))
        if len(self.waiting) >= self.block:
            self.flush()
        return out, new, loss

    def part(self, keys: Collection[Key], grads: Params) -> Traces:
        """Those of some weights, with other gradients, written in place: for whoever keeps them for good."""
        made = copy(self)
        made.kept, made.grads, made.waiting = {key: self.kept[key] for key in keys}, dict(grads), []
        made.owns = made.in_place = made.trusts = True
        return made

    def copied(self) -> Traces:
        """The same with numbers of its own."""
        made = copy(self)
        made.kept = {key: self._copied(kept) for key, kept in self.kept.items()}
        made.grads, made.waiting, made.owns = {k: g.clone() for k, g in self.grads.items()}, list(self.waiting), True
        return made

    def collect(self) -> Params:
        """The gradients since the last time."""
        self.flush()
        grads, self.grads = self.grads, {}
        return grads

    def flush(self) -> None:
        """Take in what waits."""
        waiting, self.waiting = self.waiting, []
        for _, ticks in groupby(waiting, key=lambda tick: self.cells.pattern(tick[1])):
            self._learn(list(ticks))

    def _run(self, state: Tree, x: Tree) -> tuple[Tree, Tree]:
        with torch.no_grad():
            new = self.unit.cell(self.unit.own, state, x)
            return self.unit.readout(self.unit.own, new, x), new

    def _begin(self, state: Tree, x: Tree) -> None:
        """Rows and modules that start anew at this tick have no past."""
        rows, resets = x.get("begun"), x["facts"].resets & self.cells.traced
        if rows is None and not resets:
            return
        self.flush()
        self._own()
        valid = self.cells.valid(state, x) if resets and x["valid"] is not None else None
        for kept in self.kept.values():
            if rows is not None:
                kept.trace.reset(rows)
            if _modules(kept.trace.group) <= resets:
                kept.trace.reset(valid)

    # -- learning

    def _learn(self, ticks: list[Tick]) -> Signal | None:
        """Take consecutive ticks in at which the same modules step; what was run for the losses, if one was due."""
        state, x, _ = ticks[0]
        compiled = self.cells.at(state, x)
        names = compiled.facts.steps & self.cells.traced if compiled is not None else frozenset()
        signal, states = self._signals(ticks, names)
        if compiled is None or self._refuses(signal):
            return signal
        with torch.no_grad():
            each = [self.cells.inputs(s, x, compiled.facts) for s, x, _ in ticks]
            befores = [self.cells.before(s, x, names) for s, x, _ in ticks]
            inputs = each[0] if len(each) == 1 else tree_map(lambda *v: torch.cat(v), *each)
            parts = {k: torch.cat([b[k] for b in befores]) for k in befores[0]}
        blocks, _ = linearize(compiled.cell, compiled.structure, inputs, parts, len(ticks))
        valid = None
        if any(x["valid"] is not None for _, x, _ in ticks):
            valid = torch.stack([self.cells.valid(s, x) for s, x, _ in ticks])
        grads = Gradients()
        self._own()
        with torch.no_grad():
            for block in blocks:
                _forget_states(block, [x["facts"].resets for _, x, _ in ticks])
                says = of_group(block, states)
                block = seen(self.algorithm, block)
                if valid is not None:
                    says = hold(block, says, valid)
                self._advance(block, says, valid, compiled, grads)
            self.grads = add(self.grads, {self.names[p]: g for p, g in grads.sums.items() if p.requires_grad})
        return signal

    def _refuses(self, signal: Signal | None) -> bool:
        """Is the loss one that the propagator will refuse?"""
        if not self.in_place or self.trusts or signal is None:
            return False
        return not bool(torch.isfinite(signal.loss))

    def _signals(self, ticks: list[Tick], names: Any) -> tuple[Signal | None, dict[str, Tensor]]:
        """Losses by new states ``[K, B, …]``, zero where none is due; one-step gradients are gathered."""
        due: dict[Any, list[int]] = {}
        for k, (_, x, y) in enumerate(ticks):
            if y is not None:
                due.setdefault((x["facts"].steps, x["facts"].emits), []).append(k)
        states: dict[str, Tensor] = {}
        signal = None
        for at in due.values():
            signal = signal_of(self.unit, [ticks[k] for k in at], names)
            self.grads = add(self.grads, signal.direct)
            for path, g in signal.states.items():
                each = g.unflatten(0, (len(at), -1))
                if path not in states:
                    states[path] = each.new_zeros(len(ticks), *each.shape[1:])
                states[path][at] = each
        return signal, states

    def _advance(self, block: GroupBlock, says: Tensor, valid: Tensor | None, compiled: Any, grads: Gradients) -> None:
        """All traces of one hidden group; those of weights that are not used at such ticks pass on as they are."""
        if id(compiled) not in self.keys:
            self.keys[id(compiled)] = _keys(compiled.structure)
        keys, here = self.keys[id(compiled)], set()
        for relation, uses in block.uses:
            key = keys[id(relation)]
            here.add(key)
            if key not in self.kept:
                rows, like = block.decay.shape[1], block.decay
                self.kept[key] = self._made(block.group, relation, compiled, rows, like)
            self._move(self.kept[key].trace, block, relation, uses, says, valid, grads)
        for key, kept in self.kept.items():
            if key not in here and kept.trace.group.hidden_paths == block.group.hidden_paths:
                self._move(kept.trace, block, kept.relation, _unused(kept, block), says, valid, grads)

    def _made(
        self, group: HiddenGroup, relation: HiddenParamOpRelation, compiled: Any, rows: int, like: Tensor
    ) -> Kept:
        return Kept(trace_of(self.algorithm, group, [relation], rows, like, None), relation, compiled)

    @staticmethod
    def _move(
        trace: Trace, block: GroupBlock, relation: HiddenParamOpRelation, uses: list[Use], says: Tensor,
        valid: Tensor | None, grads: Gradients,
    ) -> None:  # fmt: skip
        alone = GroupBlock(block.group, block.decay, block.inside, [(relation, uses)])
        (gradient,) = trace.block(alone, says, valid, False)
        deliver(relation, uses[0].call, gradient, grads)

    # -- what it is

    @property
    def bytes(self) -> int:
        """Of all traces."""
        return sum(kept.trace.bytes for kept in self.kept.values())

    def state_dict(self) -> dict[str, Any]:
        """Gradients and traces, and examples of the ticks they are of; what waits is taken in first."""
        self.flush()
        made = {id(kept.compiled): kept.compiled for kept in self.kept.values()}
        return {
            "grads": dict(self.grads),
            "rows": max((kept.trace.rows for kept in self.kept.values()), default=0),
            "ticks": [self.cells.saved(compiled) for compiled in made.values()],
            "traces": {_name(key): dict(kept.trace.store) for key, kept in self.kept.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Back to those."""
        own = self.unit.own
        like = next(p for p in own.values() if p.is_floating_point()).detach()
        self.grads = {k: g.to(own[k]) for k, g in state["grads"].items()}
        self.kept, left = {}, dict(state["traces"])
        for saved in state["ticks"]:
            compiled = self.cells.restored(saved)
            keys = _keys(compiled.structure)
            for relation in compiled.structure.relations:
                group, key = compiled.structure.groups[relation.group], keys[id(relation)]
                store = left.pop(_name(key), None)
                if store is not None:
                    self.kept[key] = self._made(group, relation, compiled, state["rows"], like)
                    for name, v in self.kept[key].trace.store.items():
                        v.copy_(store[name])
        if left:
            raise CheckpointError(
                "load_state_dict", "it was saved with other traces", expected="this credit, on these modules",
                got=sorted(left), fix="attach with the same credit= and protos",
            )  # fmt: skip


def _keys(structure: Structure) -> dict[int, Key]:
    """What each relation is known by, at whatever ticks."""
    made: dict[int, Key] = {}
    for r in structure.relations:
        outputs = None if r.outputs is None else tuple(r.outputs.tolist())
        units = tuple(r.unit_of.tolist())
        paths = structure.groups[r.group].hidden_paths
        key = (paths, r.path, r.op, r.positions, r.inputs, r.steady, len(r.calls), outputs, units)
        made[id(r)] = (*key, sum(other[:-1] == key for other in made.values()))
    return made


def _name(key: Key) -> str:
    """For files."""
    paths, weight, *rest = key
    return f"{'+'.join(paths)} by {weight}, {sha256(repr(rest).encode()).hexdigest()[:16]}"


def _unused(kept: Kept, block: GroupBlock) -> list[Use]:
    """No use of a weight at the ticks of a block: nothing comes in, and what comes out is the weight's as it is now."""
    inputs, parts = kept.compiled.sample
    calls: list[Call] = tapped(kept.compiled.cell, inputs, parts).calls
    relation, states = kept.relation, block.states
    ticks, rows = block.decay.shape[:2]
    shape = (ticks, rows * relation.positions)
    df = block.decay.new_zeros(*shape, relation.width, *[states] * (states > 1))
    x = None if relation.op == "vector" else block.decay.new_zeros(*shape, relation.inputs)
    return [Use(x, df, calls[i]) for i in relation.calls]


def _forget_states(block: GroupBlock, resets: list[frozenset[str]]) -> None:
    """Where some states of a group start anew and others do not, nothing comes from the former."""
    if block.states == 1:
        return
    for k, names in enumerate(resets):
        columns = [i for i, p in enumerate(block.group.hidden_paths) if p.split(".")[0] in names]
        if columns and len(columns) < block.states:
            block.decay[k, ..., columns] = 0


def _modules(group: HiddenGroup) -> set[str]:
    return {path.split(".")[0] for path in group.hidden_paths}
