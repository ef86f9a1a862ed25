"""Small trainings on random data that can be broken off, and the comparison of what they leave."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler, Sampler, WeightedRandomSampler

import imprint
from imprint.monitors.metrics import Alignment
from imprint.monitors.sinks import CSV, Sink
from imprint.training import History, load_file, train_model

from references.states import differences

ROWS, CLASSES, EPOCHS = 26, 3, 2
MONITORS = ["loss", "accuracy", "grad_norm", "update_ratio", "activations", "linear_probe"]


class Stop(Exception):
    """Stands for a kill."""


class StopAt(Sink):
    """Breaks the run off when a table of this step or a later one is written."""

    def __init__(self, step: int) -> None:
        self.step = step

    def write(self, step: int, table: Any) -> None:
        if step >= self.step:
            raise Stop


class Augmented(Dataset):
    """Draws from the random numbers of torch, Python and NumPy for every sample."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        noise = torch.randn(6) * 0.1 + random.random() + np.random.rand()  # noqa: NPY002
        return self.x[i] + noise.float(), self.y[i]


class Drawn(Sampler):
    """Draws one index at a time, from a generator of its own."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(4)
        self.epoch = -1

    def __len__(self) -> int:
        return ROWS

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self):
        for _ in range(ROWS):
            yield (int(torch.randint(ROWS, (), generator=self.generator)) + self.epoch) % ROWS


def samples() -> tuple[Tensor, Tensor]:
    own = torch.Generator().manual_seed(11)
    return torch.randn(ROWS, 6, generator=own), torch.randint(CLASSES, (ROWS,), generator=own)


def source(kind: str) -> Any:
    x, y = samples()
    data = Augmented(x, y)
    if kind == "tensors":
        return x, y
    if kind == "dataset":
        return data
    if kind == "loader":
        return DataLoader(data, 4, shuffle=True)
    if kind == "generator":
        return DataLoader(data, 4, shuffle=True, generator=torch.Generator().manual_seed(9))
    if kind == "workers":
        return DataLoader(data, 4, shuffle=True, num_workers=2)
    if kind == "sampler":
        return DataLoader(data, 4, sampler=Drawn())
    if kind == "weighted":
        return DataLoader(data, 4, sampler=WeightedRandomSampler(torch.arange(1.0, ROWS + 1), ROWS))
    assert kind == "replacement"
    return DataLoader(data, 4, sampler=RandomSampler(data, replacement=True, num_samples=ROWS))


def manager(rule: str, seed: int, **options: Any) -> imprint.Manager:
    torch.manual_seed(seed)
    blocks = [[nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU(), nn.Dropout(0.3)] for a, b in ((6, 8), (8, 7))]
    model = nn.Sequential(*(nn.Sequential(*block) for block in blocks), nn.Linear(7, CLASSES))
    chosen = {
        "layers": ["0", "1"], "monitors": [*MONITORS, Alignment(every=2)], "num_classes": CLASSES,
        "optimizer": lambda p: torch.optim.Adam(p, 0.02),
        "scheduler": lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.7),
    }  # fmt: skip
    return imprint.attach(model, rule, **(chosen | options))


def run(folder: Path, kind: str, rule: str, seed: int, sinks: list[Sink], **options: Any) -> History:
    own = {k: options.pop(k) for k in ("accumulate", "grad_clip") if k in options}
    return train_model(
        manager(rule, seed, **own), source(kind), samples(), epochs=options.pop("epochs", EPOCHS), batch_size=4, seed=1,
        checkpoint=folder, every=options.pop("every", 1), log=options.pop("log", 2), progress=False,
        sinks=[CSV(folder / "run.csv"), *sinks], **options,
    )  # fmt: skip


def check_same(straight: Path, resumed: Path) -> None:
    for name in ("last.pt", "best.pt"):
        assert differences(load_file(straight / name), load_file(resumed / name), ("seconds",)) == []
    assert (straight / "run.csv").read_text() == (resumed / "run.csv").read_text()
