"""``with record(graph) as recording:``"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import overload

from ..errors import ArgumentError, StateError, UnknownNameError, did_you_mean
from ..graph import Graph
from ..graph.describe import table
from ..graph.observer import Observer
from ..graph.rollout import Rollout
from .backend import Options, registry
from .diary import Brought, brought
from .events import Event
from .explained import explained, plural
from .plan import Plan
from .ran import Ran
from .timetable import MOST_TICKS, Timetable


class Recording(Observer):
    """What rollouts of a graph did: who stepped and emitted, what every edge brought and became, and who learned.

    It is a list of :class:`Event`, in the order of a tick. It holds facts, never values: recording changes no number
    and keeps no tensor. Printing it shows a table, :meth:`explain` says more.

    Attributes:
        graph: what was recorded.
        rollouts: the facts of each rollout.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.rollouts: list[Ran] = []
        self._brought: Mapping[str, Brought] | None = None
        self._events: list[Event] = []
        self._listed = 0

    def rolling(self, run: Rollout, learns: bool) -> None:
        """Remember whether it learns, and what waits to be learned from."""
        self._brought = brought(run) if learns else None

    def rolled(self, run: Rollout) -> None:
        """Write down what happened."""
        self.rollouts.append(Ran.of(run, self._brought))

    @property
    def events(self) -> list[Event]:
        """What every module did at every tick at which it was due, in the order of a tick, rollout by rollout."""
        for ran in self.rollouts[self._listed :]:
            self._events += ran.events(Timetable(ran.blueprint))
        self._listed = len(self.rollouts)
        return self._events

    def __len__(self) -> int:
        return len(self.events)

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)

    @overload
    def __getitem__(self, index: int) -> Event: ...
    @overload
    def __getitem__(self, index: slice) -> list[Event]: ...
    def __getitem__(self, index: int | slice) -> Event | list[Event]:
        return self.events[index]

    @property
    def schedule(self) -> Timetable:
        """Who is due when.

        Raises:
            StateError: nothing was rolled out, or the graph changed between the rollouts.
        """
        if not self.rollouts:
            raise StateError("recording", "nothing was rolled out in it", fix="graph.rollout(batch) inside the block")
        first = self.rollouts[0].blueprint
        for ran in self.rollouts[1:]:
            if ran.blueprint != first:
                raise StateError(
                    "recording", "the graph changed between two rollouts",
                    got="; ".join(first.differences(ran.blueprint)), fix="record each in a block of its own",
                )  # fmt: skip
        return Timetable(first)

    def explain(self) -> str:
        """The schedule, the hyper-period with its due sets, what happens at ports, and how each group learned.

        The hyper-period is the least common multiple of all periods: of emissions, of fresh starts of states, of
        updates and of windows of credit. Its due sets are those of the schedule; how many ticks were learned from, and
        how many optimizer steps were taken, is what the rollouts did.

        Raises:
            StateError: nothing was rolled out, or the graph changed between the rollouts.
        """
        schedule = self.schedule
        return explained(self.rollouts, self.events, schedule)

    def compile(
        self, backend: str = "eager", fuse_projections: bool = True, fuse_port_sums: bool = True,
        codegen: str | None = None, on_shape: str = "recapture", on_stale: str = "error", fallback: bool = False,
        allow_emulation: bool = False,
    ) -> Plan:  # fmt: skip
        """A plan that runs by this schedule.

        Args:
            backend: what runs it. ``"eager"`` is the graph's own engine; ``"inductor"`` captures blocks of ticks,
                learning included, and compiles them; ``"cuda_graph"`` replays them on a CUDA device.
            fuse_projections: several edges that leave one source are one product. No effect on eager.
            fuse_port_sums: several edges into one port are one product. No effect on eager.
            codegen: what runs a captured block: ``"eager"``, call by call, or ``"inductor"``; None: compiled.
            on_shape: another number of rows is captured anew (``"recapture"``), filled up with rows that do not count
                (``"pad"``), or refused (``"error"``). Any number of ticks fits.
            on_stale: weights, groups or optimizers are others than those captured: an ``"error"``, or ``"recapture"``.
            fallback: what cannot be captured or compiled runs on the graph's own engine, and ``plan.explain()`` says
                so; else it is an error.
            allow_emulation: without a CUDA device ``"cuda_graph"`` is emulated: slow, for tests of captured ticks.

        Raises:
            UnknownNameError: there is no such backend; lists those that there are.
            StateError: nothing was recorded, or the graph has changed since.
            CaptureError: a module cannot be captured; names it. Others are found at the first rollout.
        """
        options = Options(fuse_projections, fuse_port_sums, codegen, on_shape, on_stale, fallback, allow_emulation)
        if not isinstance(backend, str) or backend not in registry:
            raise UnknownNameError(
                "recording.compile", f"unknown backend {backend!r}", fix=did_you_mean(str(backend), registry)
            )
        schedule = self.schedule
        made = registry[backend](self.graph, schedule, options)
        made.rows = max(ran.rows for ran in self.rollouts)
        plan = Plan(self.graph, self.rollouts[0].blueprint, schedule, made)
        plan.check()
        return plan

    def __repr__(self) -> str:
        if not self.rollouts:
            return "recording: nothing was rolled out"
        last, count = self.rollouts[-1], len(self.rollouts)
        schedule, ticks = Timetable(last.blueprint), sum(ran.ticks for ran in self.rollouts)
        words = [plural(count, "rollout"), *["learning"] * last.learned, plural(ticks, "tick"), f"{last.rows} rows"]
        again = f"the schedule repeats after {plural(schedule.period, 'tick')} (● emits, · only steps)"
        head = f"recording: {', '.join(words)}; {again}"
        shown = min(schedule.period, MOST_TICKS)
        rows: list[tuple[str | list[str], ...]]
        rows = [("module", f"ticks 0..{shown - 1}", "ran", "emitted", "reads", "emits")]
        for name in schedule.order:
            mine = [e for e in self.events if e.module == name and e.ran]
            reads = {r.edge: f"{r.port} {list(r.shape)}" for e in mine for r in e.reads}
            emits = {port: f"{port} {list(shape)}" for e in mine for port, shape in e.emitted.items()}
            emitted = sum(bool(e.emitted) for e in mine)
            rows.append((name, schedule.line(name), str(len(mine)), str(emitted), [*reads.values()], [*emits.values()]))
        return f"{head}\n{table(rows, right=[2, 3])}"


