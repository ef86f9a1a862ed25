"""Files of a run: written whole or not at all, read only if nothing in them is damaged."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from ..data.atomic import atomic_save
from ..errors import CheckpointError


def save_file(path: str | os.PathLike[str], state: Any) -> None:
    """Put `state` (tensors and plain values) into a file, in one step: a kill leaves the old file or the new one."""
    atomic_save(path, lambda temporary: torch.save(state, temporary))


def load_file(path: str | os.PathLike[str]) -> Any:
    """The counterpart of :func:`save_file`; tensors come to the CPU. No code of the file is run.

    Raises:
        CheckpointError: it is missing, cut short, changed, or holds more than tensors and plain values.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "run.pt"
    >>> save_file(path, {"steps": 3, "w": torch.ones(2)})
    >>> load_file(path)
    {'steps': 3, 'w': tensor([1., 1.])}
    """
    where, fix = f"checkpoint {os.fspath(path)!r}", "delete it to start anew, or give another folder"
    if not Path(path).is_file():
        raise CheckpointError(where, "there is no such file", fix="look at the folder's name")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch does not look at the checksums
        if damaged is not None:
            raise CheckpointError(where, "it is damaged", got=f"a wrong checksum of {damaged!r}", fix=fix)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, OSError) as error:
        if isinstance(error, CheckpointError):
            raise
        first = str(error).split("\n")[0]
        raise CheckpointError(where, "it is damaged, or no checkpoint", got=first, fix=fix) from error
