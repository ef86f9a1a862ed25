"""The two commands: what they say when something is missing, when they install, and the table of the examples."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import run_all

from common import Result, describe, load, parse, report

BASH = shutil.which("bash")
needs_bash = pytest.mark.skipif(BASH is None or os.name != "posix", reason="needs bash")
TOOLS = ("cat", "cksum", "dirname", "env", "bash")


@pytest.fixture
def tree(root, tmp_path):
    """A copy of what the set-up reads, and a PATH with nothing on it but what POSIX has."""
    for name in ("scripts", "imprint/_version.py", "setup.py", "constraints.txt", "tests.sh", "examples.sh"):
        target = tmp_path / "tree" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (root / name).is_dir() else shutil.copy)(root / name, target)
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    return tmp_path


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/usr/bin/env bash\n" + text)
    path.chmod(0o755)


def call(tree, command, **environment):
    environment = {"PATH": str(tree / "bin"), "HOME": str(tree), **environment}
    done = subprocess.run([BASH, *command], env=environment, cwd=tree, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


@needs_bash
@pytest.mark.parametrize("name", ["tests.sh", "examples.sh"])
def test_without_python(tree, name):
    code, said = call(tree, [str(tree / "tree" / name)])
    assert code == 1 and "needs Python 3.10 or newer" in said and "PYTHON=" in said


@needs_bash
def test_with_an_old_python(tree):
    script(tree / "bin" / "python3", "exit 1")  # sys.version_info < (3, 10)
    code, said = call(tree, [str(tree / "tree" / "tests.sh")])
    assert code == 1 and "needs Python 3.10 or newer" in said


@needs_bash
def test_a_python_without_venv_and_without_pip(tree):
    script(tree / "bin" / "python3", 'case "$*" in *version_info*) exit 0 ;; *) exit 1 ;; esac')
    code, said = call(tree, [str(tree / "tree" / "tests.sh")])
    assert code == 1 and "could not make a virtual environment" in said and "python3-venv" in said


@needs_bash
def test_a_python_without_ensurepip_takes_the_pip_outside(tree):
    """Debian's python3: `-m venv` fails unless it is told --without-pip."""
    log, made = tree / "log", tree / "tree" / ".venv" / "bin" / "python"
    script(tree / "stub", f'echo "venv $*" >> {log}\nexit 0')
    script(
        tree / "bin" / "python3",
        f'echo "outer $*" >> {log}\n'
        'case "$*" in\n'
        '*version_info*) exit 0 ;;\n'
        f'*--without-pip*) {shutil.which("mkdir")} -p {made.parent} && {shutil.which("cp")} {tree}/stub {made} ;;\n'
        '*"-m venv"*) exit 1 ;;\n'
        "esac",
    )  # fmt: skip
    code, said = call(tree, [str(tree / "tree" / "examples.sh")])
    assert code == 0, said
    lines = log.read_text().splitlines()
    assert any(f"-m pip --python {made} install --quiet pip" in line for line in lines)
    assert lines[-1].startswith("venv ") and lines[-1].endswith("run_all.py")


@needs_bash
def test_an_active_environment_without_pip(tree):
    script(tree / "venv" / "bin" / "python", "exit 1")
    path = f"{tree}/venv/bin:{tree}/bin"
    code, said = call(tree, [str(tree / "tree" / "tests.sh")], VIRTUAL_ENV=str(tree / "venv"), PATH=path)
    assert code == 1 and "has no pip" in said and str(tree / "venv") in said


@needs_bash
def test_it_installs_once_and_again_when_the_requirements_change(tree):
    log = tree / "log"
    script(tree / "venv" / "bin" / "python", f'echo "$*" >> {log}')
    environment = {"VIRTUAL_ENV": str(tree / "venv"), "PATH": f"{tree}/venv/bin:{tree}/bin"}

    def installs():
        log.write_text("")
        code, said = call(tree, [str(tree / "tree" / "examples.sh"), "--quick"], **environment)
        assert code == 0, said
        assert log.read_text().splitlines()[-1].endswith("examples/run_all.py --quick")
        return [line for line in log.read_text().splitlines() if "pip install" in line]

    first = installs()
    assert len(first) == 2 and first[0].endswith("constraints.txt torch")
    assert "--editable" in first[1] and first[1].endswith("tree[test,plots,tensorboard]")
    assert not (tree / "tree" / ".venv").exists()
    assert installs() == []
    with open(tree / "tree" / "constraints.txt", "a") as file:
        file.write("# changed\n")
    assert installs() == first


