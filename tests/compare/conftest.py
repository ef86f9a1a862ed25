"""Small files, and rules that are watched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from imprint.compare import comparison
from imprint.data import Data, save_h5
from imprint.objectives import Head, Objective
from imprint.objectives.objective import View
from imprint.rules import Rule, register_rule, registry

from references.comparing import Toy


@pytest.fixture
def drawn() -> None:
    """For tests that look at pictures; the others draw none, which saves most of their time."""


@pytest.fixture(autouse=True)
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(comparison, "draw", lambda rows, folder, name: {})


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    """Writes a small file: two classes beside each other, in noise."""

    def make(name: str = "toy.h5", shape: tuple[int, ...] = (6,), train: int = 90, test: int = 200) -> Path:
        random = torch.Generator().manual_seed(5)
        y = [torch.randint(2, (n,), generator=random) for n in (train, test)]
        x = [torch.randn(len(v), *shape, generator=random) + v.view(-1, *[1] * len(shape)) for v in y]
        return save_h5(tmp_path / name, Data(x[0], y[0], x[1], y[1], num_classes=2, name="toy"))

    return make


@pytest.fixture
def rule() -> Iterator[Callable[[Callable[[View], Any]], str]]:
    """Registers a rule, ``"spied"``, whose objective shows each view to a function first; local cross entropy."""

    def make(seen: Callable[[View], Any]) -> str:
        class Spied(Head):
            def forward(self, view: View) -> Tensor:
                factor = seen(view)
                return super().forward(view) * (1.0 if factor is None else factor)

        @register_rule("spied")
        @dataclass(frozen=True)
        class SpiedRule(Rule):
            """Local cross entropy, watched."""

            def objective(self) -> Objective:
                return Spied()

        return "spied"

    yield make
    registry.pop("spied", None)
