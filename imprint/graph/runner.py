"""Runs one module through a chunk of ticks, as plain autograd sees it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from ..propagators.buffers import Buffers
from .module import Module
from .rollout import Rollout
from .signal import hold
from .unit import Facts, GraphUnit


class Runner:
    """One module; tick by tick inside a cycle, else a whole chunk at once.

    Runners of a chunk go in the order of components. That gives the numbers of tick-by-tick order, because a module
    sees of others only what they emit; where weights move within a chunk, they are only the module's own.

    Attributes:
        unit: the module as a unit of its own.
    """

    def __init__(self, module: Module, zero: Any) -> None:
        self.module = module
        self.unit = GraphUnit([module], {}, zero)
        self.names = (module.name,)
        self.buffers = Buffers([module] if module.proto is None else [module.proto])

    def on(self, run: Rollout) -> AbstractContextManager[None]:
        """Where it runs for `run`: for a signal, on copies of its buffers, for running statistics are of the data."""
        return self.buffers.borrowed() if run.signalling else nullcontext()

    def tick(self, run: Rollout, t: int) -> None:
        """One tick, inside a cycle."""
        facts = facts_of(run, t, self.unit)
        x = read(run, self.unit, t, facts)
        state = self.unit.cell(self.unit.own, state_of(run, self.unit, t), x)
        if facts.emits and self.module.name in run.watched:
            run.state_log.setdefault(self.module.name, []).append(state["proto"][self.module.name])
        write(run, self.unit, t, facts, state)

    def settle(self, run: Rollout, t: int) -> None:
        """Nothing waits for the end of a tick."""

    def chunk(self, run: Rollout, start: int, stop: int) -> None:
        """All ticks of the chunk."""
        if self.unit.inner or self.module.name in run.watched:
            for t in range(start, stop):
                self.tick(run, t)
            return
        module, proto = self.module, self.module.proto
        assert proto is not None
        emits = [run.schedule.emits(module.name, t) for t in range(start, stop)]
        steps = [i for i in range(stop - start) if run.schedule.steps(module.name, start + i)]
        drives = {port: self._drive(run, port, steps) for port in module.ports.inputs}
        for port, drive in drives.items():
            counts = accumulate(int(i in steps) for i in range(stop - start))
            run.signals[f"{module.name}.{port}:drive"].fill(drive, list(counts))
        emitted = [j for j, i in enumerate(steps) if emits[i]]
        layers = self._layers(run, drives, start, steps, emitted)
        counts_out = list(accumulate(map(int, emits)))
        for port in module.nodes:
            key = f"{module.name}.{port}"
            if not emitted:
                run.signals[key].fill(run.signals[key].stacked(), counts_out)
                continue
            stack = module.view(port, layers)
            run.signals[key].fill(self._held(run, key, stack, [start + steps[j] for j in emitted]), counts_out)

    def _drive(self, run: Rollout, port: str, steps: list[int]) -> Tensor:
        """``[S, B, …]``: projected once an emission of the source, not once a tick."""
        parts = []
        for edge in self.module.incoming:
            if edge.target.name == port:
                values, index = run.signals[edge.source.key].rows(steps, edge.delay)
                drive = edge(values)
                parts.append(
                    drive if index is None else drive[torch.tensor(index, dtype=torch.int64, device=drive.device)]
                )
        return self.module.combine(port, parts)

    def _layers(
        self, run: Rollout, drives: dict[str, Tensor], start: int, steps: list[int], emitted: list[int]
    ) -> list[Tensor]:
        """Outputs of all layers at the emissions, ``[E, B, …]``; the state moves on."""
        module, proto = self.module, self.module.proto
        assert proto is not None
        if not steps:
            return []
        drive = module.proto_input(drives)
        if not proto.recurrent:
            if not emitted:
                return []
            chosen = drive if len(emitted) == len(steps) else _take(drive, emitted)
            return proto.scan(chosen, ())[1]
        first = next(iter(drives.values()))
        before = run.states.get(module.name)
        if before is None:
            before = proto.init_state(run.rows, first.device, first.dtype)
        pieces: list[list[Tensor]] = []
        inner = module.schedule.inner_steps
        for a, b, reset in self._segments(run, start, steps):
            state = proto.init_state(run.rows, first.device, first.dtype) if reset else before
            part = _take(drive, slice(a, b))
            if inner > 1:
                part = _repeat(part, inner)
            after, outs = proto.scan(part, state)
            if inner > 1:
                outs = [out[inner - 1 :: inner] for out in outs]
            valid = run.valid(start + steps[a])
            before = after if valid is None else hold(valid, after, before, proto.batch_dim)
            pieces.append(outs)
        run.states[module.name] = before
        layers = [torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*pieces, strict=True)]
        return layers if len(emitted) == len(steps) else [layer[emitted] for layer in layers]

    def _segments(self, run: Rollout, start: int, steps: list[int]) -> list[tuple[int, int, bool]]:
        """Runs of steps between resets and ends of rows: ``(from, to, reset before)``."""
        name, proto = self.module.name, self.module.proto
        assert proto is not None
        own = run.schedule.own_tick(name, start + steps[0])
        resets = {j for j in range(len(steps)) if proto.resets_at(own + j)}
        ends = set(run.lengths or ())
        cuts = {0, len(steps)} | resets
        cuts |= {
            j
            for j in range(1, len(steps))
            if ends & set(range(_at(start, steps, j - 1, run), _at(start, steps, j, run)))
        }
        order = sorted(cuts)
        return [(a, b, a in resets) for a, b in pairwise(order)]

    def _held(self, run: Rollout, key: str, stack: Tensor, ticks: list[int]) -> Tensor:
        """Emissions of rows that have ended are their own last ones."""
        valid = run.valid_at(ticks)
        if valid is None or run.valid(ticks[-1]) is None:
            return stack
        last = valid.sum(0) - 1
        index = torch.arange(len(ticks), device=stack.device)[:, None].minimum(last.clamp_min(0))
        shape = [*index.shape, *[1] * (stack.dim() - 2)]
        made = stack.gather(0, index.view(shape).expand_as(stack))
        never = (last < 0).view(1, -1, *[1] * (stack.dim() - 2))
        return torch.where(never, run.signals[key].before, made)


def _at(start: int, steps: list[int], j: int, run: Rollout) -> int:
    return start + steps[j] - run.offset + 1


def _take(drive: Any, index: Any) -> Any:
    return {k: v[index] for k, v in drive.items()} if isinstance(drive, dict) else drive[index]


def _repeat(drive: Any, times: int) -> Any:
    if isinstance(drive, dict):
        return {k: v.repeat_interleave(times, 0) for k, v in drive.items()}
    return drive.repeat_interleave(times, 0)


def facts_of(run: Rollout, t: int, unit: GraphUnit) -> Facts:
    """What is known of tick `t` for the members of a unit."""
    schedule = run.schedule
    steps = frozenset(n for n in unit.modules if schedule.steps(n, t))
    resets = frozenset(
        n
        for n in steps
        if unit.modules[n].proto.resets_at(schedule.own_tick(n, t))  # type: ignore[union-attr]
    )
    return Facts(t, steps, frozenset(n for n in unit.modules if schedule.emits(n, t)), resets)


def read(run: Rollout, unit: GraphUnit, t: int, facts: Facts) -> dict[str, Any]:
    """What a unit's edges bring from outside at tick `t`."""
    i = t - run.start
    values = {
        name: run.signals[edge.source.key].at(i, edge.delay)
        for name, edge in unit.edges.items()
        if name not in unit.inner and edge.target.module.name in facts.steps
    }
    return {"values": values, "valid": run.valid(t), "facts": facts}


