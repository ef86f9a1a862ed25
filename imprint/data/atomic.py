"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path

from ..errors import StateError


def atomic_save(path: str | os.PathLike[str], write: Callable[[Path], None]) -> Path:
    """Let `write` fill a new file beside `path`, then put it in `path`'s place in one step.

    Whoever opens `path`, at any moment and after a crash at any moment, finds the old file or the new one. What was
    written is on the disk before the exchange. A process that is killed in between leaves ``.<name>.<pid>.<hex>.tmp``
    behind, which may be deleted. A symbolic link stays one: the file it points to is exchanged.

    Args:
        path: the file to make or replace; folders that are missing are made.
        write: gets the path of the temporary file, in the same folder, and must create it.

    Returns:
        The file's path, links resolved.

    Raises:
        StateError: `write` created no file. Whatever `write` raises comes through; `path` is then as it was.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> saved = atomic_save(folder / "run.txt", lambda temporary: temporary.write_text("epoch 3") and None)
    >>> saved.read_text(), [file.name for file in folder.iterdir()]
    ('epoch 3', ['run.txt'])
    """
    target = Path(path).resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        write(temporary)
        if not temporary.is_file():
            raise StateError(
                f"atomic_save({str(path)!r})", "nothing was written",
                expected="write(temporary) creates the file it is given", fix="write to the path in write's argument",
            )  # fmt: skip
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(target.parent)
    return target


def _sync_folder(folder: Path) -> None:
    """Bring the exchange of names itself to the disk; only POSIX can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
