"""Small trainings of a graph on random sequences, that can be broken off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import imprint
from imprint.data import SequenceDataset, collate
from imprint.monitors.sinks import CSV
from imprint.training import (
    History,
    last_step_accuracy,
    last_step_ce_loss,
    prepare_seq2static_classification,
    train_graph,
)

ROWS, TICKS, CLASSES, EPOCHS = 22, 6, 3, 2


def samples() -> dict[str, Tensor]:
    own = torch.Generator().manual_seed(11)
    return {
        "x": torch.randn(ROWS, TICKS, 4, generator=own), "y": torch.randint(CLASSES, (ROWS,), generator=own),
        "length": torch.randint(2, TICKS + 1, (ROWS,), generator=own),
    }  # fmt: skip


class Noisy(Dataset):
    """Draws from torch's random numbers for every sample; padded by a DataLoader."""

    num_classes = CLASSES

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        one = {key: value[i] for key, value in samples().items()}
        return {"x": one["x"][: one["length"]] + 0.1 * torch.randn(int(one["length"]), 4), "y": one["y"]}


def source(kind: str) -> Any:
    if kind == "dict":
        return samples()
    if kind in ("table", "seeded"):
        made = samples()
        lengths = made.pop("length")
        return SequenceDataset(**made, lengths=lengths, batch_size=4, seed=None if kind == "table" else 3)
    if kind == "dataset":
        return Noisy()
    assert kind == "loader"
    return DataLoader(Noisy(), 4, shuffle=True, collate_fn=collate, generator=torch.Generator().manual_seed(9))


def build(hidden: int = 7, stop_grad: bool = True) -> imprint.Graph:
    """Source, GRU, a slower MLP, head; dropout and a running mean among the states."""
    src = imprint.Source("x")
    enc = imprint.Module("enc", imprint.protos.GRUStack(hidden=hidden, layers=2, layernorm=True))
    norm = torch.nn.Sequential(torch.nn.Dropout(0.2), torch.nn.Linear(hidden, 5), torch.nn.BatchNorm1d(5))
    mid = imprint.Module("mid", imprint.protos.TorchModule(norm), schedule=imprint.Rate(emit_every=2))
    head = imprint.Module("head", imprint.protos.MLP([5, imprint.Auto]))
    graph = imprint.Graph(stop_grad=stop_grad)
    graph.connect(src["out"], enc["in"])
    graph.connect(enc["out"], mid["in"])
    graph.connect(mid["out"], head["in"])
    enc.objectives.activity_l2(weight=1e-3)
    prepare_seq2static_classification(graph, samples())
    return graph


def attached(graph: imprint.Graph, **options: Any) -> Any:
    schedule = lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.7)
    return imprint.attach(graph, "local", num_classes=CLASSES, **({"scheduler": schedule} | options))


def run(folder: Path, kind: str, way: str, seed: int, sinks: Any = (), **options: Any) -> History:
    """`way`: ``"own"`` manager of train_graph, ``"attached"``, or ``"global"`` loss."""
    torch.manual_seed(seed)
    graph = build(stop_grad=way != "global")
    if way == "attached":
        attached(graph, optimizer=lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.5))
        options = {"schedule": "step"} | options
    else:
        options = {"lr": 0.02, "use_adamw": True, "weight_decay": 0.1} | options
    if way == "global":
        loss = last_step_ce_loss()
        options["loss_fn"] = lambda out, batch: loss(out, batch)
    table = source(kind)
    size = {"batch_size": 4} if kind in ("dict", "dataset") else {}
    chosen = {"epochs": EPOCHS, "every": 1, "log_every": 2} | size | options
    return train_graph(
        graph, table, val_dataset=samples(), val_every=2, metric_fn=last_step_accuracy(), seed=1, checkpoint=folder,
        callbacks=[CSV(folder / "run.csv"), *sinks], progress=False, **chosen,
    )  # fmt: skip
