"""The context pass: the model runs once on the context inputs, before the data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from ..credit import Params, Tree, detach
from ..errors import (
    ArgumentError,
    CoverageError,
    DtypeError,
    NonFiniteError,
    ShapeError,
    UnknownNameError,
    did_you_mean,
)
from ..objectives import Labels, Objective, Spec, Target, View
from ..propagators import Propagator
from ..propagators.layer import borrowed_buffers
from ..rules import Rule
from ..signals.context import ClassContext
from .agent import Phase
from .assignment import Assigned
from .intercept import intercept, plain_class
from .options import Inputs


class SignalUnit:
    """A learned context stream as a unit: its rows should resemble the raw inputs of their class."""

    def __init__(self, stream: nn.Module, objective: Objective, labels: Labels) -> None:
        self.stream, self.objective = stream, objective
        self.objective.bind(Spec(()), labels)

    def cell(self, p: Params, state: Tree, x: Tree) -> Tree:
        """No recurrence."""
        return state

    def readout(self, p: Params, state: Tree, x: tuple[Tree, Tensor]) -> Tree:
        """The context inputs."""
        return self.stream(*x)

    def view(self, out: Tree, x: tuple[Tree, Tensor], y: Target) -> View:
        """Raw input against context input."""
        h, t = (_first_float(tree) for tree in (x[0], out))
        return View(h, h, t, None, context=y, batch=y.y)

    def scores(self, out: Tree, x: tuple[Tree, Tensor], y: Target) -> Tensor | None:
        """Similarity of the raw input with each class's context."""
        with torch.no_grad():
            return self.objective.scores(self.view(out, x, y))

    def loss(self, p: Params, out: Tree, state: Tree, x: tuple[Tree, Tensor], y: Target) -> Tensor:
        """The contrast."""
        return self.objective(self.view(out, x, y))


