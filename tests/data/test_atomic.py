"""Files are there whole or not at all."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from imprint.data import atomic_save
from imprint.errors import StateError


def test_creates_replaces_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "a" / "b" / "file.bin"
    for content in (b"first", b"second and longer", b"3"):
        assert atomic_save(path, lambda temporary, content=content: temporary.write_bytes(content) and None) == path
        assert path.read_bytes() == content
        assert os.listdir(path.parent) == ["file.bin"]


def test_the_temporary_file_lies_in_the_same_folder(tmp_path):
    seen = []

    def write(temporary):
        seen.append(temporary)
        temporary.write_text("x")

    atomic_save(tmp_path / "file.txt", write)
    assert seen[0].parent == tmp_path and seen[0].name != "file.txt"


def test_an_error_while_writing_keeps_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write(temporary):
        temporary.write_text("half of the n")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        atomic_save(path, write)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_writing_nothing_is_an_error(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(StateError, match="nothing was written"):
        atomic_save(path, lambda temporary: None)
    assert path.read_text() == "old"


@pytest.mark.skipif(os.name != "posix", reason="needs symbolic links")
def test_a_symbolic_link_stays_one(tmp_path):
    real, link = tmp_path / "real.txt", tmp_path / "link.txt"
    real.write_text("old")
    link.symlink_to(real)
    assert atomic_save(link, lambda temporary: temporary.write_text("new") and None) == real
    assert link.is_symlink() and real.read_text() == "new"


@pytest.mark.skipif(os.name != "posix", reason="needs permissions")
def test_permissions_follow_the_umask(tmp_path):
    plain, ours = tmp_path / "plain", tmp_path / "ours"
    plain.write_text("x")
    atomic_save(ours, lambda temporary: temporary.write_text("x") and None)
    assert ours.stat().st_mode == plain.stat().st_mode


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
@pytest.mark.parametrize("atomic", [True, False])
def test_killed_in_the_middle(tmp_path, atomic):
    """The old file survives a SIGKILL during the write; written directly it does not (the control)."""
    path = tmp_path / "file.txt"
    path.write_text("old")
    program = f"""
        import os, pathlib, signal, sys
        from imprint.data import atomic_save

        def write(path):
            with open(path, "w") as file:
                file.write("half of the n")
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)

        path = pathlib.Path({str(path)!r})
        atomic_save(path, write) if {atomic} else write(path)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], cwd=os.getcwd())
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == ("old" if atomic else "half of the n")
    left = [file for file in os.listdir(tmp_path) if file != "file.txt"]
    assert len(left) == (1 if atomic else 0) and all(file.startswith(".file.txt.") for file in left)
