"""One run: a rule, a seed, and what came of it."""

from __future__ import annotations

import hashlib
import json
import shutil
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._version import __version__
from ..data.dataset import Data
from ..diagnostics.cost import machine, peak_bytes
from ..errors import CheckpointError, ImprintError, NonFiniteError, StateError
from ..managers import Manager
from ..objectives import Labels
from ..propagators.layer import primary
from ..training import History, train_model
from .contestants import Contestant
from .measures import ROWS, Clock, Cosine, Timed, cosine_every, probe_layers
from .settings import Task, file_name, fingerprint, settings_of


@dataclass(frozen=True)
class Run:
    """One rule with one seed.

    Args:
        task: net, data and budget.
        contestant: the rule.
        seed: of the weights, of the order of samples, and of whatever the rule draws.
    """

    task: Task
    contestant: Contestant
    seed: int

    @property
    def settings(self) -> dict[str, Any]:
        """All that its figures depend on."""
        return settings_of(self.task, self.contestant, self.seed)

    @property
    def key(self) -> str:
        """A name for its checkpoint that no other run has."""
        told = json.dumps(self.settings, sort_keys=True)
        return f"{file_name(self.contestant.label, self.seed)}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"

    def do(self, folder: Path, progress: bool = True) -> dict[str, Any]:
        """Train, and return plain values: figures, or why there are none.

        Args:
            folder: for the checkpoint of this run, from which it goes on after a kill; removed at the end.
            progress: show bars.
        """
        result: dict[str, Any] = {"settings": self.settings, "imprint": __version__, "machine": machine()}
        try:
            return result | self._do(folder, progress)
        except Exception as error:  # a rule of one's own may fail in any way; the others shall run
            told = "".join(traceback.format_exception(error)[-4:])
            return result | {"failed": {"error": type(error).__name__, "message": str(error), "trace": told}}

    def _do(self, folder: Path, progress: bool) -> dict[str, Any]:
        result: dict[str, Any] = {}
        try:
            result["peak bytes"] = self._peak()
        except NonFiniteError as error:
            return result | {"stopped": {"error": type(error).__name__, "message": str(error), "epoch": 1}}
        except ImprintError as error:
            return result | {"refused": {"error": type(error).__name__, "message": str(error)}}
        try:
            found = self._figures(folder, progress)
        except CheckpointError:  # cut short, or of other code
            shutil.rmtree(folder, ignore_errors=True)
            found = self._figures(folder, progress)
        shutil.rmtree(folder, ignore_errors=True)
        return result | found

    def _peak(self) -> int:
        """Transient memory of the third step, on a model of its own."""
        cuda = torch.device(self.task.budget.device).type == "cuda"
        with torch.random.fork_rng([torch.cuda.current_device()] if cuda else []):
            torch.manual_seed(self.seed)
            manager = self._attach()
            x, y = (v[: self.task.budget.batch] for v in self._train())
            for _ in range(2):
                manager.step(x, y)
            return peak_bytes(partial(manager.step, x, y), self.task.budget.device)

    def _attach(self, monitors: Iterable[Any] = ("loss",)) -> Manager:
        task = self.task
        x = task.data.x_train[:2].to(task.budget.device)
        return self.contestant.attach(task.make(self.seed), task.net, task.data.num_classes, x, list(monitors))

    def _train(self) -> tuple[Tensor, Tensor]:
        return _on(self.task.data, "train", self.task.budget.device)

    def _figures(self, folder: Path, progress: bool) -> dict[str, Any]:
        task, budget = self.task, self.task.budget
        labels = Labels(num_classes=task.data.num_classes)
        steps = -(-len(task.data.x_train) // budget.batch)
        plain_loss = lambda output, y: labels.cross_entropy(primary(output, "the output"), y)
        clock, cosine = Clock(), Cosine(plain_loss, cosine_every(steps))
        torch.manual_seed(self.seed)
        manager = self._attach(["loss", cosine, clock])
        found: dict[str, Any] = {
            "initial weights": fingerprint(self._net_of(manager)),
            "parameters": sum(p.numel() for p in manager.model.parameters()),
        }
        rows = Timed(*self._train(), budget.batch, self.seed, clock, cosine)
        test = _on(task.data, "test", budget.device)
        try:
            history = train_model(
                manager, rows, test, epochs=budget.epochs, batch_size=budget.batch, seed=self.seed, checkpoint=folder,
                progress=progress,
            )  # fmt: skip
        except CheckpointError:
            raise
        except ImprintError as error:
            epoch = manager.steps // steps + 1
            return found | {"stopped": {"error": type(error).__name__, "message": str(error), "epoch": epoch}}
        return found | self._of_history(history, steps) | self._of_model(manager, test)

    def _net_of(self, manager: Manager) -> list[Tensor]:
        """The net's own weights in the model that is trained."""
        prefix = "" if self.contestant.rule is not None else "model."
        names = [prefix + name for name, _ in self.task.make(self.seed).named_parameters()]
        held = dict(manager.model.named_parameters())
        return [held[name] for name in names]

    def _of_history(self, history: History, steps: int) -> dict[str, Any]:
        units = [{name.removeprefix("model."): row for name, row in epoch.units.items()} for epoch in history.epochs]
        cosines = dict.fromkeys(name for epoch in units for name, row in epoch.items() if "cosine" in row)
        return {
            "curve": [epoch.val["accuracy"] for epoch in history.epochs],
            "accuracy": history.epochs[-1].val["accuracy"],
            "train curve": [epoch.train.get("accuracy") for epoch in history.epochs],
            "seconds": [epoch["task"]["seconds"] * steps for epoch in units],
            "processor seconds": [epoch["task"]["processor"] * steps for epoch in units],
            "cosine": {name: [epoch.get(name, {}).get("cosine") for epoch in units] for name in cosines},
        }

    def _of_model(self, manager: Manager, test: tuple[Tensor, Tensor]) -> dict[str, Any]:
        try:
            local = manager.evaluate(test, by="local")["accuracy"]
        except StateError:  # no unit has an opinion
            local = None
        units = self.task.net.units(self.task.make(self.seed))
        prefix = "" if self.contestant.rule is not None else "model."
        x, y = self._train()
        probed = probe_layers(
            manager, [prefix + unit for unit in units], (x[:ROWS], y[:ROWS]), test, self.task.data.num_classes,
            self.task.net.channels_last,
        )  # fmt: skip
        optimizers = dict.fromkeys(_told(optimizer) for optimizer in manager.optimizers.values())
        return {
            "local": local, "layers": {name.removeprefix("model."): v for name, v in probed.items()},
            "optimizers": list(optimizers),
        }  # fmt: skip


def _on(data: Data, split: str, device: str) -> tuple[Tensor, Tensor]:
    x, y = (data.x_train, data.y_train) if split == "train" else (data.x_test, data.y_test)
    return x.to(device), y.to(device)


def _told(optimizer: torch.optim.Optimizer) -> str:
    """Its class and the settings that are numbers."""
    shown = {k: v for k, v in optimizer.param_groups[0].items() if k in ("lr", "momentum", "weight_decay") and v}
    return f"{type(optimizer).__name__}({', '.join(f'{k}={v:g}' for k, v in shown.items())})"
