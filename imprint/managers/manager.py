"""An attached model: every unit learns while the data flows forward."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..credit import detach
from ..data.batches import Source
from ..errors import ArgumentError, LabelError, StateError
from ..monitors.metric import Metric, gather
from ..objectives import Labels
from ..propagators import Propagator
from ..propagators.buffers import Buffers
from ..propagators.scaled import ScaledHost
from ..propagators.switch import learning_enabled
from . import checkpoint, evaluation
from .agent import Phase
from .assignment import named
from .binding import Unbuilt, bind, require_bound, require_reader
from .compiled import CompiledStep
from .context import ContextPass
from .intercept import detach as detach_model
from .learning_pass import learn, take_turns
from .options import Inputs, Options, check_target
from .place import Place, follow
from .profile import Profile, profile
from .replaced import Hung
from .schedules import step_all
from .table import table
from .task import TaskUnit


class Manager:
    """Trains an attached model; made by :func:`imprint.managers.attach`.

    The first :meth:`step` binds: it runs one probe forward, makes local heads for the sizes it saw, and decides the
    class of every parameter. ``print(manager)`` shows the result.

    Attributes:
        model: the user's model, with its own parameters under their own names.
        steps: learning steps taken.
        compiled: what :meth:`compile` made; None while steps are eager.
    """

    def __init__(
        self, model: nn.Module, phase: Phase, options: Options, context: ContextPass | None, metrics: list[Metric]
    ) -> None:
        self.model, self.phase, self.options, self.context = model, phase, options, context
        self.units = {a.prop.name: a for a in phase.agents}
        self.task = Propagator(TaskUnit(options.labels, options.task_loss), name="task")  # type: ignore[arg-type]
        self.schedulers: dict[str, list[Any]] = {}
        self.bound: dict[str, Any] | None = None
        self.steps = self.gathered = 0
        self.places: dict[str, tuple[Tensor, Place]] = {}
        self.unbuilt: Unbuilt | None = None
        self.hung: list[Hung] = []
        self.buffers = self.model_buffers = Buffers([model])
        self.compiled: CompiledStep | None = None
        self.scaled = None if options.scaler is None else ScaledHost(options.scaler)
        self.probes = {m.name: m for m in metrics}
        for prop in self.propagators.values():
            prop.probes = list(metrics)
            if self.scaled is not None:
                prop.host, prop.diff = self.scaled, self.scaled.diff

    @property
    def propagators(self) -> dict[str, Propagator]:
        """Of every unit by name, then ``"task"``, and ``"signal"`` where the context stream learns."""
        props = {name: agent.prop for name, agent in self.units.items()} | {"task": self.task}
        return props | {"signal": self.context.prop} if self.context and self.context.learned else props

    @property
    def optimizers(self) -> dict[str, Optimizer]:
        """Of every propagator that learns, by name.

        Raises:
            StateError: before bind.
        """
        require_bound(self, "its optimizers")
        return {name: prop.optimizers[0] for name, prop in self.propagators.items() if prop.optimizers}

    def bind(self, x: Any, y: Tensor | None = None) -> Manager:
        """Make heads and optimizers for inputs like `x` (and targets like `y`), and classify every parameter.

        Calling it again re-counts the calls of each unit and keeps all weights.

        Raises:
            CoverageError: an orphan, a unit never called, weights in two units.
        """
        inputs = Inputs.of(x)
        inputs.check_not_empty()
        self.phase.require_idle("manager.bind")
        if torch.is_inference_mode_enabled():
            raise StateError("manager.bind", "it cannot follow gradients here", fix="leave torch.inference_mode()")
        bind(self, inputs, y)
        return self

    def step(self, x: Any, y: Tensor | None = None) -> Any:
        """One forward pass in which every unit learns; returns the model's output, detached.

        Args:
            x: a tensor, a tuple of arguments or a dict of keyword arguments of the model.
            y: targets; None is legal where units learn and none of them needs targets.

        Raises:
            StateError: the model is in eval mode, gradients are off, or a module was replaced since bind.
            LabelError, ShapeError: targets are missing, or do not fit the inputs; nothing was changed.
            ShapeError: names the unit that another size than at bind does not fit; units before it have learned.
            ArgumentError: ``task_loss=`` returned a loss without a graph.
            NonFiniteError: names the unit; its weights are as they were.

        A step that fails leaves what ``accumulate=`` gathered before it as it was: the next batch takes its place.
        A batch on the CPU without any label, in which no unit can learn, does not count there either; elsewhere it
        counts with a gradient of zero, as finding out would wait for the device.
        """
        inputs = Inputs.of(x)
        self._check_batch(inputs, y)
        if self.bound is None:
            bind(self, inputs, y)
        elif y is not None:
            require_reader(self)
        if not learning_enabled():
            inputs = self.context.data(inputs) if self.context is not None else inputs
            return detach(self.model(*inputs.args, **inputs.kwargs))
        follow(self)
        if y is not None and y.device.type == "cpu" and not self.options.labels.valid(y).any():
            y = None
        # a batch in which nothing can learn has no part in the mean that an update takes
        counts = y is not None or any(agent.learns_alone for agent in self.units.values())
        take_turns(self)
        before = [(prop, prop.carry, prop.ticks) for prop in self.propagators.values()]
        self.gathered += counts
        due = counts and self.gathered >= self.options.accumulate
        # what earlier batches gathered is spent only once this one is through: units then step at the end
        share = 1.0 if due and self.gathered == 1 else None
        try:
            output = (self._eager if self.compiled is None else self.compiled.step)(x, y, share, due)
        except BaseException:
            self._take_back(before, counts)
            raise
        self.steps += 1
        return output

    def _eager(self, x: Any, y: Tensor | None, share: float | None, due: bool) -> Any:
        for probe in self.probes.values():
            probe.started(self, x, y)
        try:
            with self.buffers.kept_on_error():
                output = learn(self, Inputs.of(x), y, share)
                if due:
                    self.update()
        finally:
            if self.scaled is not None:
                self.scaled.finish()
        return output

    def update(self) -> None:
        """Step whatever has gathered gradient: called by :meth:`step` every ``accumulate`` batches."""
        batches, self.gathered = self.gathered, 0
        try:
            for prop in self.propagators.values() if batches else ():
                prop.update(1 / batches)
        except BaseException:  # an optimizer's own trouble: some have stepped, so the rest cannot be kept
            for prop in self.propagators.values():
                prop.reset()
            raise

    def compile(
        self, backend: str = "inductor", *, codegen: str | None = None, on_shape: str = "recapture",
        on_stale: str = "recapture", fallback: bool = False, allow_emulation: bool = False,
    ) -> CompiledStep:  # fmt: skip
        """Make :meth:`step` one captured function: forward, local losses and gradients, and all optimizers' steps.

        It learns the same numbers, and may be called before bind. Weights, optimizer state, buffers, monitors and
        :meth:`state_dict` are true after every step; schedules go on. The first step of each size of batch takes
        longer, as it is captured and compiled.

        Args:
            backend: ``"inductor"`` compiles it; ``"eager"`` runs the captured calls one by one; ``"cuda_graph"``
                replays it as a CUDA graph.
            codegen: what ``"cuda_graph"`` replays: ``"inductor"``, compiled, or ``"eager"``, single calls.
            on_shape: what a batch of another size does: ``"recapture"`` or ``"error"``.
            on_stale: what a change of modes, frozen units, settings or places of weights does: ``"recapture"`` or
                ``"error"``.
            fallback: steps that cannot be captured or compiled are eager; ``manager.compiled.explain()`` says why.
            allow_emulation: without a CUDA device ``"cuda_graph"`` is emulated: slow, for tests.

        Returns:
            the compiled step, also ``manager.compiled``; its ``close()`` makes :meth:`step` eager again.

        Raises:
            UnknownNameError: there is no such backend.
            ArgumentError: an option has another meaning, or none.
            StateError: there is no CUDA device for ``"cuda_graph"``.

        >>> import imprint
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        >>> manager = imprint.attach(model, "local_ce")
        >>> compiled = manager.compile("eager")
        >>> manager.step(torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])).shape
        torch.Size([5, 3])
        >>> print(compiled.explain().split(";")[0])
        compiled step: backend 'eager', 1 captured
          x [5, 4] float32, y [5] int64: learns
        >>> compiled.close()
        """
        if self.scaled is not None:
            raise ArgumentError(
                "manager.compile", "steps through a scaler depend on whether a gradient overflowed", got="scaler=",
                fix="attach without scaler=; bfloat16 needs none",
            )  # fmt: skip
        made = CompiledStep(self, backend, codegen, on_shape, on_stale, fallback, allow_emulation)
        self.phase.require_idle("manager.compile")
        if self.compiled is not None:
            self.compiled.close()
        self.compiled = made
        return made

    def step_schedulers(self, *metric: float) -> None:
        """Step every unit's learning-rate schedule; those that read a metric get `metric`.

        Raises:
            StateError: before bind.
            ArgumentError: a metric is missing, or nothing reads the one that was given.
        """
        require_bound(self, "its schedules")
        step_all((s for schedulers in self.schedulers.values() for s in schedulers), metric, self.steps > 0)

    def freeze(self, *patterns: str) -> None:
        """Units whose name matches stop learning and go on running; task weights stop by ``requires_grad_(False)``."""
        for name in named(self.units, patterns):
            self.units[name].frozen = True
            self.units[name].prop.reset()

    def unfreeze(self, *patterns: str) -> None:
        """Units whose name matches learn again."""
        for name in named(self.units, patterns):
            self.units[name].frozen = not self.units[name].rule.learns

    def predict(self, x: Any, by: str = "output", layers: str | Iterable[str] | None = None) -> Any:
        """Inference in eval mode: the model's output (``by="output"``), or the units' scores of classes (``"local"``).

        Local scores are logits of local heads, similarity with each class's context, or goodness; they are summed over
        `layers` (names or a pattern; None is all that have scores).

        Raises:
            StateError: ``"local"`` before bind, or no unit has scores.
        """
        return evaluation.predict(self, x, by, layers)

    def evaluate(
        self, data: Source, batch_size: int = 256, by: str = "output", progress: bool = False
    ) -> dict[str, float]:
        """``{"accuracy": ..., "loss": ...}`` over all rows that have a label; values have no accuracy.

        Nothing is changed by it: modes, buffers and the next random numbers are as they were.

        Args:
            data: ``(x, y)`` tensors, a Dataset, or a DataLoader; x may be a tuple or a dict.
            batch_size: of tensors and Datasets.
            by: as in :meth:`predict`; the loss is the task's, or cross entropy of the summed local scores.
            progress: show a bar.

        Raises:
            LabelError: targets are missing.
        """
        return evaluation.evaluate(self, data, batch_size, by, progress)

    def metrics(self, reset: bool = True) -> dict[str, dict[str, float]]:
        """What the monitors gathered since last read, ``{unit: {metric: value}}``; reading waits for the device."""
        return gather(self.probes.values(), self.propagators, reset)

    def profile(self, x: Any, y: Tensor, steps: int = 10) -> Profile:
        """Time and peak memory of a step in each update mode, beside backprop without and with checkpoints.

        Copies are measured: nothing of the manager or its model changes.

        Args:
            x, y: a batch, as for :meth:`step`.
            steps: of each, taken in turns; the median counts.

        Returns:
            a table to print; its ``rows`` hold milliseconds, MiB and ratios to backprop.
        """
        return profile(self, x, y, steps)

    @property
    def labels(self) -> Labels:
        """How targets are read; the number of classes is known once it is bound."""
        return self.options.labels

    def task_loss(self, output: Any, y: Tensor) -> Tensor:
        """The loss of the model's output: what parameters outside the units learn from."""
        assert isinstance(self.task.unit, TaskUnit)
        return self.task.unit.loss(output, y)

    def state_dict(self) -> dict[str, Any]:
        """All that an exact continuation needs: weights, heads, optimizers by name, schedules, random numbers."""
        return checkpoint.state_dict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load :meth:`state_dict`: an unbound manager binds from the sizes in it, an unbound state undoes bind.

        Raises:
            CheckpointError: it does not fit; nothing was loaded.
        """
        checkpoint.load_state_dict(self, state)

    def to(self, *args: Any, **kwargs: Any) -> Manager:
        """Move or cast model, heads, context and optimizer state, as ``nn.Module.to``."""
        self.model.to(*args, **kwargs)
        follow(self)
        return self

    def detach(self) -> nn.Module:
        """The very model that was attached, with its own classes and trained weights."""
        self.phase.require_idle("manager.detach", attached=False)
        if self.compiled is not None:
            self.compiled.close()
        return detach_model(self.model)

    def __repr__(self) -> str:
        return table(self)

    def _check_batch(self, inputs: Inputs, y: Tensor | None) -> None:
        self.phase.require_idle("manager.step")
        if not self.model.training:
            raise StateError("manager.step", "the model is in eval mode", fix="model.train(), or manager.predict(x)")
        if not torch.is_grad_enabled():
            fix = "leave torch.no_grad(), or call manager.predict(x)"
            raise StateError("manager.step", "gradients are off", fix=fix)
        inputs.check_not_empty()
        if self.bound is not None and self.context is not None:
            inputs.check_parts(self.bound["parts"])
        if y is None:
            for name, agent in self.units.items():
                if not agent.frozen and agent.rule.local and agent.unit.objective.needs_labels:
                    raise LabelError(
                        "manager.step", "targets are missing", expected=f"y for unit {name!r} ({agent.rule.name})",
                        fix="manager.step(x, y); rows without a label carry ignore_index",
                    )  # fmt: skip
            if learning_enabled() and not any(agent.learns_alone for agent in self.units.values()):
                raise LabelError(
                    "manager.step", "targets are missing", expected="y for the task loss: no unit learns without it",
                    fix="manager.step(x, y); or manager.predict(x), which learns nothing",
                )  # fmt: skip
            return
        if not isinstance(y, Tensor):
            raise LabelError("manager.step", "targets are not a tensor", got=type(y).__name__, fix="torch.as_tensor(y)")
        if y.dim() and len(y):
            inputs.check_rows(len(y), self.bound["rows"] if self.bound else None)
        if self.bound is not None or y.dim() == 0 or len(y) == 0:
            self.options.labels.check(y)
        if self.bound is not None:
            check_target(y, self.options.labels, tuple(self.bound["target"]))

    def _take_back(self, before: list[tuple[Propagator, Any, int]], counts: bool) -> None:
        """Forget a batch that failed; what was gathered before it stays."""
        self.phase.forget()
        if counts and not self.gathered:  # the update itself failed, and nothing is left
            return
        self.gathered -= counts
        for prop, carry, ticks in before:
            prop.carry, prop.ticks = carry, ticks
