"""Files of a comparison: one a run, written whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..data.atomic import atomic_save
from ..errors import ArgumentError, DataError

FORMAT = 1


def check_folder(out: str | os.PathLike[str]) -> Path:
    """The folder, made if need be.

    Raises:
        ArgumentError: it is a file, or cannot be written to.
    """
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_save(folder / ".writable", lambda temporary: temporary.touch())
        (folder / ".writable").unlink()
    except OSError as error:
        raise ArgumentError(
            "compare", "the folder for results cannot be written to", expected="a folder, made if need be",
            got=f"{folder}: {error}", fix="out='runs/first'",
        ) from error  # fmt: skip
    return folder


def write_run(path: Path, result: dict[str, Any]) -> None:
    """One run as JSON; a kill leaves the old file or the new one."""
    text = json.dumps({"format": FORMAT, **result}, indent=1) + "\n"
    atomic_save(path, lambda temporary: _fill(temporary, text))


def write_text(path: Path, text: str) -> None:
    """A text file, whole or not at all."""
    atomic_save(path, lambda temporary: _fill(temporary, text))


def _fill(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def read_run(path: Path) -> dict[str, Any]:
    """One run.

    Raises:
        DataError: the file was cut short, or is none of a comparison.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "drtp-seed0.json"
    >>> write_run(path, {"settings": {"rule": "drtp"}, "refused": {"message": "no"}})
    >>> read_run(path)["settings"]
    {'rule': 'drtp'}
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            str(path),
            "the file of a run is damaged",
            expected="JSON",
            got=error,
            fix="delete it: the run is done again",
        ) from error
    whole = isinstance(found, dict) and found.get("format") == FORMAT and isinstance(found.get("settings"), dict)
    figures = {"curve", "peak bytes", "seconds", "processor seconds", "cosine", "layers", "optimizers", "parameters"}
    ended = {"refused", "stopped", "failed"} & found.keys() if isinstance(found, dict) else set()
    if not whole or not (ended or {"accuracy", *figures} <= found.keys()):
        raise DataError(
            str(path), "this is no run of a comparison", expected=f"format {FORMAT} with settings and figures",
            got=sorted(found)[:8] if isinstance(found, dict) else type(found).__name__,
            fix="move it elsewhere, or give another folder",
        )  # fmt: skip
    return found


def is_done(path: Path, settings: dict[str, Any]) -> bool:
    """Is this run there already? One that was refused or failed is tried again, and one that stopped by other code.

    Raises:
        DataError: there is one with other settings, which stays; or the file is damaged.
    """
    if not path.exists():
        return False
    found = read_run(path)
    there = found["settings"]
    if there != settings:
        keys = sorted(k for k in {*settings, *there} if settings.get(k) != there.get(k))
        if "accuracy" not in found and keys == ["code"]:
            return False
        raise DataError(
            str(path), "the folder holds a run with other settings",
            expected={k: settings.get(k) for k in keys}, got={k: there.get(k) for k in keys},
            fix="give another folder, or delete the file",
        )  # fmt: skip
    return "accuracy" in found or "stopped" in found
