"""The documentation is true: the README runs, links lead somewhere, public names say what they are."""

import dataclasses
import importlib
import inspect
import pkgutil
import re
import shlex
import textwrap

import pytest
import torch

import imprint

BLOCK = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.M | re.S)
EXTRAS = {"test", "plots", "tensorboard", "docs", "bench"}


def blocks(text, language):
    """(line, code) of every fenced block in that language."""
    for match in BLOCK.finditer(text):
        if match[2] == language:
            yield text[: match.start(3)].count("\n") + 1, textwrap.dedent(match[3])


def readme(root):
    return (root / "README.md").read_text(encoding="utf-8")


def pages(root):
    return [*sorted(root.glob("*.md")), *sorted(root.glob("docs/**/*.md"))]


def test_the_pages_run(root, tmp_path, monkeypatch, capsys, subtests):
    """The Python blocks of every page, in order, in one namespace a page, in a folder that has only the examples."""
    assert list(blocks(readme(root), "python")), "README.md has no Python block"
    for page in pages(root):
        with subtests.test(page=str(page.relative_to(root))):
            folder = tmp_path / page.relative_to(root).with_suffix("")
            folder.mkdir(parents=True)
            (folder / "examples").symlink_to(root / "examples")
            monkeypatch.chdir(folder)
            torch.manual_seed(0)
            namespace = {"__name__": "__main__"}
            for line, code in blocks(page.read_text(encoding="utf-8"), "python"):
                exec(compile("\n" * (line - 1) + code, str(page), "exec"), namespace)


def known(words, root):
    """Is this command of the README one that works?"""
    head, *rest = words
    if head in ("./tests.sh", "./examples.sh"):
        flags = [word for word in rest if word.startswith("-")]
        return (root / head).stat().st_mode & 0o111 and all(
            f in ("--quick", "--data", "--epochs", "--seed") for f in flags
        )
    if head == "pip" and rest[:1] == ["install"]:
        wanted = re.fullmatch(r"(?:\.|imprint)(?:\[([\w,]+)\])?", rest[-1])
        options = rest[1:-1] in ([], ["-e"], ["-c", "constraints.txt"], ["-c", "constraints.txt", "-e"])
        return wanted and options and set((wanted[1] or "test").split(",")) <= EXTRAS
    if head == "python" and rest[:1] == ["-m"]:
        path = root.joinpath(*rest[1].split("."))
        return path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()
    if head == "python":
        return rest and (root / rest[0]).is_file()
    return head in ("git", "cd")


def test_the_commands_of_the_readme_exist(root):
    lines = [
        (at + number, line)
        for language in ("bash", "sh", "console")
        for at, code in blocks(readme(root), language)
        for number, line in enumerate(code.splitlines())
        if shlex.split(line, comments=True)
    ]
    assert lines, "README.md has no bash block"
    wrong = [f"README.md:{n}: {line}" for n, line in lines if not known(shlex.split(line, comments=True), root)]
    assert not wrong, "\n".join(wrong)
    commands = {shlex.split(line, comments=True)[0] for _, line in lines}
    assert {"./tests.sh", "./examples.sh"} <= commands


def test_known_refuses(root):
    assert not known(["./nothing.sh"], root) and not known(["./examples.sh", "--fast"], root)
    assert known(["python", "-m", "imprint.compare"], root) and not known(["python", "-m", "imprint.rules"], root)
    assert not known(["pip", "install", ".[gpu]"], root) and not known(["python", "examples/nowhere.py"], root)


def test_links_lead_somewhere(root):
    broken = []
    for page in pages(root):
        text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.S)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            path = target.split("#")[0]
            if path and "://" not in target and not target.startswith("mailto:") and not (page.parent / path).exists():
                broken.append(f"{page.relative_to(root)}: {target}")
    assert not broken, "\n".join(broken)


def test_every_finding_names_a_test_that_exists(root):
    text = (root / "docs" / "findings.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| finding |")]
    assert rows
    for row in rows:
        pinned = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", row)
        assert pinned, f"no test pins this finding: {row}"
        for file, test in pinned:
            assert (root / file).is_file(), f"{file} does not exist: {row}"
            there = f"def {test}(" in (root / file).read_text(encoding="utf-8")
            assert there, f"{file} has no {test}: {row}"


def public(module):
    """Name and object of the classes and functions a module makes public and imprint defines."""
    for name, thing in vars(module).items():
        ours = getattr(thing, "__module__", "") or ""
        if (
            not name.startswith("_")
            and ours.split(".")[0] == "imprint"
            and (inspect.isclass(thing) or inspect.isfunction(thing))
        ):
            yield name, thing


def documented(thing):
    """Has it a docstring that somebody wrote? (A dataclass writes one of its own.)"""
    if not inspect.getdoc(thing):
        return False
    return not (dataclasses.is_dataclass(thing) and inspect.getdoc(thing).startswith(f"{thing.__name__}("))


def undocumented(cls):
    """The public methods and properties of a class that neither it nor its bases describe."""
    for name, member in vars(cls).items():
        if name.startswith("_") or not (
            inspect.isroutine(member) or isinstance(member, (property, classmethod, staticmethod))
        ):
            continue
        if not inspect.getdoc(getattr(cls, name)):
            yield name


def modules():
    found = [info.name for info in pkgutil.walk_packages(imprint.__path__, "imprint.")]
    return ["imprint", *(name for name in found if not name.rsplit(".", 1)[1].startswith("_"))]


@pytest.mark.parametrize("name", modules())
def test_public_names_have_docstrings(name):
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} does not say what it is"
    missing = [f"{name}.{key}" for key, thing in public(module) if not documented(thing)]
    missing += [
        f"{name}.{key}.{method}"
        for key, thing in public(module)
        if inspect.isclass(thing) and thing.__module__ == name
        for method in undocumented(thing)
    ]
    assert not missing, "\n".join(missing)


def test_the_search_for_docstrings_finds_a_missing_one():
    @dataclasses.dataclass
    class Bare:
        x: int

        def method(self):
            return self.x

    assert not documented(Bare) and list(undocumented(Bare)) == ["method"]
    assert documented(imprint.errors.ShapeError)
