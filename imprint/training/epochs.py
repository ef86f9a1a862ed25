"""Training data that can be taken up again in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data.batches import Source, batches, generators, length, parts
from ..errors import ArgumentError, CheckpointError
from ..utils import random_state, set_random_state


class Epochs:
    """Goes through data epoch after epoch; where it stands can be saved and is found again, batch by batch.

    What decides the order of an epoch and the random changes to its samples are the global random numbers and the
    generators of the loader when the epoch starts: these are noted. To go on in the middle, the epoch is started with
    them again, the batches already seen are drawn and dropped, and the generators are set to where they stood.

    Args:
        data: ``(x, y)``, a Dataset (both are shuffled) or a DataLoader.
        batch_size: of tensors and Datasets.
        where: the function that was called, for errors.
    """

    def __init__(self, data: Source, batch_size: int, where: str = "train_model") -> None:
        self.own, self.where = torch.Generator(), where
        self.batches = batches(data, batch_size, self.own)
        self.generators = generators(self.batches)
        self.samplers = [s for s in parts(self.batches) if callable(getattr(s, "set_epoch", None))]
        self.began: dict[str, Any] = self._mark()

    def __len__(self) -> int:
        """Batches of an epoch; 0 where that is not known."""
        return length(self.batches) or 0

    def check_repeatable(self) -> None:
        """Refuse data whose epochs cannot be started again.

        Raises:
            ArgumentError: workers that live on from epoch to epoch keep random numbers of their own.
        """
        if any(isinstance(part, DataLoader) and part.persistent_workers for part in parts(self.batches)):
            raise ArgumentError(
                f"{self.where}(checkpoint=...)", "workers that persist keep random numbers no checkpoint can hold",
                expected="DataLoader(persistent_workers=False)", got="persistent_workers=True",
                fix="leave out persistent_workers=, or checkpoint=",
            )  # fmt: skip

    def shuffle(self) -> None:
        """Draw the seed of the order from the global random numbers, unless a DataLoader has its own."""
        if any(self.own is g for g in self.generators):
            self.own.manual_seed(int(torch.randint(2**62, ())))

    def start(self, epoch: int) -> Iterator[Any]:
        """The batches of this epoch."""
        self.began = self._mark()
        return self._iterate(epoch)

    def resume(self, epoch: int, skip: int, state: dict[str, Any], progress: bool = False) -> Iterator[Any]:
        """The batches of this epoch behind the first `skip`; `state` is :meth:`state_dict` of that moment.

        The global random numbers are left anywhere: set them afterwards.

        Raises:
            CheckpointError: there are fewer batches.
        """
        self.check(state)
        self.began = state["began"]
        set_random_state(self.began["random"])
        self._set(self.began["generators"])
        found = self._iterate(epoch)
        for i in tqdm(range(skip), "resume", leave=False, disable=not progress):
            if next(found, None) is None:
                raise CheckpointError(
                    self.where, "the training data ends before the batch the checkpoint was made at",
                    expected=f"more than {skip} batches", got=i, fix="give the same data and batch_size",
                )  # fmt: skip
        self._set(state["now"])
        return found

    def state_dict(self) -> dict[str, Any]:
        """Where it stands: what the epoch began with, and the generators now."""
        return {"began": self.began, "now": [g.get_state() for g in self.generators], "batches": len(self)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on between two epochs."""
        self.check(state)
        self._set(state["now"])

    def _mark(self) -> dict[str, Any]:
        return {"random": random_state(), "generators": [g.get_state() for g in self.generators]}

    def _set(self, states: list[torch.Tensor]) -> None:
        for generator, state in zip(self.generators, states, strict=True):
            generator.set_state(state.cpu())

    def check(self, state: dict[str, Any]) -> None:
        """Refuse a state of other data."""
        here, there = (len(self), len(self.generators)), (state["batches"], len(state["now"]))
        if here != there:
            raise CheckpointError(
                self.where, "the checkpoint is of other training data",
                expected=f"{here[0]} batches, {here[1]} generators", got=f"{there[0]} batches, {there[1]} generators",
                fix="give the same data and batch_size",
            )  # fmt: skip

    def _iterate(self, epoch: int) -> Iterator[Any]:
        for sampler in self.samplers:
            sampler.set_epoch(epoch)
        return iter(self.batches)
