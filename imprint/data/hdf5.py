"""The HDF5 layout: ``train/x``, ``train/y``, ``test/x``, ``test/y``, ``length`` where sequences differ in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from .atomic import atomic_save
from .dataset import Data

LAYOUT = ("train/x", "train/y", "test/x", "test/y")


def load_h5(path: str | os.PathLike[str], *, dtype: torch.dtype | None = torch.float32) -> Data:
    """Read a file of the layout into memory.

    Integer labels become int64, floating ones float32. Without the attribute ``num_classes`` there are as many as the
    largest label says.

    Args:
        path: the file.
        dtype: of the samples; None leaves them as they are stored (bytes of images, ids of tokens).

    Raises:
        DataError: the file is missing, damaged, no HDF5, or of another layout; or see :class:`Data`.

    >>> import tempfile
    >>> x, y = torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 2])
    >>> file = save_h5(tempfile.mkdtemp() + "/toy.h5", Data(x, y, x, y, num_classes=3, name="toy"))
    >>> load_h5(file), load_h5(file).x_train.dtype, load_h5(file, dtype=None).x_train.dtype
    (Data 'toy': 3 training and 3 test samples of shape (1, 2, 2), 3 classes, torch.float32, torch.uint8)
    """
    with open_h5(path) as file:
        return _read(file, str(path), dtype)


@contextmanager
def open_h5(path: str | os.PathLike[str]) -> Iterator[h5py.File]:
    """An HDF5 file, open for reading.

    Raises:
        DataError: there is no such file, or it cannot be read: when it is opened, or by whatever reads it inside.
    """
    if not Path(path).is_file():
        fix = "check the path" if not Path(path).exists() else "name a file in it"
        raise DataError(str(path), "there is no such file", expected="an HDF5 file", fix=fix)
    try:
        with h5py.File(path, "r") as file:
            yield file
    except OSError as error:
        raise DataError(
            str(path), "the file cannot be read as HDF5; it is damaged, cut off, or something else",
            expected=f"an HDF5 file with {', '.join(LAYOUT)}", got=error, fix="copy or download it again",
        ) from error  # fmt: skip


def require(file: h5py.File, where: str, needed: Iterable[str]) -> list[str]:
    """The names of all datasets in a file, when `needed` are among them.

    Raises:
        DataError: lists those that are missing and those that are there.
    """
    there: list[str] = []
    file.visititems(lambda key, item: there.append(key) if isinstance(item, h5py.Dataset) else None)
    if missing := [key for key in needed if key not in there]:
        raise DataError(
            where, f"it lacks {', '.join(missing)}",
            expected=", ".join(needed), got=", ".join(there) or "no datasets",
            fix="write it with imprint.data.save_h5 or save_sequences_h5; see DATASETS.md",
        )  # fmt: skip
    return there


def _read(file: h5py.File, where: str, dtype: torch.dtype | None) -> Data:
    """All tensors of an open file."""
    there = require(file, where, LAYOUT)
    x = [to_tensor(file[f"{split}/x"][()], where, f"{split}/x") for split in ("train", "test")]
    y = [to_tensor(file[f"{split}/y"][()], where, f"{split}/y") for split in ("train", "test")]
    y = [t.to(torch.float32 if t.is_floating_point() else torch.int64) for t in y]
    length = [
        to_tensor(file[key][()], where, key).long() if key in there else None for key in ("train/length", "test/length")
    ]
    if dtype is not None:
        x = [t.to(dtype) for t in x]
    name = str(file.attrs.get("name", Path(where).stem))
    return Data(x[0], y[0], x[1], y[1], _num_classes(file, where, y), name, length[0], length[1])


def to_tensor(array: object, where: str, key: str) -> Tensor:
    """What was read of one dataset, in this machine's byte order."""
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "buif":
        raise DataError(
            where, f"{key} holds no array of numbers",
            expected="integers or floating numbers", got=np.asarray(array).dtype, fix="store numbers",
        )  # fmt: skip
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)  # torch computes with unsigned bytes only
    return torch.from_numpy(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")))


def _num_classes(file: h5py.File, where: str, y: list[Tensor]) -> int:
    """The attribute, or one more than the largest label; 0 for targets of a regression."""
    count = class_count(file, where)
    if count is not None:
        return count
    return 0 if any(t.is_floating_point() or t.numel() == 0 for t in y) else max(int(t.max()) for t in y) + 1


def class_count(file: h5py.File, where: str) -> int | None:
    """The attribute ``num_classes``, if there is one."""
    count = file.attrs.get("num_classes")
    if count is None:
        return None
    if not np.issubdtype(np.asarray(count).dtype, np.integer) or np.ndim(count):
        raise DataError(
            where, "the attribute num_classes is no integer",
            expected="an integer", got=repr(count), fix="file.attrs['num_classes'] = 10",
        )  # fmt: skip
    return int(count)


def save_h5(
    path: str | os.PathLike[str], data: Data, *, source: str = "", license: str = "", citation: str = ""
) -> Path:
    """Write `data` as a file that :func:`load_h5` reads; the same data give the same bytes.

    Samples keep their dtype, so images stay bytes; class labels are stored as bytes where 256 classes are enough. The
    file appears whole or not at all (:func:`atomic_save`).

    Args:
        path: the file to make or replace.
        data: what to write.
        source: where the data come from.
        license: on what terms they may be used.
        citation: the paper to cite.

    Returns:
        The file's path.
    """
    splits = (
        ("train", data.x_train, data.y_train, data.length_train),
        ("test", data.x_test, data.y_test, data.length_test),
    )

    def fill(file: h5py.File) -> None:
        for split, x, y, length in splits:
            _store(file, f"{split}/x", x)
            _store(file, f"{split}/y", narrow(y, data.num_classes))
            if length is not None:
                _store(file, f"{split}/length", length.to(torch.int32))

    about = {"name": data.name, "source": source, "license": license, "citation": citation}
    return write_h5(path, {**about, "num_classes": data.num_classes}, fill)


def write_h5(path: str | os.PathLike[str], attributes: Mapping[str, object], fill: Callable[[h5py.File], None]) -> Path:
    """Make or replace a file, whole or not at all: `attributes`, then whatever `fill` writes into it."""

    def write(temporary: Path) -> None:
        with h5py.File(temporary, "w") as file:
            for key, value in attributes.items():
                file.attrs[key] = value
            fill(file)

    return atomic_save(path, write)


COMPRESSED = {"compression": "gzip", "shuffle": True, "track_times": False}  # no time stamp: same data, same bytes


def _store(file: h5py.File, key: str, tensor: Tensor) -> None:
    file.create_dataset(key, data=tensor.detach().cpu().numpy(), **COMPRESSED)


def narrow(y: Tensor, num_classes: int) -> Tensor:
    """Class labels as bytes where they fit."""
    fits = not y.is_floating_point() and num_classes <= 256 and bool((y >= 0).all())
    return y.to(torch.uint8) if fits else y
