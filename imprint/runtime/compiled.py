"""What backends that capture have in common."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import ArgumentError, CaptureError, CompileError, ShapeError, StateError
from ..graph import Graph, Result
from ..graph.learning import Learning
from ..graph.live import LiveGroup
from ..graph.plain import held_by, ports_of
from ..graph.rollout import Rollout
from ..objectives import PortDrive, PortOutput
from . import passes
from .backend import Backend, Options
from .baked import Baked
from .blocks import Blocks, Run
from .capture import Captured
from .codegen import generators
from .explain_plan import module_lines, option_notes
from .fit import cut, filled_up, rows_of
from .learns import Learns
from .legal import check_graph, check_taps
from .passages import Passages
from .timetable import Timetable

MOST = 16
"""Shapes of batches for which captures are kept."""


class Compiled(Backend):
    """Captures blocks of ticks as they come, and runs what was made of them.

    Blocks are captured for a number of rows, and for what is due in them: other due sets are captured when they come
    first. A batch of any length is taken in slots of :attr:`SLOTS` ticks.

    Attributes:
        programs: by kind and by the shapes they are for.
        fallen: why the graph's own engine runs instead, if it was asked for and has to.
    """

    SLOTS: ClassVar[int] = 64
    BLOCK: ClassVar[int] = 16
    codegen: ClassVar[str] = "inductor"

    def __init__(self, graph: Graph, schedule: Timetable, options: Options) -> None:
        super().__init__(graph, schedule, options)
        self.programs: dict[Hashable, list[Blocks]] = {}
        self.fallen: str | None = None
        self.baked = Baked.of(graph)
        self._or_fall(lambda: check_graph(graph))

    # -- running

    def rollout(self, batch: Mapping[str, Any], reset: bool, keep: str) -> Result:
        """The graph's own rollout, with captured blocks in place of its engine."""
        if self.fallen is None:
            try:
                return self._rollout(batch, reset, keep)
            except (CaptureError, CompileError) as error:
                if not self.options.fallback:
                    raise
                self.close()
                self.fallen = str(error)
        return self.graph.rollout(batch, reset, keep)

    def _rollout(self, batch: Mapping[str, Any], reset: bool, keep: str) -> Result:
        assert self.graph.known is not None
        if torch.is_autocast_enabled(torch.device(self.graph.known["device"]).type):
            raise CaptureError(
                "plan.rollout", "captured blocks know nothing of autocast", fix="leave it, or backend='eager'"
            )
        graded = torch.is_grad_enabled()
        # tensors that are made in inference mode could never be written again outside of it
        with torch.inference_mode(False), torch.set_grad_enabled(graded):
            return self._fitted(batch, reset, keep)

    def _fitted(self, batch: Mapping[str, Any], reset: bool, keep: str) -> Result:
        """By its number of rows."""
        graph, rows = self.graph, rows_of(self.graph, batch)
        if rows in (None, self.rows) or self.options.on_shape == "recapture":
            return graph.run_by(self, batch, reset, keep)
        if self.options.on_shape == "error":
            raise ShapeError(
                "plan.rollout", "it was captured for another number of rows", expected=self.rows, got=rows,
                fix="on_shape='recapture', or on_shape='pad' for fewer rows; a DataLoader(drop_last=True)",
            )  # fmt: skip
        assert rows is not None
        if not reset and graph.run is not None:
            raise ArgumentError(
                "plan.rollout", "rows that fill a batch up have no past to go on from", got=f"{rows} rows, reset=False",
                fix=f"batches of {self.rows} rows, or on_shape='recapture'",
            )  # fmt: skip
        more = filled_up(graph, batch, rows, self.rows)
        made = graph.run_by(self, more, reset, keep, self.rows - rows)
        run, dues, _ = graph.rolled
        cut(run, dues, rows)
        return made

    def learn(self, run: Rollout) -> None:
        """All ticks of a rollout that learns."""
        check_taps(self.graph)
        learning = self.graph.learning
        assert learning is not None
        if learning.live and learning.block_ticks is None:
            self._unrolled(run, learning)
        else:
            program = self._program("learn", run, lambda: Learns(self.graph, self, self.SLOTS, self.BLOCK))
            assert isinstance(program, Learns)
            program.learn(run)

    def plain(self, run: Rollout) -> None:
        """All ticks of one that does not."""
        check_taps(self.graph)
        self._passages(run, self.graph.runners()).roll(run)

    def _unrolled(self, run: Rollout, learning: Learning) -> None:
        """The rollout as a whole is differentiated: its blocks are run forth, and back once the losses are known."""
        asked = dict(run.kept)
        for group in learning.live:
            for key in _needed(group):
                run.kept.setdefault(key, [])
        with torch.enable_grad():
            self._passages(run, learning.parts).roll(run)
            _learn_at_once([group for group in learning.live if group.prop.optimizers], run)
        run.end(cut=True)
        run.state_log.clear()
        run.kept = {key: run.kept[key] for key in asked}

    def _passages(self, run: Rollout, parts: list[list[Any]]) -> Passages:
        kind = "unrolled" if parts is not self.graph.runners() else "plain"
        made = self._program(kind, run, lambda: Passages(self.graph, parts, self, self.SLOTS, min(8, self.BLOCK)))
        assert isinstance(made, Passages)
        return made

    def _program(self, kind: str, run: Rollout, make: Callable[[], Blocks]) -> Blocks:
        """Of the rollout's shapes."""
        some = self.programs.setdefault((kind, _shapes(run)), [])
        for program in some:
            if program.takes(run):
                return program
        if len(self._all()) >= MOST:
            oldest = next(iter(self.programs))
            self.programs.pop(oldest)
            some = self.programs.setdefault((kind, _shapes(run)), [])
        some.append(make())
        self.baked = Baked.of(self.graph)  # groups may have been formed just now
        return some[-1]

    def generate(self, captured: Captured) -> Run:
        """What runs: lowered, then by the code generator."""
        return generators[self.options.codegen or self.codegen](self.lowered(captured))

    @property
    def lowers(self) -> bool:
        """Are products joined? Call by call nothing is changed."""
        return (self.options.codegen or self.codegen) != "eager"

    def lowered(self, captured: Captured) -> Captured:
        """The same in fewer and larger products; call by call nothing is changed."""
        if not self.lowers:
            return captured
        some = [passes.clean, passes.reuse_rows, passes.rows_at_once]
        some += [passes.one_left] * self.options.fuse_projections + [passes.port_sums] * self.options.fuse_port_sums
        if any(v.is_cuda for v in captured.tensors):  # on a CPU copying weights together costs more than it saves
            some.append(passes.stacked)
        for each in [*some, passes.clean]:
            captured.said += each(captured.module)
        return captured

    def play(self, runs: Sequence[Run]) -> None:
        """Run some blocks after each other."""
        for run in runs:
            run()

    # -- what was made of it

    def modules(self) -> list[str]:
        """How each module learns, and what was captured."""
        return module_lines(self.graph, self._all(), self.fallen)

    def notes(self) -> dict[str, str]:
        """What became of the options that join products, and of the fallback."""
        notes = option_notes(self._all(), self.options, self.lowers)
        if self.options.fallback:
            notes["fallback"] = "not needed" if self.fallen is None else "everything runs on the graph's own engine"
        return notes

    def _all(self) -> list[Blocks]:
        return [program for some in self.programs.values() for program in some]

    # -- staleness

    def stale(self) -> list[str]:
        """What has changed of what captures take for granted, in words."""
        changed = self.baked.differences(Baked.of(self.graph))
        return changed + [why for program in self._all() for why in program.stale()]

    def check(self) -> None:
        """Refuse, or take in, what has changed."""
        if self.fallen is None:
            self._or_fall(lambda: check_graph(self.graph))
        changed = self.stale()
        if changed and self.options.on_stale == "error":
            raise StateError(
                "plan.rollout", "what was captured is no longer so", got="; ".join(changed),
                fix="plan.refresh(), or compile(on_stale='recapture')",
            )  # fmt: skip
        if changed:
            self.refresh()

    def refresh(self) -> None:
        """Forget what was captured; it is captured anew as it comes."""
        self.close()
        self.baked = Baked.of(self.graph)
        self.fallen = None
        self._or_fall(lambda: check_graph(self.graph))

    def close(self) -> None:
        """Let go of all that was captured."""
        self.programs = {}

    def _or_fall(self, check: Callable[[], None]) -> None:
        try:
            check()
        except CaptureError as error:
            if not self.options.fallback:
                raise
            self.fallen = str(error)


