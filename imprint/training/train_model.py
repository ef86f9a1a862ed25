"""The plain loop: learn, validate, keep the best, and go on exactly where a kill struck."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from ..data.batches import Source, move, split
from ..errors import ArgumentError, DataError
from ..managers import Manager
from ..monitors.sinks import Sink
from .epochs import Epochs
from .files import save_file
from .history import Epoch, History, Table
from .run import Run

SCHEDULES = ("epoch", "step", "metric", None)


def train_model(
    manager: Manager,
    train: Source,
    val: Source | None = None,
    *,
    epochs: int,
    batch_size: int = 64,
    seed: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    every: int | None = None,
    resume: bool = True,
    sinks: Iterable[Sink] = (),
    log: int | None = None,
    schedule: str | None = "epoch",
    by: str = "output",
    progress: bool = True,
) -> History:
    """Train an attached model for some epochs, validate it after each, and return what was found.

    With a folder in `checkpoint`, the run can be killed at any moment and called again: it goes on from the last
    checkpoint, also in the middle of an epoch, and ends bit by bit where it would have ended. That holds for random
    numbers of torch, Python and NumPy and for the generators of a DataLoader; a dataset with a random state of its own
    is beyond it.

    ===========  ===================================================================================
    ``last.pt``  the run; written at the start, every `every` steps and after each epoch
    ``best.pt``  ``manager.state_dict()`` after the best epoch so far (``history.best``)
    ===========  ===================================================================================

    Args:
        manager: what ``attach`` returned.
        train: ``(x, y)`` tensors or a Dataset, both shuffled anew each epoch, or a DataLoader. Of a batch with more
            than two entries the last is y and the others are a tuple x; batches of one tensor have no y.
        val: the same, never shuffled; read by ``manager.evaluate``.
        epochs: how many in all; a resumed run takes those that are left.
        batch_size: of tensors and Datasets; validation takes four times as many.
        seed: of torch, Python and NumPy, set before anything is drawn; a resumed run does not look at it.
        checkpoint: folder for the two files; None writes none.
        every: steps between checkpoints within an epoch.
        resume: go on from the folder's ``last.pt``, if there is one; else start anew.
        sinks: get the metrics of all units, and after each epoch those of the whole model as ``train`` and ``val``.
        log: steps between two tables; None writes one an epoch. A table holds the means since the one before.
        schedule: when ``manager.step_schedulers`` is called: after each ``"epoch"``, after each ``"step"`` that
            updated, after each epoch with the (validation) loss as its ``"metric"``, or None: never.
        by: what is validated: the model's ``"output"``, or the units' own scores, ``"local"``.
        progress: show a bar.

    An epoch ends with an update, also when ``accumulate=`` batches are not full.

    Raises:
        CheckpointError: the checkpoint is damaged, or of another model, rule or data; nothing was changed.
        ArgumentError: a count is not positive, an unknown schedule, data that cannot be gone through twice.
        DataError: there is no batch, or one without a place for x and y.
        NonFiniteError: names the unit; the last checkpoint is still there.

    >>> import imprint
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> x = torch.randn(64, 2)
    >>> y = (x[:, 0] > 0).long()
    >>> manager = imprint.attach(model, "local_ce", optimizer=lambda p: torch.optim.Adam(p, 0.05))
    >>> history = train_model(manager, (x, y), (x, y), epochs=8, batch_size=16, seed=0, progress=False)
    >>> history.best.val["accuracy"] > 0.9
    True
    """
    folder = None if checkpoint is None else Path(checkpoint)
    plan = Plan(epochs, val, 4 * batch_size, folder, every, list(sinks), log, schedule, by, progress)
    if seed is not None:
        _seed(seed)
    run = Run(manager, Epochs(train, batch_size))
    if not manager.model.training:
        manager.model.train()
    if folder is not None:
        run.epochs.check_repeatable()
    if folder is not None and resume and (folder / "last.pt").is_file():
        run.load(folder / "last.pt", progress)
    else:
        run.epochs.shuffle()
        if folder is not None:
            save_file(folder / "last.pt", run.state_dict())
    for sink in plan.sinks:
        sink.start(manager.steps)
    total, done = len(run.epochs) * epochs or None, len(run.epochs) * run.epoch + run.batch
    bar = tqdm(desc="train", total=total, initial=done, disable=not progress)
    try:
        while run.epoch < epochs:
            _learn(run, plan, bar)
            epoch = _end(run, plan)
            shown = epoch.val or epoch.train
            bar.set_postfix({f"val {k}" if epoch.val else k: f"{v:.4f}" for k, v in shown.items()})
    finally:
        bar.close()
        for sink in plan.sinks:
            sink.close()
    return run.history


@dataclass(frozen=True)
class Plan:
    """What :func:`train_model` was asked for."""

    epochs: int
    val: Source | None
    val_batch: int
    folder: Path | None
    every: int | None
    sinks: list[Sink]
    log: int | None
    schedule: str | None
    by: str
    progress: bool

    def __post_init__(self) -> None:
        for name in ("epochs", "every", "log"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ArgumentError("train_model", f"{name}= counts from 1", expected="at least 1", got=value)
        if self.schedule not in SCHEDULES:
            raise ArgumentError(
                "train_model", f"unknown schedule={self.schedule!r}", expected=" | ".join(map(str, SCHEDULES))
            )

    def write(self, step: int, table: Table) -> None:
        """To all sinks."""
        for sink in self.sinks:
            sink.write(step, table)


def _learn(run: Run, plan: Plan, bar: tqdm) -> None:
    """The batches of the present epoch that are left."""
    manager = run.manager
    device = next(manager.model.parameters()).device
    for batch in run.batches():
        x, y = move(split(batch), device)
        run.count(manager.step(x, y), y)
        if plan.schedule == "step" and not manager.gathered:
            manager.step_schedulers()
        if plan.log is not None and manager.steps % plan.log == 0:
            plan.write(manager.steps, run.read_window())
        if plan.folder is not None and plan.every is not None and manager.steps % plan.every == 0:
            save_file(plan.folder / "last.pt", run.state_dict())
        bar.update()
    if not run.batch:
        raise DataError(
            "train_model", "the training data has no batches", fix="give data that can be gone through again"
        )
    if manager.gathered:
        manager.update()
        if plan.schedule == "step":
            manager.step_schedulers()


def _end(run: Run, plan: Plan) -> Epoch:
    """Validate, close the epoch's accounts, step the schedules, write."""
    manager = run.manager
    table = run.read_window() if run.window else {}
    val = {} if plan.val is None else manager.evaluate(plan.val, plan.val_batch, plan.by, plan.progress)
    done = run.end_epoch(val)
    if plan.schedule == "epoch":
        manager.step_schedulers()
    elif plan.schedule == "metric":
        values = done.val or done.train
        if "loss" not in values:
            raise ArgumentError("train_model", "schedule='metric' needs a loss, and none was found", fix="pass val=")
        manager.step_schedulers(values["loss"])
    plan.write(manager.steps, table | {k: v for k, v in (("train", done.train), ("val", done.val)) if v})
    if plan.folder is not None:
        state = run.state_dict()
        if run.history.best is done:
            save_file(plan.folder / "best.pt", state["manager"])
        save_file(plan.folder / "last.pt", state)
    return done


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  (what datasets may draw from)