@needs_bash
def test_a_failed_installation_is_tried_again(tree):
    script(tree / "venv" / "bin" / "python", 'case "$*" in *install*) exit 1 ;; esac')
    environment = {"VIRTUAL_ENV": str(tree / "venv"), "PATH": f"{tree}/venv/bin:{tree}/bin"}
    for _ in range(2):
        code, said = call(tree, [str(tree / "tree" / "examples.sh")], **environment)
        assert code != 0 and "installing" in said


@needs_bash
def test_arguments_of_tests_go_to_pytest_and_a_failing_check_stops(tree):
    log = tree / "log"
    script(tree / "venv" / "bin" / "python", f'echo "$*" >> {log}\ncase "$*" in *"ruff check"*) exit 1 ;; esac')
    environment = {"VIRTUAL_ENV": str(tree / "venv"), "PATH": f"{tree}/venv/bin:{tree}/bin"}
    code, said = call(tree, [str(tree / "tree" / "tests.sh"), "tests/data", "-k", "atomic"], **environment)
    assert code == 0 and log.read_text().splitlines()[-1] == "-m pytest tests/data -k atomic"
    assert "ruff" not in log.read_text()
    code, said = call(tree, [str(tree / "tree" / "tests.sh")], **environment)
    assert code == 1 and "lint failed" in said and "to mend: python -m ruff check --fix ." in said
    assert "pytest" not in log.read_text().splitlines()[-1]


GOOD = """
import dataclasses

@dataclasses.dataclass
class Result:
    example: str
    data: str
    accuracy: float
    backprop: float
    seconds: float

def main(argv):
    print("much that nobody wants to see")
    return Result("good", " ".join(argv[2:]), 0.9876, None, 1.25)
"""
BAD = "def main(argv):\n    raise RuntimeError('on purpose')\n"
GONE = "import os, signal\ndef main(argv):\n    os._exit(7)\n"
EMPTY = "def main(argv):\n    pass\n"


def test_the_table_with_examples_that_fail(tmp_path, capfd):
    for name, text in {"good": GOOD, "bad": BAD, "gone": GONE, "empty": EMPTY, "common": "", "run_all": ""}.items():
        (tmp_path / f"{name}.py").write_text(text)
    assert run_all.main(["--quick"], tmp_path) == 3
    out, err = capfd.readouterr()
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["example", "data", "accuracy", "backprop", "seconds"]
    assert rows[1:4] == [["bad", "digits", "failed"], ["empty", "digits", "failed"], ["gone", "digits", "failed"]]
    assert rows[4] == ["good", "--seed", "0", "--quick", "98.76%", "-", "1.2"] and len(rows) == 5
    assert "RuntimeError: on purpose" in err and "(exit code 7)" in err and "nobody wants" not in out + err


def test_the_options_of_the_table(tmp_path, capfd):
    (tmp_path / "good.py").write_text(GOOD)
    (tmp_path / "bad.py").write_text(BAD)
    assert run_all.main(["good", "--epochs", "3", "--seed", "5"], tmp_path) == 0
    assert "--seed 5 --epochs 3" in capfd.readouterr().out
    wrong = {"nope": "no example is called nope; there are: bad, good", "--data=x.h5": "there is no such file"}
    for word, said in wrong.items():
        with pytest.raises(SystemExit) as caught:
            run_all.main([word], tmp_path)
        assert caught.value.code == 2 and said in capfd.readouterr().err


def test_what_examples_share(capsys, digits):
    args = parse(["--quick"], epochs=10)
    assert (args.epochs, args.seed, args.data) == (2, 0, digits)
    assert parse([], epochs=10).epochs == 10 and parse(["--quick", "--epochs", "7"], epochs=10).epochs == 7
    assert parse(["--quick"], epochs=2).epochs == 1
    data = load(args)
    assert data.name == "digits" and data.moments() == pytest.approx((0.0, 1.0), abs=1e-6)
    result = Result("name", data.name, 0.95, 0.9666, 2.04)
    assert report(result) is result
    assert capsys.readouterr().out == describe(result) + "\n"
    assert describe(result).split() == ["name", "digits", "95.00%", "96.66%", "2.0"]


def test_the_same_seed_gives_the_same_weights():
    import torch

    one, two, other = (parse(["--seed", s]) and torch.randn(3) for s in ("1", "1", "2"))
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_examples_are_found_and_each_has_a_main(root):
    for name in run_all.examples():
        text = (root / "examples" / f"{name}.py").read_text(encoding="utf-8")
        assert "def main(argv" in text and "-> Result" in text, name
        assert len(text.splitlines()) <= 80, f"{name} is longer than 80 lines"
