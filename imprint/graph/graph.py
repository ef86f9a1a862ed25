"""Modules, edges and the clock that drives them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import ArgumentError, ShapeError, StateError
from ..objectives import BatchKey, Labels, Spec, StateActivity, Term
from ..propagators import learning_enabled
from .bind import build, infer
from .checks import check_batch, check_regularisers, check_state_tag, check_term
from .dot import to_dot
from .draw import draw
from .due import Due, resolve_labels
from .engine import Engine
from .loading import EXTRA, check_sources, check_weights, known_of
from .module import Module
from .observer import Observers
from .plain import declared_losses, plain
from .rate import Clock
from .result import Result, show
from .rollout import Rollout, check_rows
from .signal import Signal
from .structure import Structure
from .summary import summary
from .target_size import target_size
from .undo import undone_on_error
from .unit import reached

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Graph(Structure):
    """A multi-rate graph of modules, joined by edges that own their projections.

    Without a manager it is an ordinary autograd graph through time, cut at the edges:
    ``graph.rollout(batch); graph.loss().backward()``. With one (:func:`imprint.managers.attach`) a rollout in training
    mode learns as it goes, module by module.

    Args:
        clock: counts ticks over all rollouts.
        stop_grad: what edges do unless told otherwise; False opens all of them.

    Attributes:
        sizes: width of every port, once bound.

    >>> import imprint
    >>> graph = Graph()
    >>> src = imprint.Source("x")
    >>> enc = imprint.Module("enc", imprint.protos.GRUStack(hidden=8))
    >>> head = imprint.Module("head", imprint.protos.MLP([8, imprint.Auto]))
    >>> _ = graph.connect(src["out"], enc["in"]), graph.connect(enc["out"], head["in"])
    >>> _ = head.objectives.ce(target=imprint.Targets.batch_key("y"), num_classes=3)
    >>> out = graph.open_edges().rollout({"x": torch.randn(4, 5, 2), "y": torch.tensor([0, 1, 2, 0])})
    >>> out["head"].shape, graph.loss().shape
    (torch.Size([4, 5, 3]), torch.Size([]))
    """

    def __init__(self, clock: Clock | None = None, stop_grad: bool = True) -> None:
        super().__init__(stop_grad)
        if not isinstance(stop_grad, bool):
            raise ArgumentError(
                "Graph(stop_grad=)", "neither True nor False", got=repr(stop_grad), fix="Graph(stop_grad=False)"
            )
        if clock is not None and not isinstance(clock, Clock):
            raise ArgumentError("Graph(clock=)", "not a clock", got=repr(clock), fix="clock=imprint.Clock()")
        self.clock = clock or Clock()
        self.num_classes: int | None = None
        self.observers = Observers()
        self.run: Rollout | None = None
        self._dues: list[Due] = []
        self._warned = self._learned = False

    # -- binding

    def bind(self, batch: Mapping[str, Any]) -> Graph:
        """Infer every ``Auto`` size from edges, objectives and this batch, and make what is not made yet.

        Raises:
            ShapeError, StateError, ArgumentError: sizes in conflict, dangling ports, cycles without delay; then the
                graph is as it was.
        """
        check_batch("graph.bind", batch)
        self._build(infer(self, dict(batch)), dict(batch))
        return self

    def _build(self, known: dict[str, Any], batch: dict[str, Any] | None) -> None:
        _ = self.order, self.schedule.pace
        for module in self.modules_by_name.values():
            for term in module.objectives:
                check_term(self, module, term)
        with undone_on_error(self):
            build(self, known, batch)
            self.known, self.dtype = known, getattr(torch, known["dtype"])
            self.bind_objectives(batch)
            self._runners, self.bound = None, True

    def bind_objectives(self, batch: Mapping[str, Any] | None) -> None:
        """Bind what was declared after the graph was bound; a rollout does so itself."""
        fresh = []
        for module in self.modules_by_name.values():
            fresh += [(module, t) for t in module.objectives if getattr(t.objective, "spec", None) is None]
            check_regularisers(module)
        if not fresh:
            return
        fresh.sort(key=lambda pair: pair[1].kind != "ce")  # which others take their number of classes from
        with undone_on_error(self):
            assert self.known is not None
            self.known = {**self.known, "widths": dict(self.known["widths"])}
            for module, term in fresh:
                check_term(self, module, term)
                self._bind_term(module, term, batch)

    def _bind_term(self, module: Module, term: Term, batch: Mapping[str, Any] | None) -> None:
        size = self.sizes[module[term.on].key]
        shape = (size,) if isinstance(size, int) else tuple(size)
        if term.kind == "ce":
            resolve_labels(term, shape[-1])
        if term.kind.startswith("state_"):
            check_state_tag(module, term)
        target = target_size(self, module, term, batch)
        if term.kind in ("mse", "masked_mse") and not isinstance(term.target, BatchKey) and target != shape:
            raise ShapeError(
                f"module {module.name!r}, objective {term.name!r}", "its target has another size than its port",
                expected=shape, got=f"{target} of {term.target}", fix="leave the last width Auto, or another port",
            )  # fmt: skip
        assert self.known is not None
        spec = Spec(shape, 0, self.dtype, torch.device(self.known["device"]), target)
        term.objective.bind(spec, term.labels or Labels())
        if term.kind.startswith("state_"):
            assert module.proto is not None
            assert isinstance(term.objective, StateActivity)
            term.objective.tagged = module.proto.tagged_state

    def project_(self) -> None:
        """Put all weights back inside their masks and bounds."""
        for module in self.modules_by_name.values():
            module.project_()

    # -- running

    def rollout(self, batch: Mapping[str, Any], reset: bool = True, keep: str = "all") -> Result:
        """Let a batch of sequences pass, from zero states unless told to continue.

        Args:
            batch: sources' keys ``[B, T, …]``, targets, and optionally ``"length"``: ticks of each row. Padding neither
                learns nor counts: a row keeps its state and its last emission past its length.
            reset: False continues states, traces and the local tick of the last rollout; gradient stays in this one.
            keep: ``"all"`` records drives and emissions, ``"emissions"`` those alone, ``"last"`` only what ports hold
                at the end.

        Returns:
            Emissions by module (``out["head"]``) or port (``out["enc.out_deep"]``), ``[B, T_emit, D]``.

        Raises:
            DataError, ShapeError, LabelError, NonFiniteError: the batch does not fit, or holds NaN (looked for on the
                CPU); nothing has changed.
        """
        return self.run_by(None, batch, reset, keep)

    def run_by(
        self, engine: Engine | None, batch: Mapping[str, Any], reset: bool, keep: str, padding: int = 0
    ) -> Result:
        """:meth:`rollout` by another engine, which takes the prepared rollout through its ticks; None: its own.

        The last `padding` rows of the batch have no ticks at all, and no entry in ``batch["length"]``.
        """
        if not isinstance(reset, bool):
            raise ArgumentError(
                "rollout", "reset= is on or off", expected="True | False", got=repr(reset),
                fix="reset=False to go on from the last rollout",
            )  # fmt: skip
        return self._run(batch, reset, keep, streaming=False, engine=engine, padding=padding)

    def step(self, values: Mapping[str, Any]) -> Result:
        """One tick of an endless stream, continuing the last one: sources' keys ``[B, …]``, and targets of this tick.

        A target that lies in the future is waited for: the module learns when it has come.
        """
        check_batch("graph.step", values)
        batch = dict(values)
        for source in self.sources.values():
            x = batch.get(source.batch_key)
            if isinstance(x, Tensor) and x.dim():
                batch[source.batch_key] = x[:, None]
        return self._run(batch, False, "emissions", streaming=True)

    def reset(self, rows: Tensor | None = None) -> Graph:
        """Forget states, traces and what ports hold: of all rows, or of those in the mask ``[B]``."""
        if rows is not None:
            check_rows(rows, None if self.run is None else self.run.rows)
        if rows is None or self.run is None:
            self.run = None
        else:
            self.run.reset(rows)
        if self.learning is not None:
            self.learning.reset(rows)
        return self

    def _run(
        self, batch: Mapping[str, Any], reset: bool, keep: str, streaming: bool, engine: Engine | None = None,
        padding: int = 0,
    ) -> Result:  # fmt: skip
        check_batch("graph.rollout", batch)
        if not self.bound:
            self.bind(batch)
        self.bind_objectives(batch)
        learns = self.manager is not None and self.training and torch.is_grad_enabled() and learning_enabled()
        if learns:
            self.manager.ready(batch)
        self.project_()
        past = None if reset else self.run
        run = Rollout(self, batch, keep, 0 if past is None else past.offset + past.ticks, streaming, padding)
        self._start(run, past)
        for observer in self.observers:
            observer.rolling(run, learns)
        dues: list[Due] = []
        if learns:
            self.learning.roll(run, past is None, None if engine is None else engine.learn)
            self.manager.steps += 1
        else:
            dues = plain(run, self.runners(), None if engine is None else engine.plain)
            run.partner = None if past is None else past.partner  # the signal rests meanwhile
        self._dues, self._learned, self.run = dues, learns, run
        self.clock.advance(run.ticks)
        for observer in self.observers:
            observer.rolled(run)
        modules = self.modules_by_name
        show(run, modules)
        return Result(run, modules)

    def _start(self, run: Rollout, past: Rollout | None) -> None:
        if past is not None:
            if past.rows != run.rows:
                raise ArgumentError(
                    "rollout", "it continues another number of rows", expected=past.rows, got=run.rows,
                    fix="graph.reset() first",
                )  # fmt: skip
        reach = self.reach()
        extra = {} if self.learning is None else self.learning.reach()
        for key in self.sizes:
            run.signals[key] = Signal(run.zero(key), max(reach.get(key, 0), extra.get(key, 0)))
        if past is not None:
            run.continues(past)
        if run.keep != "last":
            run.kept = {key: [] for key in self.sizes if run.keep == "all" or ":" not in key}

    # -- what came out

    @property
    def rolled(self) -> Any:
        """The last rollout, as a whole: what a next one goes on from and losses are of; can be put back."""
        return self.run, self._dues, self._learned

    @rolled.setter
    def rolled(self, value: Any) -> None:
        self.run, self._dues, self._learned = value

    def losses(self) -> dict[str, Tensor]:
        """Weighted loss of every objective over the last rollout; what its modules learned from, with a manager.

        Raises:
            StateError: nothing has been rolled out, or who knows what was learned from is detached.
        """
        if self.run is None:
            raise StateError("graph.losses", "nothing has been rolled out", fix="graph.rollout(batch)")
        if self.learning is not None and self._learned:
            return self.learning.losses()
        if self._learned:
            raise StateError(
                "graph.losses", "the last rollout learned, and its manager is detached", fix="graph.rollout(batch)"
            )
        return declared_losses(self.run, self._dues)

    def loss(self) -> Tensor:
        """The sum of :meth:`losses`; without any objective a zero that requires grad.

        Warns once of modules that no data objective reaches.
        """
        losses = self.losses()
        self._warn_unreached()
        if not losses:
            return torch.zeros((), requires_grad=True)
        return torch.stack([v.reshape(()) for v in losses.values()]).sum()

    def _warn_unreached(self) -> None:
        if self._warned or self.manager is not None:
            return
        self._warned = True
        names = [n for n in self.unreached() if any(True for _ in self[n].parameters())]
        if names:
            warnings.warn(
                f"graph.loss(): no data objective reaches {', '.join(map(repr, names))}, which will not learn; open "
                "edges (graph.open_edges()), declare objectives, or attach a rule",
                stacklevel=3,
            )

    def unreached(self) -> list[str]:
        """Modules without a data objective of their own or behind edges that let gradient through."""
        modules = self.modules_by_name
        found = reached(modules.values(), {n for n, m in modules.items() if m.objectives.has_data})
        return [n for n in self.order if n not in found and n not in self.sources]

    # -- parameters and files

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """As torch has it; before bind there are none yet, which is an error."""
        if not self.bound:
            raise StateError("graph.parameters", "its parameters are made at bind", fix="graph.bind(batch) first")
        return super().named_parameters(*args, **kwargs)

    def get_extra_state(self) -> dict[str, Any]:
        """Sizes, so that an unbound graph can be bound from a checkpoint."""
        known = self.known
        return {"known": known and {**known, "sources": dict(known["sources"]), "widths": dict(known["widths"])}}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Sizes are read before the weights are; see :meth:`load_state_dict`."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights; an unbound graph binds from the sizes stored with them. Constraints hold afterwards."""
        known = known_of(state_dict)
        with undone_on_error(self):
            if not self.bound:
                if known is None:
                    raise StateError(
                        "graph.load_state_dict", "neither it nor the checkpoint is bound", fix="graph.bind(batch)"
                    )
                check_sources(self.sources, known)
                self._build(known, None)
            check_weights(self.state_dict(), state_dict, strict)
        if EXTRA not in state_dict:  # weights alone
            state_dict = {**state_dict, EXTRA: self.get_extra_state()}
        made = super().load_state_dict(state_dict, strict, assign)
        self.project_()
        return made

    def _apply(self, fn: Any, recurse: bool = True) -> Graph:
        """Weights move to another place or precision: what they meet in a rollout follows."""
        super()._apply(fn, recurse)
        first = next((p for _, p in super().named_parameters() if p.is_floating_point()), None)
        if first is None or self.known is None:
            return self
        place = {"dtype": str(first.dtype).removeprefix("torch."), "device": str(first.device)}
        if self.known != {**self.known, **place}:
            self.known = {**self.known, **place}
            self.dtype, self.run = first.dtype, None
            if self.manager is not None:
                self.manager.follow(first.device, first.dtype)
        return self

    # -- what it looks like

    def summary(self) -> str:
        """A table of modules (proto, ports, rate, parameters, objectives) and of edges; before bind sizes are Auto."""
        return summary(self)

    def draw(self, path: str | os.PathLike[str] | None = None, ax: Axes | None = None) -> Figure:
        """A picture: modules as boxes with their ports and rates, edges dashed where they stop the gradient.

        Args:
            path: also save it there; its ending says how (``.png``, ``.pdf``, ``.svg``).
            ax: axes to draw into, in place of a figure of its own. No display is needed or opened.

        Raises:
            MissingExtraError: matplotlib is not installed; :meth:`to_dot` does without.
            ArgumentError: it cannot be saved there.
        """
        return draw(self, path, ax)

    def to_dot(self) -> str:
        """The same picture as text for Graphviz: ``dot -Tsvg``."""
        return to_dot(self)

    def __getstate__(self) -> dict[str, Any]:
        passing: dict[str, Any] = {
            "run": None,
            "manager": None,
            "learning": None,
            "_runners": None,
            "_dues": [],
            "_learned": False,
        }
        return {**self.__dict__, **passing}  # copies and pickles are attached to nothing and have not run