class ContextPass:
    """Makes the context inputs and runs the model on them; where the stream learns, it is a unit of its own.

    Args:
        stream: see :class:`imprint.signals.ClassContext`.
        rule: the first that needs it; a learned stream has its objective.
        labels: how targets are read.
        at: path of the module whose output the stream replaces; None starts at the model's input.
    """

    def __init__(self, stream: Any, rule: Rule, labels: Labels, at: str | None = None) -> None:
        self.stream, self.rule, self.labels, self.at = stream, rule, labels, at
        self.learned = bool(stream.learned)
        self.prop = Propagator(name="signal")
        self.codes = torch.empty(0)
        self.seen: Any = None
        self.rows: list[int | None] = []

    def attach(self, model: nn.Module, phase: Phase) -> None:
        """Intercept the module the stream starts at."""
        if self.at is None:
            return
        modules = dict(model.named_modules())
        if not self.at or self.at not in modules:
            raise UnknownNameError("context_at", f"no module {self.at!r}", fix=did_you_mean(self.at, modules))
        start = modules[self.at]
        if any(start is m for a in phase.agents for top in a.unit.modules for m in top.modules()):
            raise CoverageError(
                f"context_at={self.at!r}", "it lies inside a unit, which would have no context of its own",
                fix="name a module before the first unit, or exclude= it from the units",
            )  # fmt: skip
        plain = plain_class(start)

        def agent(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            out = plain.forward(module, *args, **kwargs)  # type: ignore[attr-defined]
            if phase.name == "probe":
                self.seen = detach(out)
            inside = self.stream._modules.get("inside")
            return inside(out, self.codes) if inside is not None and phase.name == "context" else out

        intercept(start, agent)

    def describe(self, inputs: Inputs, dims: list[int | None], inside: int | None, width: int) -> dict[str, Any]:
        """What the stream is built from; `dims` are the inputs' batch dimensions, `inside` that of what it replaces."""
        classes = self.labels.num_classes
        if self.learned and not any(isinstance(v, Tensor) and v.is_floating_point() for v in inputs.leaves()):
            raise DtypeError(
                "the context signal", "none of the inputs is floating, so there is nothing to learn",
                expected="a floating input", got=[str(v.dtype) for v in inputs.leaves() if isinstance(v, Tensor)],
                fix="leave out learned=True and signal=; integer inputs get one fixed random sequence a class",
            )  # fmt: skip
        _check_finite(inputs)
        record = {"inputs": self.stream.describe(_tree(inputs), dims, classes, width)}
        if isinstance(self.stream, ClassContext) and self.stream.project is not None:
            _check_signal(self.stream.project, inputs, record["inputs"]["leaves"], width)
        if self.at is not None:
            record["inside"] = type(self.stream)().describe(self.seen, [inside], classes, width)
        return record

    def build(self, record: dict[str, Any], labels: Labels, device: torch.device, rows: list[int | None]) -> None:
        """Make the stream's parameters and, if they learn, its unit; `rows` are the inputs' batch dimensions."""
        self.labels, self.rows = labels, rows
        self.stream.build(record["inputs"], device)
        if "inside" in record:
            inside = self.stream.inside = type(self.stream)()  # a part of it: it moves and is saved with it
            inside.build(record["inside"], device)
        if self.learned:
            objective = self.rule.objective()
            assert objective is not None
            self.prop.unit = SignalUnit(self.stream, objective, labels)  # type: ignore[assignment]

    def parameters(self) -> Params:
        """Of the stream, by name."""
        return {f"signal:{k}": p for k, p in self.stream.named_parameters()}

    def data(self, inputs: Inputs) -> Inputs:
        """What the data pass sees."""
        return Inputs(*self.stream.data(_tree(inputs)))

    def learn(self, inputs: Inputs, y: Tensor | None, share: float | None, target: Target) -> tuple[Inputs, Target]:
        """Context inputs of one batch, and where each sample's row is; a learned stream takes its step."""
        values, onehot = self.labels.num_classes is None, None
        if y is not None:
            onehot = y.flatten(1) if values and y.dim() > 1 else y[:, None] if values else self.labels.onehot(y)
        codes, distinct = self.stream.codes(onehot, self._rows(inputs), target.error)
        target = replace(target, y=y, distinct=distinct)
        if y is not None and onehot is not None and self.stream.paired:
            place = torch.arange(len(y), device=y.device)
            if values:
                target = replace(target, rows=place)
            else:
                per_class = onehot.sum(0)
                rows, counts = (self.labels.index(y), per_class) if distinct else (place, onehot @ per_class)
                target = replace(target, rows=rows, counts=counts)
        if self.learned:
            made, _ = self.prop.tick((), (_tree(inputs), codes), target)
            if share is not None:
                self.prop.update(share)
        else:
            with torch.no_grad():
                made = self.stream(_tree(inputs), codes)
        self.codes = codes
        return Inputs(*made), target

    def modulated(self, inputs: Inputs, error: Tensor) -> Inputs:
        """The inputs of the second pass."""
        return Inputs(*self.stream.modulated(_tree(inputs), error))

    def _rows(self, inputs: Inputs) -> int:
        pairs = zip(inputs.leaves(), self.rows, strict=False)
        return next((v.shape[d] for v, d in pairs if isinstance(v, Tensor) and d is not None), 0)

    def candidates(self, inputs: Inputs) -> Inputs | None:
        """Context inputs that let every class be scored; None if the stream says nothing about them."""
        codes = self.stream.candidates(_tree(inputs))
        if codes is None:
            return None
        self.codes = codes
        return Inputs(*self.stream(_tree(inputs), codes))


def context_pass(units: list[Assigned], signal: nn.Module | None, labels: Labels, at: str | None) -> ContextPass | None:
    """The one context stream the rules of a model need, or None.

    Raises:
        ArgumentError: two rules need different streams, or options for a stream that no rule needs.
    """
    needing = [(u.rule, stream) for u in units if (stream := u.rule.stream()) is not None]
    names = sorted({u.rule.name for u in units})
    if not needing:
        if signal is not None or at is not None:
            raise ArgumentError(
                "attach", "signal= and context_at= are for rules with a context stream", got=names,
                fix="leave them out, or use the rule 'sigprop'",
            )  # fmt: skip
        return None
    rule, stream = needing[0]
    if any(type(each) is not type(stream) or each.options() != stream.options() for _, each in needing):
        raise ArgumentError(
            "attach", "its rules need different context streams", got=names,
            fix="use rules with one stream in one model, all with the same learned= (or scale=)",
        )  # fmt: skip
    if signal is not None:
        if not stream.paired:
            raise ArgumentError(
                "attach", "signal= has no place in this rule", got=names, fix="leave it out, or use the rule 'sigprop'"
            )
        stream = signal if isinstance(signal, type(stream)) else type(stream)(learned=True, project=signal)
    if at is not None and not isinstance(stream, ClassContext):
        raise ArgumentError(
            "attach", f"the stream of rule {rule.name!r} starts at the model's input", got=f"context_at={at!r}",
            fix="leave out context_at=, or use the rule 'sigprop'",
        )  # fmt: skip
    if at is not None and stream.learned:
        raise ArgumentError(
            "attach", "a learned context starts at the model's input", got=f"context_at={at!r}",
            fix="leave out context_at=, or leave out signal= and learned=True",
        )  # fmt: skip
    return ContextPass(stream, rule, labels, at)


def _check_finite(inputs: Inputs) -> None:
    """Refuse to make context inputs with the mean and the spread of NaN."""
    for v in inputs.leaves():
        if isinstance(v, Tensor) and v.is_floating_point() and bool((v.isnan() | (v == torch.inf)).any()):
            raise NonFiniteError(
                "the input", "it is not finite, and context inputs are made like the first batch",
                expected="finite numbers (-inf in a mask)", got=f"NaN or inf in {tuple(v.shape)}",
                fix="check the data; nothing is bound yet",
            )  # fmt: skip


def _check_signal(project: nn.Module, inputs: Inputs, leaves: list[dict[str, Any]], width: int) -> None:
    """Refuse a signal that does not make the model's one floating input."""
    floats = [(v, leaf) for v, leaf in zip(inputs.leaves(), leaves, strict=True) if leaf.get("kind") == "float"]
    if len(floats) != 1:
        raise ArgumentError(
            "signal=", "it makes the floating input of a model that has one", got=f"{len(floats)} floating inputs",
            fix="leave it out: every input gets a row a class",
        )  # fmt: skip
    v, leaf = floats[0]
    project.to(v.device, v.dtype)
    numel = torch.Size(leaf["size"]).numel()
    try:
        with torch.no_grad(), borrowed_buffers([project]):
            made = project(torch.eye(width, dtype=v.dtype, device=v.device))
    except RuntimeError as error:
        raise ShapeError(
            "signal=", "it does not run on codes of the classes", expected=f"a map of [R, {width}]",
            got=str(error).split("\n")[0], fix=f"signal=nn.Linear({width}, {numel})",
        ) from error  # fmt: skip
    if made.numel() != width * numel:
        raise ShapeError(
            "signal=", "what it makes does not fit the input", expected=f"{numel} numbers a row", got=tuple(made.shape),
            fix=f"signal=nn.Linear({width}, {numel})",
        )  # fmt: skip


def _tree(inputs: Inputs) -> Tree:
    return (inputs.args, inputs.kwargs)


def _first_float(tree: Tree) -> Tensor:
    return next(v for v in tree_flatten(tree)[0] if isinstance(v, Tensor) and v.is_floating_point())