def state_of(run: Rollout, unit: GraphUnit, t: int, states: dict[str, Any] | None = None) -> dict[str, Any]:
    """A unit's state before tick `t`: of its protos, and what the ports that are read within it held.

    `states` are the protos', where they have moved on.
    """
    protos = {}
    for name, module in unit.modules.items():
        protos[name] = (run.states if states is None else states).get(name)
        if protos[name] is None:
            assert module.proto is not None
            protos[name] = module.proto.init_state(run.rows, run.device, run.dtype)
    return {
        "proto": protos,
        "held": {key: run.signals[key].line(t - run.start, reach) for key, reach in unit.reach.items()},
    }


def write(run: Rollout, unit: GraphUnit, t: int, facts: Facts, state: dict[str, Any]) -> None:
    """A unit's state after tick `t`, and what it emitted; ended rows keep their last emission."""
    run.states |= state["proto"]
    out, valid = state["out"], run.valid(t)
    for name, module in unit.modules.items():
        for key in (f"{name}.{port}:drive" for port in module.ports.inputs):
            run.signals[key].emit(out.get(key))
        for key in (f"{name}.{port}" for port in module.nodes):
            value = out.get(key)
            if value is not None and valid is not None:
                value = hold(valid, value, run.signals[key].latest, 0)
            run.signals[key].emit(value)
