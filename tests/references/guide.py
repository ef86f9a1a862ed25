"""Runs what the documents tell users to write, and looks whether a graph made that way learns and stays alive.

The preamble that the documents leave out: ``torch``, ``imprint``, ``Auto`` and ``Targets`` are imported, a loader and
an optimizer are there, and the backend is ``"eager"`` where they write ``"cuda_graph"``, which needs a GPU.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor

import imprint
from imprint.data import SequenceDataset, load_demo_dataset

STEPS, LR = 20, 3e-3
UNREACHED, INFERRED = "no data objective reaches", "classes were inferred"


class LateOptimizer:
    """Adam over the parameters of ``names["g"]``, made when it first steps: before bind there are none."""

    def __init__(self, names: dict[str, Any]) -> None:
        self.names = names
        self.steps = 0
        self.own: Any = None

    def step(self) -> None:
        self.own = self.own or torch.optim.Adam(self.names["g"].parameters(), LR)
        self.own.step()
        self.steps += 1


def play(*snippets: str, expect: tuple[str, ...] = (), **given: Any) -> dict[str, Any]:
    """Run snippets one after the other; warnings have to be those that are expected. Returns all names."""
    names: dict[str, Any] = {"torch": torch, "imprint": imprint, "Auto": imprint.Auto, "Targets": imprint.Targets}
    names |= {"optimizer": LateOptimizer(names)} | given
    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for snippet in snippets:
            exec(compile(snippet.replace('"cuda_graph"', '"eager"'), "<document>", "exec"), names)
    messages = [str(w.message) for w in caught]
    assert all(any(part in message for part in expect) for message in messages), messages
    assert all(any(part in message for message in messages) for part in expect), messages
    return names


def easy(split: str, rows: int, ticks: int, features: int, batch_size: int = 16) -> SequenceDataset:
    """Oscillations of four speeds, each around a place of its own: any tick tells the class, and what comes next."""
    data = load_demo_dataset(split=split, samples=rows, seq_len=ticks, feature_dim=features, batch_size=batch_size)
    places = torch.randn(4, features, generator=torch.Generator().manual_seed(1))
    return SequenceDataset(data.x + 2 * places[data.y][:, None], data.y, num_classes=4, batch_size=batch_size, seed=0)


def easy_batch(rows: int, ticks: int, features: int, labels: int | None = None) -> dict[str, Tensor]:
    """One batch of them; `labels` repeats each, one an emission."""
    batch = next(easy("train", rows, ticks, features, rows).iter_batches(shuffle=False))
    return batch if labels is None else batch | {"y": batch["y"][:, None].expand(-1, labels)}


def rms(graph: imprint.Graph) -> dict[str, float]:
    """Root mean square of what every module emitted last."""
    assert graph.run is not None
    ports = {n: graph.run.recorded(f"{n}.out") for n in graph.order if n not in graph.sources}
    return {n: out.detach().square().mean().sqrt().item() for n, out in ports.items()}


def data_losses(graph: imprint.Graph) -> dict[str, float]:
    """Losses of the last rollout that modules learn from."""
    regular = {f"{n}.{t.name}" for n, m in graph.modules_by_name.items() for t in m.objectives if not t.data}
    regular |= {f"{n}.{t.name}" for n, m in graph.modules_by_name.items() for t in m.objectives.params}
    return {name: loss.item() for name, loss in graph.losses().items() if name not in regular}


def evaluate(graph: imprint.Graph, batch: dict[str, Tensor]) -> tuple[dict[str, float], dict[str, float]]:
    """Declared data losses and rms, without learning."""
    graph.eval()
    with torch.no_grad():
        graph.rollout(batch)
    graph.train()
    return data_losses(graph), rms(graph)


def check_it_learns(graph: imprint.Graph, batch: dict[str, Tensor], fall: float = 0.97) -> None:
    """Locally attached, and with all edges open and one optimizer, starting from the same weights each."""
    for learn in (learn_locally, learn_through_open_edges):
        made = copy.deepcopy(graph)
        made.train()
        before, live = evaluate(made, batch)
        first, last = learn(made, batch)
        after, still = evaluate(made, batch)
        assert set(first) == set(last) and set(before) == set(after)
        for name in first:
            assert last[name] < fall * first[name], (learn.__name__, name, first[name], last[name])
        for name in before:
            assert after[name] < fall * before[name], (learn.__name__, name, before[name], after[name])
        for name in live:
            assert still[name] > 0.1 * live[name], (learn.__name__, name, live[name], still[name])


def learn_locally(graph: imprint.Graph, batch: dict[str, Tensor]) -> tuple[dict[str, float], dict[str, float]]:
    """Losses of all groups in the first and the last rollout; every module with parameters is in one."""
    manager = imprint.attach(graph, "local", num_classes=None if "y" not in batch else 4, optimizer=adam)
    losses = []
    for _ in range(STEPS):
        manager.step(batch)
        losses.append(manager.losses())
    assert manager.orphans == [] and manager.steps == STEPS
    trained = {name for group in manager.propagators for name in group.split("+")}
    assert trained == {n for n, m in graph.modules_by_name.items() if any(True for _ in m.parameters())}
    return losses[0], losses[-1]


def learn_through_open_edges(graph: imprint.Graph, batch: dict[str, Tensor]) -> tuple[Any, Any]:
    """One optimizer over everything; declared losses in the first and the last rollout."""
    graph.open_edges()
    optimizer, losses = adam(list(graph.parameters())), []
    for _ in range(STEPS):
        graph.rollout(batch)
        losses.append(data_losses(graph))
        optimizer.zero_grad()
        torch.stack(list(graph.losses().values())).sum().backward() if losses[-1] else graph.loss().backward()
        optimizer.step()
        graph.project_()
    return losses[0], losses[-1]


def adam(params: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.Adam(params, LR)
