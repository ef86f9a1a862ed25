"""The command of the comparison on small nets, and what it leaves in its folder."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imprint.compare.__main__ import main

Toy = Callable[..., Path]


def command(data: Path, out: Path, *more: str, epochs: int = 1, seeds: int = 2, rules: tuple[str, ...] = ()) -> int:
    names = rules or ("local_ce", "drtp")
    sizes = ["--width", "8", "--depth", "2", "--batch", "8", "--epochs", str(epochs), "--seeds", str(seeds)]
    return main(["--data", str(data), "--out", str(out), "--quiet", *sizes, *more, "--rules", *names])


def runs(out: Path) -> dict[str, dict[str, Any]]:
    return {file.stem: json.loads(file.read_text()) for file in sorted(out.glob("*.json"))}


def cells(text: str) -> dict[str, list[str]]:
    """Rows of the first table by their first cell."""
    block = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert block is not None
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in block[0].splitlines()]
    return {row[0]: row[1:] for row in rows[2:]}
