"""Sequences in HDF5 files: one split read, in memory or left there, and datasets written piece by piece."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import torch
from torch import Tensor

from ..errors import ArgumentError
from .columns import Column, read
from .hdf5 import COMPRESSED, class_count, narrow, open_h5, require, write_h5
from .images import as_rows
from .order import cut, windows
from .stored import PIECE, Stored

if TYPE_CHECKING:
    from .sequences import SequenceDataset

IN_MEMORY = 2**30  # bytes of features up to which a file is read whole
BLOCK = 2**22  # bytes of features in a block of a file that is not


@dataclass(frozen=True)
class Split:
    """One split of a file: arguments of ``SequenceDataset``, and rows of a block where features stay in the file."""

    columns: dict[str, Any]
    about: dict[str, Any]
    block: int | None


def open_split(
    path: str | os.PathLike[str], split: str, extra: Sequence[str], dtype: torch.dtype, in_memory: bool | None
) -> Split:
    """See :meth:`imprint.data.SequenceDataset.from_h5`."""
    where = str(path)
    with open_h5(path) as file:
        there = require(file, where, [f"{split}/{key}" for key in ("x", *extra)])
        count, name = class_count(file, where), str(file.attrs.get("name", Path(path).stem))
        floats = {key: file[key].dtype.kind == "f" for key in there}
        tokens = file[f"{split}/x"].ndim == 2 and not floats[f"{split}/x"]
    x = Stored(path, f"{split}/x", torch.int64 if tokens else dtype)
    if len(x.shape) == 4:
        x = x.changed(as_rows)
    whole = x.nbytes <= IN_MEMORY if in_memory is None else in_memory

    def column(key: str) -> Column | None:
        if f"{split}/{key}" not in there:
            return None
        stored = Stored(path, f"{split}/{key}")
        return load(stored) if whole or len(stored.shape) < 2 else stored

    if count is None:
        count = _count_classes(path, [key for key in there if key.endswith("/y") and not floats[key]])
    columns: dict[str, Any] = {"x": load(x) if whole else x, "y": column("y"), "lengths": column("length")}
    columns["extra"] = {key: column(key) for key in extra}
    row = max(1, x.nbytes // len(x))
    return Split(columns, {"num_classes": count or None, "name": name}, None if whole else _block(x.unit, row))


def load(stored: Stored) -> Tensor:
    """All rows."""
    return stored.take(torch.arange(len(stored)))


def _block(unit: int, row: int) -> int:
    """Rows of about :data:`BLOCK` bytes, whole units."""
    return max(1, BLOCK // (row * unit)) * unit


def _count_classes(path: str | os.PathLike[str], keys: list[str]) -> int | None:
    """One more than the largest label of the file."""
    largest = -1
    for key in keys:
        stored = Stored(path, key)
        for rows in windows(len(stored), None, stored.unit):
            largest = max(largest, int(stored.take(rows).max()))
    return largest + 1 if largest >= 0 else None


def save_sequences_h5(
    path: str | os.PathLike[str], train: SequenceDataset, test: SequenceDataset | None = None, *,
    source: str = "", license: str = "", citation: str = "",
) -> Path:  # fmt: skip
    """Write sequences as a file that :meth:`SequenceDataset.from_h5` reads; the same data give the same bytes.

    Rows are copied piece by piece, so that neither what is read nor what is written has to fit into memory. The file
    appears whole or not at all (:func:`atomic_save`).

    Args:
        path: the file to make or replace.
        train: the training split.
        test: the test split.
        source: where the data come from.
        license: on what terms they may be used.
        citation: the paper to cite.

    Returns:
        The file's path.

    Raises:
        ArgumentError: a dataset is read from this very file, or the splits differ in their number of classes.

    >>> import imprint, tempfile
    >>> data = imprint.data.SequenceDataset(torch.randn(4, 6, 2), [0, 1, 1, 0], lengths=[6, 2, 3, 1], name="toy")
    >>> file = save_sequences_h5(tempfile.mkdtemp() + "/toy.h5", data)
    >>> imprint.data.SequenceDataset.from_h5(file)
    SequenceDataset 'toy': 4 of 1 to 6 ticks of shape (2,), 2 classes
    """
    where, splits = f"save_sequences_h5({str(path)!r})", {"train": train} | ({} if test is None else {"test": test})
    for data in splits.values():
        if any(isinstance(c, Stored) and c.path == os.path.realpath(path) for c in data.columns.values()):
            raise ArgumentError(where, "this file is being read from", fix="write another file")
        if data.num_classes != train.num_classes:
            counts = [d.num_classes for d in splits.values()]
            raise ArgumentError(
                where, "the splits differ in classes", expected="one number", got=counts, fix="num_classes="
            )

    def fill(file: h5py.File) -> None:
        for split, data in splits.items():
            _write(file, split, data)

    about = {"name": train.name, "source": source, "license": license, "citation": citation}
    return write_h5(path, {**about, "num_classes": train.num_classes or 0}, fill)


def _write(file: h5py.File, split: str, data: SequenceDataset) -> None:
    """One split, piece by piece."""
    pieces = _rows(data.x)
    targets = {}
    for key, column in data.columns.items():
        rows = min(len(data), _rows(column))
        targets[key] = file.create_dataset(
            f"{split}/{key}", column.shape, _dtype(key, column, data.num_classes),
            chunks=(rows, *column.shape[1:]), **COMPRESSED,
        )  # fmt: skip
    for at, batch in read(data.columns, cut(windows(len(data), None, pieces), pieces)):
        for key, values in data.settled(at, batch).items():
            targets[key][int(at[0]) : int(at[-1]) + 1] = values.cpu().numpy()


def _rows(column: Column) -> int:
    """Rows of about a megabyte."""
    return max(1, PIECE * column.shape[0] // max(1, column.nbytes))


def _dtype(key: str, column: Column, num_classes: int | None) -> np.dtype[Any]:
    """What a column is stored as: lengths and class labels small."""
    dtype = torch.int32 if key == "length" else column.dtype
    if key == "y" and isinstance(column, Tensor):
        dtype = narrow(column, num_classes or 0).dtype
    return torch.empty(0, dtype=dtype).numpy().dtype
