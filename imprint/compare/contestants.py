"""What is compared: every rule for layers, and a baseline that is no rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import managers
from ..errors import ArgumentError, UnknownNameError, did_you_mean
from ..managers import Manager
from ..managers.evaluation import evaluating
from ..monitors import Metric
from ..objectives import Head, Labels, Spec, View
from ..propagators.layer import primary
from ..rules import Rule, registry, resolve
from .nets import Net

DEEP = "deep_supervision"
BASELINES = ("backprop", DEEP, "frozen")
"""Always there: backpropagation, the same with a classifier on every unit, random features under a trained layer."""


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One row of the comparison.

    Args:
        label: what tables call it.
        rule: how units learn; None is deep supervision.
    """

    label: str
    rule: Rule | None

    @property
    def options(self) -> dict[str, Any]:
        """The rule's options as plain values."""
        return {f.name: plain(getattr(self.rule, f.name)) for f in fields_of(self.rule)}

    def within(self, steps: int, units: int) -> Contestant:
        """The same in a run of so many steps: a rule that lets one unit learn at a time shares them equally out.

        >>> contestants("greedy")[3].within(300, 3).rule.steps
        100
        """
        rule = self.rule
        turns = {f.name: f.default for f in fields_of(rule) if f.name == "steps"}
        if rule is None or rule.turn() is None or rule.turn() != turns.get("steps"):
            return self
        return dataclasses.replace(self, rule=dataclasses.replace(rule, steps=max(1, steps // units)))  # type: ignore[type-var]

    def attach(
        self, model: nn.Module, net: Net, classes: int, x: Tensor, monitors: Sequence[Metric] = ()
    ) -> Manager:  # fmt: skip
        """The manager of a model for inputs like `x`; its units are those of the net, in order.

        Raises:
            ImprintError: the rule does not fit the net.
        """
        if self.rule is not None:
            return managers.attach(model, self.rule, layers=net.layers, num_classes=classes, monitors=monitors)
        taught = DeepSupervision(model, net, classes, x)
        return managers.attach(
            taught, "backprop", layers=rf"model\.({net.layers})", num_classes=classes, task_loss=taught.loss,
            monitors=monitors,
        )  # fmt: skip


def fields_of(rule: Rule | None) -> tuple[dataclasses.Field[Any], ...]:
    """The options of a rule; of one that is no dataclass, none."""
    return dataclasses.fields(rule) if dataclasses.is_dataclass(rule) else ()


def plain(value: Any) -> Any:
    """A value that JSON holds; of others how Python writes them.

    >>> plain(0.5), plain(torch.tanh)
    (0.5, 'tanh')
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return getattr(value, "__name__", None) or repr(value)


def contestants(rules: str | Rule | Iterable[str | Rule] = "all") -> list[Contestant]:
    """Those that were asked for, the baselines in front of them.

    Args:
        rules: ``"all"`` that are registered for layers, names, or rules with options of their own.

    Raises:
        UnknownNameError: there is no such rule; with near misses.
        ArgumentError: it is for graphs, or two would have the same label.

    >>> [c.label for c in contestants(["local_ce", "backprop"])]
    ['backprop', 'deep_supervision', 'frozen', 'local_ce']
    """
    if not isinstance(rules, str | Rule | Iterable):
        raise ArgumentError("compare", "these are no rules", expected="names or rules", got=rules, fix="rules='all'")
    given = [rules] if isinstance(rules, str | Rule) else list(rules)
    asked = [part for each in given for part in (each.split(",") if isinstance(each, str) else [each])]
    names: list[str | Rule] = []
    for each in asked:
        names += sorted(known() - set(BASELINES)) if each == "all" else [each]
    found = {label: Contestant(label, None if label == DEEP else resolve(label)) for label in BASELINES}
    for each in names:
        if isinstance(each, str) and each != DEEP and each not in known():
            what = f"rule {each!r} is for graphs" if each in registry else f"unknown rule {each!r}"
            raise UnknownNameError("compare", what, fix=did_you_mean(each, {"all", DEEP, *known()}))
        made = None if each == DEEP else resolve(each)
        row = Contestant(DEEP if made is None else label_of(made), made)
        if row != found.setdefault(row.label, row):
            raise ArgumentError("compare", f"two rules are called {row.label!r}", got=row, fix="name each once")
    return list(found.values())


def known() -> set[str]:
    """Names of the rules for layers, as they are registered now."""
    return {name for name, rule in registry.items() if "layers" in rule.worlds}


def label_of(rule: Rule) -> str:
    """The rule's name, with the options that differ from its defaults.

    >>> label_of(resolve("predsim", beta=0.5))
    'predsim(beta=0.5)'
    """
    own = [f"{f.name}={plain(getattr(rule, f.name))}" for f in fields_of(rule) if getattr(rule, f.name) != f.default]
    return f"{rule.name}({', '.join(own)})" if own else rule.name


class DeepSupervision(nn.Module):
    r"""A model with a linear classifier on every unit.

    :math:`L = \mathrm{CE}(f(x), y) + \sum_l \mathrm{CE}(M_l h_l + b_l, y)`

    The heads are those of ``local_ce``; here the gradient of each reaches all that lies before it. Returns the model's
    output, then the heads' logits.

    Args:
        model: what is trained.
        net: which of its modules have a head.
        classes: how many there are.
        x: an input.

    Reference: Lee et al., Deeply-Supervised Nets (2015).
    Differs from the paper: cross entropy, not a squared hinge; the heads' losses have weight 1 throughout.
    """

    def __init__(self, model: nn.Module, net: Net, classes: int, x: Tensor) -> None:
        super().__init__()
        self.model, self.labels, self.heard = model, Labels(num_classes=classes), []
        for name in net.units(model):
            model.get_submodule(name).register_forward_hook(self._hear)
        with evaluating(model), torch.no_grad():
            model(x[:1])
        self.heads = nn.ModuleList()
        for h in self.heard:
            head = Head()
            head.bind(Spec(tuple(h.shape[1:]), channels_last=net.channels_last, device=h.device), self.labels)
            self.heads.append(head)

    heard: list[Tensor]

    def _hear(self, module: nn.Module, args: Any, out: Any) -> None:
        self.heard.append(primary(out, "deep supervision"))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """``[B, ...]`` to one ``[B, classes]`` of the model and one of every head."""
        self.heard = []
        output = self.model(x)
        heard, self.heard = self.heard, []
        return output, *(head.scores(View(h)) for head, h in zip(self.heads, heard, strict=True))  # type: ignore[operator]

    def loss(self, output: Any, y: Tensor) -> Tensor:
        """The sum of all cross entropies."""
        return torch.stack([self.labels.cross_entropy(logits, y) for logits in output]).sum()