def _learn_at_once(groups: list[LiveGroup], run: Rollout) -> None:
    """One way back for all groups, with the weights of before any of them has moved."""
    lost = [group.lost(run, run.start, run.stop) for group in groups]
    params = {(i, k): p for i, group in enumerate(groups) for k, p in group.prop.params.items() if p.requires_grad}
    losses = [v for v in lost if v is not None and v.requires_grad]
    found = torch.autograd.grad(losses, list(params.values()), allow_unused=True) if losses else (None,) * len(params)
    for i, (group, loss) in enumerate(zip(groups, lost, strict=True)):
        if loss is not None:
            grads = {k: g for (j, k), g in zip(params, found, strict=True) if j == i and g is not None}
            group.gather(run, run.start, run.stop, grads, loss.detach())
        group.finish_block(run.stop)


def _needed(group: LiveGroup) -> list[str]:
    """Ports that a group's losses look at."""
    found = []
    for due in group.agenda.dues.values():
        found += ports_of(due)
        if isinstance(due.term.target, PortDrive | PortOutput):
            found.append(held_by(due.term.target))
    return found


def _shapes(run: Rollout) -> Hashable:
    """Of inputs and targets, without rows and ticks."""
    found: list[Hashable] = [(name, tuple(x.shape[2:]), x.dtype) for name, x in run.sources.items()]
    learning = run.graph.learning
    for group in learning.groups if learning is not None else []:
        agenda = getattr(group, "agenda", None)
        for name, due in agenda.dues.items() if agenda is not None else ():
            y: Tensor | None = due.y
            found.append((name, None if y is None else (tuple(y.shape[2:]), y.dtype)))
    return (run.rows, run.dtype, run.device, *found)
