"""A plain installation: the wheel, in an environment of its own, imported from elsewhere."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

SHIPPED = ["imprint", "setup.py", "pyproject.toml", "LICENSE", "README.md"]


def call(*command, cwd):
    outside = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, env=outside)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout.strip()


def rooms(root):
    """Every folder of imprint with Python files in it, as a module."""
    folders = {file.parent for file in (root / "imprint").rglob("*.py")}
    return sorted(".".join(folder.relative_to(root).parts) for folder in folders)


@pytest.fixture(scope="module")
def wheel(root, tmp_path_factory):
    pytest.importorskip("setuptools", minversion="77", reason="needs setuptools")
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in SHIPPED:
        if (root / name).is_dir():
            shutil.copytree(root / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (root / name).exists():
            shutil.copy(root / name, tree / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    call(*pip, "wheel", "--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", out, tree, cwd=out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """The interpreter of a fresh environment that holds the wheel and sees torch where these tests see it."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, system_site_packages=True, with_pip=False, symlinks=sys.platform != "win32")
    scripts = "Scripts" if sys.platform == "win32" else "bin"
    own = folder / scripts / "python"
    call(sys.executable, "-m", "pip", "--python", own, "--disable-pip-version-check",
         "install", "--no-deps", "--no-index", "--ignore-installed", wheel, cwd=folder)  # fmt: skip
    site = Path(call(own, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder))
    (site / "outside.pth").write_text(sysconfig.get_path("purelib") + "\n" + sysconfig.get_path("platlib") + "\n")
    return own


def test_what_the_wheel_holds(wheel, root):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = next(name for name in archive.namelist() if name.endswith("/METADATA"))
        text = archive.read(metadata).decode()
        licence = [name for name in archive.namelist() if name.endswith("/LICENSE")]
    ours = {str(f.relative_to(root).as_posix()) for f in (root / "imprint").rglob("*.py")} | {"imprint/py.typed"}
    assert held == ours
    assert len(licence) == 1
    assert re.search(r"^Name: imprint$", text, re.M) and re.search(r"^Requires-Python: >=3\.10$", text, re.M)
    extras = set(re.findall(r"^Provides-Extra: (\S+)$", text, re.M))
    assert extras == {"test", "plots", "tensorboard", "docs", "bench"}
    required = set(re.findall(r"^Requires-Dist: ([a-z0-9]+)[^;\n]*$", text, re.M))
    assert required == {"torch", "numpy", "h5py", "tqdm"}


def test_the_constraints_cover_what_is_required(wheel, root):
    lines = (root / "constraints.txt").read_text().splitlines()
    assert lines[0] == "torch==2.13.0"
    pinned = {re.split(r"==", line)[0].lower().replace("_", "-") for line in lines if "==" in line}
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(next(name for name in archive.namelist() if name.endswith("/METADATA"))).decode()
    required = {name.lower() for name in re.findall(r"^Requires-Dist: ([A-Za-z0-9_.-]+)", text, re.M)}
    assert required <= pinned


def test_it_imports_from_elsewhere(python, root, tmp_path):
    program = (
        "import importlib, sys, imprint, pathlib\n"
        "for room in sys.argv[1:]: importlib.import_module(room)\n"
        "home = pathlib.Path(imprint.__file__).parent\n"
        "print(home, imprint.__version__, (home / 'py.typed').exists(), sep='\\n')"
    )
    home, version, typed = call(python, "-c", program, *rooms(root), cwd=tmp_path).splitlines()
    assert Path(home).is_relative_to(python.parents[1]), "the wheel's package, not the working tree's"
    expected = re.search(r'__version__ = "(.+)"', (root / "imprint" / "_version.py").read_text())
    assert expected is not None and version == expected[1] == call(
        python, "-c", "import importlib.metadata as m; print(m.version('imprint'))", cwd=tmp_path
    )
    assert typed == "True"


def test_optional_packages_are_not_imported(python, root, tmp_path):
    program = (
        "import importlib, sys\n"
        "for name in ('matplotlib', 'tensorboard', 'sklearn'): sys.modules[name] = None  # importing it fails\n"
        "for room in sys.argv[1:]: importlib.import_module(room)\n"
        "print('fine')"
    )
    assert call(python, "-c", program, *rooms(root), cwd=tmp_path) == "fine"
