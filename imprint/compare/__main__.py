"""The command: ``python -m imprint.compare --data FILE.h5 --net mlp --rules all --epochs 9 --seeds 3 --out FOLDER``."""

from __future__ import annotations

import argparse
import runpy
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch

from ..errors import DataError, ImprintError
from .comparison import compare_rules
from .contestants import BASELINES
from .nets import NETS
from .report import main_table


def parser() -> argparse.ArgumentParser:
    """All options."""
    made = argparse.ArgumentParser(
        prog="python -m imprint.compare",
        description="Train every rule on the same net, data and budget, and write a table with plots. "
        f"{', '.join(BASELINES)} always take part. Called again, it goes on where it was stopped.",
    )
    made.add_argument("--data", type=Path, required=True, metavar="FILE.h5", help="train/x, train/y, test/x, test/y")
    made.add_argument("--net", default="mlp", help=", ".join(NETS))
    made.add_argument(
        "--rules",
        nargs="+",
        default=["all"],
        metavar="RULE",
        help="names with spaces or commas between, or all (default)",
    )
    made.add_argument("--epochs", type=int, default=10, help="rounds through the training data, the same for all")
    made.add_argument("--seeds", type=int, default=3, help="how many")
    made.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="one JSON a run, and comparison.md")
    made.add_argument("--page", type=Path, metavar="FILE.md", help="where to write the page instead; plots beside it")
    made.add_argument("--batch", type=int, default=128, help="samples of a batch")
    made.add_argument("--limit", type=int, metavar="ROWS", help="training samples; all by default")
    made.add_argument("--width", type=int, help="of the net: neurons, channels of the first block, size of a token")
    made.add_argument("--depth", type=int, help="of the net: blocks; of resnet blocks a stage")
    made.add_argument("--device", default="cpu", help="cpu or cuda")
    made.add_argument("--threads", type=int, help="of torch; one measures steadiest")
    made.add_argument(
        "--use", type=Path, metavar="FILE.py", help="run this first: rules and nets it registers take part"
    )
    made.add_argument("--quiet", action="store_true", help="no bars")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, 1 if a rule failed, 2 for what is refused, 130 when it was interrupted."""
    args = parser().parse_args(argv)
    before = torch.get_num_threads()
    if args.threads is not None and args.threads < 1:
        parser().error("--threads counts from 1")
    try:
        torch.set_num_threads(args.threads or before)
        if args.use is not None:
            if not args.use.is_file():
                raise DataError(str(args.use), "there is no such file", expected="a file of Python", fix="check --use")
            _use(args.use)
        rows = compare_rules(
            args.data, args.net, args.rules, epochs=args.epochs, seeds=args.seeds, out=args.out, batch=args.batch,
            limit=args.limit, width=args.width, depth=args.depth, device=args.device, page=args.page,
            progress=not args.quiet,
        )  # fmt: skip
    except ImprintError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    finally:
        torch.set_num_threads(before)
    print(main_table(rows))
    print(f"\nwritten: {args.page or args.out / 'comparison.md'}")
    failed = [run for row in rows for run in row.failed if "failed" in run]
    for run in failed:
        print(
            f"\n{run['settings']['rule']}, seed {run['settings']['seed']}:\n{run['failed']['trace']}", file=sys.stderr
        )
    return 1 if failed or not any(row.runs for row in rows) else 0


def _use(file: Path) -> None:
    """Run a file of one's own.

    Raises:
        DataError: it has an error; says where.
    """
    try:
        runpy.run_path(str(file))
    except (Exception, SystemExit) as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
        line = frames[-1].lineno if frames else getattr(error, "lineno", None)
        raise DataError(
            f"{file}, line {line}", "the file that --use names has an error", expected="rules and nets it registers",
            got=f"{type(error).__name__}: {error}", fix="mend it",
        ) from error  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
