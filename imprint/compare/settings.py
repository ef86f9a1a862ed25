"""What a run is: everything that its figures depend on, as plain values."""

from __future__ import annotations

import hashlib
import inspect
import re
from dataclasses import dataclass, replace
from functools import cached_property
from inspect import isfunction
from types import CodeType
from typing import Any

import torch
from torch import nn

from .._version import __version__
from ..data import Data
from ..errors import ArgumentError, DataError
from ..rules import Rule
from .contestants import Contestant
from .nets import Net, check_net


@dataclass(frozen=True)
class Budget:
    """What every rule gets alike.

    Args:
        epochs: rounds through the training data.
        batch: samples of a batch.
        limit: training samples; None is all there are.
        width, depth: of the net; None are its own.
        device: what it runs on.
    """

    epochs: int
    batch: int = 128
    limit: int | None = None
    width: int | None = None
    depth: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "limit"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ArgumentError(
                    "compare", f"{name} counts from 1", expected="at least 1", got=value, fix=f"{name}=1, or more"
                )
        try:
            kind = torch.device(self.device).type
        except (RuntimeError, TypeError) as error:
            fix = "device='cpu' or 'cuda'"
            raise ArgumentError("compare", "there is no such device", got=repr(self.device), fix=fix) from error
        if kind not in ("cpu", "cuda"):
            raise ArgumentError("compare", "it runs on cpu or cuda", got=repr(self.device), fix="device='cpu'")
        if kind == "cuda" and not torch.cuda.is_available():
            raise ArgumentError("compare", "there is no CUDA device here", got=repr(self.device), fix="device='cpu'")


@dataclass(frozen=True)
class Task:
    """A net, data and a budget: the same for all rules and seeds.

    Args:
        data: standardised; see :func:`prepare`.
        net: what is trained.
        budget: how long.
    """

    data: Data
    net: Net
    budget: Budget

    def make(self, seed: int) -> nn.Module:
        """The net with the weights of this seed; all rules start from these."""
        width, depth = check_net(self.net, self.data.shape, self.budget.width, self.budget.depth)
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            model = self.net.make(self.data.shape, self.data.num_classes, width, depth)
        return model.to(self.budget.device)

    @cached_property
    def described(self) -> dict[str, Any]:
        """Plain values; equal for equal tasks, wherever the file lies."""
        width, depth = check_net(self.net, self.data.shape, self.budget.width, self.budget.depth)
        model = self.make(0)
        return {
            "data": self.data.name, "rows": len(self.data.x_train), "test rows": len(self.data.x_test),
            "shape": list(self.data.shape), "classes": self.data.num_classes, "digest": digest(self.data),
            "net": self.net.name, "width": width, "depth": depth, "epochs": self.budget.epochs,
            "batch": self.budget.batch, "device": str(torch.device(self.budget.device)),
            "threads": torch.get_num_threads(),
            "model": f"{fingerprint(list(model.parameters()))} {_short(str(model))}",
        }  # fmt: skip


def prepare(data: Data, limit: int | None = None) -> Data:
    """Standardised data of `limit` training samples, drawn once and for all seeds; all test samples stay.

    Raises:
        DataError: it has no class labels, or its sequences differ in length.
    """
    if data.num_classes < 2 or data.y_train.is_floating_point() or data.y_train.dim() != 1:
        raise DataError(
            repr(data.name), "rules are compared by accuracy, and there is not one class a sample",
            expected="integer labels [N] of two classes or more", got=(data.y_train.dtype, list(data.y_train.shape)),
            fix="another file; see DATASETS.md",
        )  # fmt: skip
    if data.length_train is not None:
        raise DataError(
            repr(data.name), "its sequences differ in length, which layered nets do not take",
            expected="samples of one shape", got="train/length", fix="a graph: imprint.train_graph",
        )  # fmt: skip
    if limit is not None and limit < len(data.x_train):
        rows = torch.randperm(len(data.x_train), generator=torch.Generator().manual_seed(0))[:limit]
        data = replace(data, x_train=data.x_train[rows], y_train=data.y_train[rows])
    return data.normalized()


def digest(data: Data) -> str:
    """A short fingerprint of all samples and labels."""
    return fingerprint([data.x_train, data.y_train, data.x_test, data.y_test])


def fingerprint(tensors: list[torch.Tensor]) -> str:
    """Twelve digits that differ if anything in the tensors does.

    >>> fingerprint([torch.zeros(2)]) == fingerprint([torch.zeros(2)]), len(fingerprint([]))
    (True, 12)
    """
    found = hashlib.sha1(usedforsecurity=False)
    for v in tensors:
        found.update(v.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:12]


def settings_of(task: Task, contestant: Contestant, seed: int) -> dict[str, Any]:
    """All that the figures of one run depend on."""
    return {
        **task.described, "rule": contestant.label, "options": contestant.options, "code": code_of(contestant.rule),
        "seed": seed,
    }  # fmt: skip


def code_of(rule: Rule | None) -> str:
    """Twelve digits that differ if imprint's version, or what the rule and its objective are written as, does.

    >>> from ..rules import LocalCE, PredSim
    >>> code_of(LocalCE()) == code_of(LocalCE(bias=False)), code_of(LocalCE()) == code_of(PredSim())
    (True, False)
    """
    told = [__version__]
    if rule is not None:
        try:
            kinds: list[type] = [type(rule), type(rule.objective())]
        except Exception:  # what is wrong with it is told when it runs
            kinds = [type(rule)]
        for kind in kinds:
            try:
                told.append(inspect.getsource(kind))
            except (OSError, TypeError):  # written at a prompt, or in a file that is no module
                told += [f"{name} {_compiled(v.__code__)}" for name, v in vars(kind).items() if isfunction(v)]
    return _short("\n".join(told))


def _compiled(code: CodeType) -> str:
    """What a function does, without places in memory."""
    inner = [_compiled(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return f"{code.co_code!r} {code.co_names} {code.co_varnames} {inner}"


def _short(text: str) -> str:
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()[:12]


def file_name(label: str, seed: int) -> str:
    """Of a run's file, without its ending.

    >>> file_name("predsim(beta=0.5)", 2)
    'predsim_beta=0.5_-seed2'
    """
    return re.sub(r"[^\w.=+-]", "_", label) + f"-seed{seed}"
