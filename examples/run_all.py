"""Run every example, each in a process of its own, and print one table.

python examples/run_all.py [NAME ...] [--quick] [--data FILE.h5] [--epochs N] [--seed N]
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

from imprint.data import load_h5
from imprint.errors import DataError

from common import Result, describe, parser, row

HERE, SHARED = Path(__file__).resolve().parent, ("common", "run_all", "settling")
# what a process runs: the example's main(), whose result goes into a file, apart from all it prints
CHILD = """
import dataclasses, importlib, json, pathlib, sys
folder, name, answer, *argv = sys.argv[1:]
sys.path.insert(0, folder)
result = importlib.import_module(name).main(argv)
pathlib.Path(answer).write_text(json.dumps(dataclasses.asdict(result)))
"""


def examples(folder: Path = HERE) -> list[str]:
    """The names of all examples."""
    return sorted(file.stem for file in folder.glob("*.py") if file.stem not in SHARED)


def run(name: str, argv: list[str], folder: Path = HERE) -> tuple[Result | None, str]:
    """Run one example: its result, or None if it failed, and all it printed."""
    with tempfile.TemporaryDirectory() as temporary:
        answer = Path(temporary) / "result.json"
        command = [sys.executable, "-c", CHILD, str(folder), name, str(answer), *argv]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        if done.returncode == 0 and answer.is_file():
            return Result(**json.loads(answer.read_text())), done.stdout
        return None, f"{done.stdout}(exit code {done.returncode})"


def main(argv: list[str] | None = None, folder: Path = HERE) -> int:
    """Print the table as it grows, then what the examples that failed have printed; return their number."""
    options = parser()
    options.add_argument("names", nargs="*", metavar="NAME", help="only these examples")
    args = options.parse_args(argv)
    known = examples(folder)
    unknown = [name for name in args.names if name not in known]
    if unknown or not known:
        options.error(f"no example is called {', '.join(unknown)}; there are: {', '.join(known) or 'none'}")
    try:
        load_h5(args.data)
    except DataError as error:
        options.error(str(error))
    passed = ["--data", str(args.data.resolve()), "--seed", str(args.seed)]
    passed += ["--epochs", str(args.epochs)] if args.epochs is not None else []
    passed += ["--quick"] if args.quick else []

    failed: dict[str, str] = {}
    print(row("example", "data", "accuracy", "backprop", "seconds"), flush=True)
    with tqdm(args.names or known, unit="example", disable=None, leave=False) as bar:
        for name in bar:
            bar.set_postfix_str(name)
            result, printed = run(name, passed, folder)
            if result is None:
                failed[name] = printed
            text = describe(result) if result else row(name, args.data.stem, "failed", "", "")
            bar.write(text, file=sys.stdout)
            sys.stdout.flush()
    for name, printed in failed.items():
        print(f"\n{name} failed:\n{printed}", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.exit(min(main(), 1))