@contextmanager
def record(graph: Graph) -> Iterator[Recording]:
    """Record the rollouts of a graph inside the block.

    Raises:
        ArgumentError: not a graph.
        StateError: it is being recorded already.

    >>> import imprint, torch
    >>> graph, src = imprint.Graph(), imprint.Source("x")
    >>> slow = imprint.Module("slow", imprint.protos.GRUStack(hidden=3), schedule=imprint.Rate(emit_every=2))
    >>> _ = graph.connect(src["out"], slow["in"])
    >>> with record(graph) as recording:
    ...     out = graph.rollout({"x": torch.randn(2, 4, 5)})
    >>> print(recording)
    recording: 1 rollout, 4 ticks, 2 rows; the schedule repeats after 2 ticks (● emits, · only steps)
    module  ticks 0..1  ran  emitted  reads         emits
    ------  ----------  ---  -------  ------------  ----------
    x       ●●            4        4                out [2, 5]
    slow    ·●            4        2  x.out [2, 5]  out [2, 3]
    >>> plan = recording.compile(backend="eager")
    >>> torch.equal(plan.rollout({"x": torch.ones(7, 6, 5)})["slow"], graph.rollout({"x": torch.ones(7, 6, 5)})["slow"])
    True
    """
    if not isinstance(graph, Graph):
        raise ArgumentError(
            "record",
            "not a graph",
            expected="imprint.Graph",
            got=type(graph).__name__,
            fix="with record(graph) as recording:",
        )
    if any(isinstance(observer, Recording) for observer in graph.observers):
        raise StateError(
            "record", "the graph is being recorded already", got="a block inside another one",
            fix="one recording for both; when its block is over, record(graph) again",
        )  # fmt: skip
    recording = Recording(graph)
    graph.observers.append(recording)
    try:
        yield recording
    finally:
        graph.observers[:] = [o for o in graph.observers if o is not recording]
