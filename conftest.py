"""What every test and doctest starts from (one thread, fixed seeds, untouched settings), and what is skipped."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent
DATA = Path(os.environ.get("IMPRINT_DATA", ROOT.parent / "shared" / "data"))

hypothesis.settings.register_profile("imprint", deadline=None, derandomize=True, database=None, max_examples=25)
hypothesis.settings.load_profile("imprint")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reasons = {
        "data": None if DATA.is_dir() else f"no folder {DATA}",
        "gpu": None if torch.cuda.is_available() else "no CUDA device",
        "slow": None if config.getoption("--slow") else "needs --slow",
    }
    for item in items:
        for marker, reason in reasons.items():
            if reason is not None and item.get_closest_marker(marker) is not None:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def same_start() -> Iterator[None]:
    """Seeds before a test; after it, what it must not have left changed is looked at and put back."""
    torch.set_num_threads(1)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (for code under test that draws from it)
    torch.manual_seed(0)
    before = _settings()
    yield
    after = _settings()
    torch.set_default_dtype(before["default dtype"])
    torch.set_grad_enabled(before["gradients enabled"])
    torch.use_deterministic_algorithms(before["deterministic algorithms"])
    torch.set_num_threads(1)
    assert after == before, "the test left global settings of torch changed"


def _settings() -> dict[str, object]:
    return {
        "default dtype": torch.get_default_dtype(),
        "gradients enabled": torch.is_grad_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
    }


@pytest.fixture(scope="session")
def root() -> Path:
    """The top folder of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def digits() -> Path:
    """The file of handwritten digits that comes with the repository."""
    return ROOT / "examples" / "data" / "digits.h5"


@pytest.fixture(scope="session")
def datasets() -> Path:
    """The folder of larger real data; for tests marked ``data``, which need one of its files."""
    return DATA
