"""Rows of an HDF5 file that are read when they are asked for."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

from .checks import flaw
from .hdf5 import open_h5, to_tensor

PIECE = 2**20  # bytes of the file that are read in one go


class Stored:
    """A dataset of an HDF5 file, taken by rows as a tensor would be.

    The file is opened by each call and closed again: nothing is held, so it can be pickled and used by workers.

    Args:
        path: the file.
        key: the dataset in it.
        dtype: what rows are turned into; None: float32 for floating numbers, int64 for others.

    Attributes:
        shape: of all rows together.
        dtype: of the rows.
        unit: how many neighbouring rows of the file are read together: whole chunks of HDF5, about a megabyte.

    Raises:
        DataError: the file cannot be read, has no such dataset, or there are no rows of numbers in it.

    >>> import h5py, tempfile
    >>> path = tempfile.mkdtemp() + "/x.h5"
    >>> with h5py.File(path, "w") as file:
    ...     file["x"] = [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    >>> rows = Stored(path, "x")
    >>> rows.shape, rows.take(torch.tensor([2, 0])).tolist()
    ((3, 2), [[4.0, 5.0], [0.0, 1.0]])
    """

    def __init__(self, path: str | os.PathLike[str], key: str, dtype: torch.dtype | None = None) -> None:
        self.path, self.key = os.path.realpath(path), key
        with open_h5(path) as file:
            item = file[key]
            sample = to_tensor(item[:1] if item.shape else item[()], str(path), key)
            self._there: tuple[int, ...] = tuple(item.shape)
            chunk = item.chunks[0] if item.chunks else 1
        if not len(sample):
            raise flaw(str(path), f"{key} holds no samples", "[N, ...] with N >= 1", list(self._there))
        self.dtype = dtype or (torch.float32 if sample.is_floating_point() else torch.int64)
        self.shape = self._there
        self.unit: int = max(1, PIECE // (chunk * max(1, sample.nbytes))) * chunk
        self._rows: Tensor | None = None
        self._changes: tuple[Callable[[Tensor], Tensor], ...] = ()

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all rows in memory."""
        return prod(self.shape) * self.dtype.itemsize

    def subset(self, rows: Tensor) -> Stored:
        """Only these rows, in this order."""
        found = copy.copy(self)
        found._rows = rows if self._rows is None else self._rows[rows]
        found.shape = (len(rows), *self.shape[1:])
        return found

    def changed(self, change: Callable[[Tensor], Tensor]) -> Stored:
        """Each row as `change` makes it; it gets and returns ``[n, ...]``, row by row, and can be pickled."""
        found = copy.copy(self)
        found._changes = (*self._changes, change)
        found.shape = (len(self), *change(torch.zeros(1, *self.shape[1:], dtype=self.dtype)).shape[1:])
        return found

    def take(self, rows: Tensor, out: Tensor | None = None) -> Tensor:
        """These rows, in this order; rows of the file that lie near each other are read together.

        Args:
            rows: ``[n]`` of ``0 .. len(self) - 1``.
            out: where to put them, ``[n, ...]``.

        Raises:
            DataError: the file cannot be read any more, or its dataset has another shape than it had.
        """
        out = torch.empty(len(rows), *self.shape[1:], dtype=self.dtype) if out is None else out
        ids, places = (rows if self._rows is None else self._rows[rows]).sort()
        counts = torch.unique_consecutive(ids // self.unit, return_counts=True)[1].tolist()
        with open_h5(self.path) as file:
            item = file.get(self.key)
            if item is None or tuple(item.shape) != self._there:
                got = "nothing" if item is None else list(item.shape)
                fix = "open the file anew"
                raise flaw(self.path, f"{self.key} is not what it was when it was opened", list(self._there), got, fix)
            for near, place in zip(ids.split(counts), places.split(counts), strict=True):
                low, high = int(near[0]), int(near[-1]) + 1
                values = to_tensor(item[low:high], self.path, self.key)[near - low].to(self.dtype)
                for change in self._changes:
                    values = change(values)
                out[place] = values
        return out
