"""What docstrings refer to exists under the name they give."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path
from typing import Any

import pytest

REFERENCE = re.compile(r":(?:func|class|meth|mod|attr|data):`~?([\w.]+)`")


def resolve(name: str, module: str) -> Any:
    """An object by its dotted name: a full one, or one of the module or room it is named in."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found
    found = importlib.import_module(module)
    for part in parts:
        found = getattr(found, part)
    return found


def references(path: Path, module: str) -> list[tuple[str, str]]:
    """Pairs of what is referred to and the class it stands in."""
    found = []

    def look(node: ast.AST, owner: str) -> None:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            inside = owner if isinstance(node, ast.FunctionDef | ast.Module) else node.name
            found.extend((name, inside) for name in REFERENCE.findall(ast.get_docstring(node) or ""))
            for child in node.body:
                look(child, inside)

    look(ast.parse(path.read_text(encoding="utf-8")), "")
    return found


def found(name: str, module: str) -> bool:
    """Does it exist?"""
    try:
        resolve(name, module)
    except (AttributeError, ImportError):
        return False
    return True


def unresolved(path: Path, root: Path) -> list[str]:
    parts = path.relative_to(root).with_suffix("").parts
    module, wrong = ".".join(parts).removesuffix(".__init__"), []
    for name, owner in references(path, module):
        tries = [name, f"{owner}.{name}"] if owner else [name]
        if not any(found(each, place) for each in tries for place in (module, ".".join(parts[:2]))):
            wrong.append(f"{path.relative_to(root)}: {name}")
    return wrong


def test_docstrings_refer_to_what_exists(root: Path) -> None:
    wrong = [each for path in sorted((root / "imprint").rglob("*.py")) for each in unresolved(path, root)]
    assert not wrong, "\n".join(wrong)


def test_a_reference_to_nothing_is_found(root: Path) -> None:
    with pytest.raises(AttributeError):
        resolve("imprint.functional.uncentered_cosine", "imprint.managers")
    assert resolve("imprint.functional.centered_cosine", "imprint") is resolve("centered_cosine", "imprint.functional")
