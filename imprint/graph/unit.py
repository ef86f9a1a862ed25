"""Modules of a graph as one unit of credit: a gradient group."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..credit import Params, Tree
from ..objectives import ParameterTerm, PortDrive, PortOutput, Target, Term, View
from .edge import Edge
from .facts import Facts as Facts
from .module import Module
from .signal import hold
from .traced import UnitCells


class Members(nn.Module):
    """The modules, edges and terms of a unit, under the names their parameters have in the graph."""

    def __init__(self, modules: Mapping[str, Module], edges: Mapping[str, Edge], terms: Mapping[str, Term]) -> None:
        super().__init__()
        self.nodes, self.edges, self.terms = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for name, module in modules.items():
            self.nodes[name] = module
        for name, edge in edges.items():
            self.edges[name] = edge
        for name, term in terms.items():
            self.terms[name.replace(".", "__")] = term

    def forward(self, f: Any, *args: Any) -> Any:
        """Run `f` while the parameters are others."""
        return f(*args)

    def places(self) -> dict[str, Tensor]:
        """Parameters and buffers at every place that holds one: tied ones at each, those of a shared module once."""
        found: dict[str, Tensor] = {}
        for name, m in self.named_modules():
            held = {**m._parameters, **m._buffers}
            found |= {f"{name}.{k}" if name else k: v for k, v in held.items() if v is not None}
        return found

    def lent(self, p: Params, f: Any, *args: Any) -> Any:
        """Run `f` on others in place of the parameters of these names, wherever they are held.

        torch lends by name: a module with two names would be given back what it was lent.
        """
        held = self.places()
        by_id = {id(held[k]): v for k, v in p.items() if k in held}
        everywhere = {k: by_id[id(v)] for k, v in held.items() if id(v) in by_id}
        return functional_call(self, everywhere, (f, *args), tie_weights=False)


class GraphUnit:
    """A gradient group: modules in the order of a tick, joined by edges that let gradient through.

    State: ``{"proto": {module: its state}, "held": {port key: (now, a tick ago, …)}}``; held are the ports read within
    the unit, so that credit through time sees them. After a tick also ``"made"``: the new states of those that stepped,
    in rows past their end too. x: ``{"values": {edge: value}, "valid": [B] or None, "facts"}``.
    y: ``{term: {"y", "valid", "share"}}`` of the terms that are due.

    Args:
        modules: in the order of a tick.
        terms: by ``"module.term"``; each module's own and those a rule filled in.
        zero: ``(port key, B) -> zeros``: what ports hold at first.

    Attributes:
        reached: members that a data objective reaches; the others only run, and regularisers of theirs do not count.
        own: the parameters of those that are reached.
    """

    def __init__(self, modules: list[Module], terms: dict[str, Term], zero: Any) -> None:
        self.modules = {m.name: m for m in modules}
        self.reached = reached(modules, {name.split(".")[0] for name, term in terms.items() if term.data})
        self.terms = {name: term for name, term in terms.items() if name.split(".")[0] in self.reached}
        self.zero = zero
        edges = {e.name: e for m in modules for e in m.incoming}
        self.inner = {e.name: e.source.key for e in edges.values() if e.source.module.name in self.modules}
        self.reach: dict[str, int] = {}
        for name, key in self.inner.items():
            self.reach[key] = max(self.reach.get(key, 0), edges[name].delay)
        self.own_targets = own_targets(self.terms, self.modules)
        for key in self.own_targets.values():
            self.reach.setdefault(key, 0)
        self.members = Members(self.modules, edges, self.terms)
        self.edges = edges
        resting = {
            id(p) for m in modules if m.name not in self.reached for o in (m, *m.incoming) for p in o.parameters()
        }
        self.own: Params = {k: p for k, p in self.members.named_parameters() if id(p) not in resting}
        self.penalties: list[tuple[Module, ParameterTerm]] = [
            (m, p) for m in modules if m.name in self.reached for p in m.objectives.params
        ]

    def init(self, batch: int) -> Tree:
        """Zero states and nothing emitted."""
        states = {}
        for name, module in self.modules.items():
            assert module.proto is not None
            anchor = self.zero(module["out"].key, batch)
            states[name] = module.proto.init_state(batch, anchor.device, anchor.dtype)
        return {"proto": states, "held": {k: (self.zero(k, batch),) * (n + 1) for k, n in self.reach.items()}}

    @cached_property
    def cells(self) -> UnitCells:
        """What eligibility traces see of it."""
        return UnitCells(self)

    def cell(self, p: Params, state: Tree, x: Tree) -> Tree:
        """One tick of every member that steps."""
        if p is self.own:
            return self._cell(state, x)
        return self.members.lent(p, self._cell, state, x)

    def _cell(self, state: Tree, x: Tree) -> Tree:
        facts, valid, protos = x["facts"], x["valid"], dict(state["proto"])
        held = {k: (line[0], *line[:-1]) for k, line in state["held"].items()}
        out: dict[str, Tensor] = {}
        made: dict[str, Any] = {}
        for name, module in self.modules.items():
            if name not in facts.steps:
                continue
            drives = self._drives(module, x["values"], held)
            drive, before = module.proto_input(drives), protos[name]
            proto = module.proto
            assert proto is not None
            after = before
            if name in facts.resets:
                first = next(iter(drives.values()))
                after = proto.init_state(len(first), first.device, first.dtype)
            if proto.recurrent or name in facts.emits:
                for _ in range(module.schedule.inner_steps if proto.recurrent else 1):
                    after, outs = module.step_once(drive, after)
                made[name] = after
                protos[name] = after if valid is None else hold(valid, after, before, proto.batch_dim)
            for port, value in drives.items():
                out[f"{name}.{port}:drive"] = value
            if name in facts.emits:
                for port in module.nodes:
                    out[f"{name}.{port}"] = module.view(port, outs)
            for key in [k for k in out if k in held]:
                line = held[key]
                value = out[key] if valid is None else hold(valid, out[key], line[0], 0)
                held[key] = (value, *line[1:])
        return {"proto": protos, "held": held, "out": out, "made": made}

    def _drives(self, module: Module, values: Mapping[str, Tensor], held: Mapping[str, Any]) -> dict[str, Tensor]:
        arriving: dict[str, list[Tensor]] = {port: [] for port in module.ports.inputs}
        for edge in module.incoming:
            key = self.inner.get(edge.name)
            value = values[edge.name] if key is None else held[key][edge.delay]
            arriving[edge.target.name].append(edge(value))
        return {port: module.combine(port, parts) for port, parts in arriving.items()}

    def readout(self, p: Params, state: Tree, x: Tree) -> dict[str, Tensor]:
        """What was emitted, and what drove it, by port key."""
        return state["out"]

    def loss(self, p: Params, out: Tree, state: Tree, x: Tree, y: Tree) -> Tensor:
        """The weighted sum of the terms that are due."""
        if p is self.own:
            return self._loss(out, state, x, y)
        return self.members.lent(p, self._loss, out, state, x, y)

    def _loss(self, out: Tree, state: Tree, x: Tree, y: Tree) -> Tensor:
        losses = []
        for name, due in y.items():
            if name not in self.terms:
                continue
            if name in self.own_targets and due["y"] is None:
                due = {**due, "y": state["held"][self.own_targets[name]][0].detach()}
            view = view_of(self.terms[name], name.split(".")[0], out, state["proto"], due, x["facts"].tick)
            loss, share = self.terms[name](view), due["share"]
            losses.append(loss if isinstance(share, float) and share == 1.0 else loss * share)
        if "penalty" in y:
            losses += [t.loss(list(m.iter_parameters_by_tag(t.tag))) * y["penalty"] for m, t in self.penalties]
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()


def reached(modules: Collection[Module], data: Iterable[str]) -> set[str]:
    """Of these modules, those with data objectives and those behind edges that let gradient through to them."""
    found, names = set(data), {m.name for m in modules}
    edges = [e for m in modules for e in m.incoming if not e.stop_grad and e.source.module.name in names]
    while more := {e.source.module.name for e in edges if e.target.module.name in found} - found:
        found |= more
    return found


def own_targets(terms: Mapping[str, Term], modules: Mapping[str, Module]) -> dict[str, str]:
    """Terms whose target a port of the unit itself holds at the same tick, and the key of that port."""
    made = {}
    for name, term in terms.items():
        target = term.target
        if isinstance(target, PortDrive) and target.module.name in modules:
            made[name] = f"{target.module.name}.{target.port}:drive"
        elif isinstance(target, PortOutput) and target.shift == 0 and target.module.name in modules:
            made[name] = f"{target.module.name}.{target.port}"
    return made


def view_of(term: Term, module: str, out: Mapping[str, Tensor], states: Mapping[str, Any], due: Any, tick: int) -> View:
    """What `term` of `module` sees."""
    complete = due.get("complete", False)
    if term.objective.rowwise:
        h = out[f"{module}.{term.on}"]
        return View(h, context=Target(due["y"]), tick=tick, valid=due["valid"], complete=complete)
    ports = {k.removeprefix(f"{module}."): v for k, v in out.items() if k.startswith(f"{module}.")}
    return View(
        h=ports[term.on], context=Target(due["y"]), batch=due.get("batch"), tick=tick, valid=due["valid"],
        complete=complete,
        output={k: v for k, v in ports.items() if ":" not in k},
        drive={k.removesuffix(":drive"): v for k, v in ports.items() if ":" in k}, state=states.get(module),
    )  # fmt: skip
