"""A named algorithm: it fills the slots of a propagator."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..credit import Credit, Instant
from ..errors import ArgumentError, ImprintError, UnknownNameError, did_you_mean
from ..functional.operations import Operations
from ..objectives import Objective
from ..signals.stream import ContextStream


class Rule:
    """Fills the slots: which objective a unit gets, which credit, optimizer, entry map and context stream.

    Subclass as a frozen dataclass whose fields are the rule's options, and register it:

    >>> from dataclasses import dataclass
    >>> from imprint.objectives import Head
    >>> @dataclass(frozen=True)
    ... class Mine(Rule):
    ...     '''Cross entropy of a local head.'''
    ...     def objective(self):
    ...         return Head()
    >>> register_rule("mine")(Mine).name
    'mine'
    >>> _ = registry.pop("mine")

    Attributes:
        name: what it is registered under; of others that of the class.
        worlds: what it can be attached to: ``"layers"`` of a model, the modules of a ``"graph"``, or both.
        local: units learn from objectives of their own; else from the task loss, through each other.
        allow_cross: by definition, gradient crosses unit boundaries; the isolation audit lets it.
        learns: units of this rule learn at all.
        trains_weights: the unit's own weights learn; else its objective does, on weights that stay as they are.
        documented: class and learning rate of :meth:`optimizer`.
    """

    name: ClassVar[str] = ""
    worlds: ClassVar[tuple[str, ...]] = ("layers",)
    local: ClassVar[bool] = True
    allow_cross: ClassVar[bool] = False
    learns: ClassVar[bool] = True
    trains_weights: ClassVar[bool] = True
    documented: ClassVar[tuple[type[Optimizer], float]] = (torch.optim.Adam, 5e-4)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in vars(cls):  # until it is registered; never that of the rule it is made from
            cls.name = cls.__name__

    def objective(self) -> Objective | None:
        """A fresh objective for one unit; None for rules without one."""
        return None

    def optimizer(self, params: list[Tensor]) -> Optimizer:
        """The rule's documented optimizer, for one unit's parameters: Adam with lr 5e-4."""
        return torch.optim.Adam(params, lr=5e-4, fused=all(p.is_floating_point() for p in params))

    def task_optimizer(self, params: list[Tensor]) -> Optimizer:
        """For what learns from the task loss beside this rule's units: :meth:`optimizer`, where it fits a gradient."""
        return self.optimizer(params)

    def credit(self) -> Credit:
        """Who is responsible within a unit."""
        return Instant()

    def filling(self) -> str | None:
        """What a graph module without a data objective learns from: ``"ce" | "predict" | "contrast" | "auto"``."""
        return None

    def entry(self) -> Callable[[Tensor], Tensor] | None:
        """What is done to a unit's first input before it runs."""
        return None

    def turn(self) -> int | None:
        """Steps for which one unit of this rule learns before the next one does; None: all learn at once."""
        return None

    def operations(self) -> Operations | None:
        """What a unit's operations run under, where some are differentiated in another way; None for torch's own."""
        return None

    def stream(self) -> ContextStream | None:
        """The context stream the objective compares with; None without one."""
        return None


R = TypeVar("R", bound=type[Rule])
registry: dict[str, type[Rule]] = {}


def register_rule(name: str) -> Callable[[R], R]:
    """Make a rule known by `name`: to ``attach``, to error messages, lists and the conformance tests.

    Raises:
        ArgumentError: the name is taken, or the class is not a Rule.
    """

    def register(cls: R) -> R:
        if not (isinstance(cls, type) and issubclass(cls, Rule)):
            raise ArgumentError(
                f"register_rule({name!r})", "not a Rule", expected="a subclass of imprint.Rule", got=cls,
                fix="class Mine(imprint.Rule)",
            )  # fmt: skip
        if name in registry and registry[name].__qualname__ != cls.__qualname__:
            raise ArgumentError(
                f"register_rule({name!r})", "the name is taken", got=registry[name], fix=f"register_rule('my_{name}')"
            )
        cls.name = name
        registry[name] = cls
        return cls

    return register


def resolve(rule: str | Rule | type[Rule], **options: Any) -> Rule:
    """A rule from its name, class or instance.

    Raises:
        UnknownNameError: nothing is registered under that name.
        ArgumentError: the rule has no such option.

    >>> resolve("sigprp")
    Traceback (most recent call last):
    imprint.errors.UnknownNameError: ...
    """
    if isinstance(rule, Rule):
        if options:
            raise ArgumentError(
                f"rule {rule.name!r}", "options beside a rule that is already made", got=sorted(options),
                fix=f"imprint.rules.{type(rule).__name__}({', '.join(f'{k}=…' for k in options)})",
            )  # fmt: skip
        return rule
    if isinstance(rule, str):
        if rule not in registry:
            raise UnknownNameError("attach", f"unknown rule {rule!r}", fix=did_you_mean(rule, registry))
        rule = registry[rule]
    if not (isinstance(rule, type) and issubclass(rule, Rule)):
        raise ArgumentError(
            "attach", "not a rule", expected="a name or a Rule; for layers also a dict of patterns", got=repr(rule),
            fix="imprint.attach(model, 'local_ce')",
        )  # fmt: skip
    try:
        return rule(**options)
    except ImprintError:
        raise
    except TypeError as error:
        fields = list(inspect.signature(rule).parameters)
        raise ArgumentError(
            f"rule {rule.name!r}", str(error), expected=f"options {', '.join(fields)}",
            got=sorted(options), fix=did_you_mean(next((o for o in sorted(options) if o not in fields), ""), fields),
        ) from None  # fmt: skip
