"""Every rule on the same net, data and budget."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from torch.nn.modules.batchnorm import _NormBase
from tqdm.auto import tqdm

from ..data import Data, load_h5
from ..errors import ArgumentError
from ..rules import Rule
from .contestants import contestants
from .files import check_folder, is_done, read_run, write_run, write_text
from .nets import Net, check_net, find_net
from .plots import draw
from .report import report
from .rows import Row, rows_of
from .runs import Run
from .settings import Budget, Task, file_name, prepare

PAGE = "comparison.md"


def compare_rules(
    data: Data | str | os.PathLike[str],
    net: str | Net = "mlp",
    rules: str | Rule | Iterable[str | Rule] = "all",
    *,
    epochs: int,
    seeds: int | Iterable[int] = 3,
    out: str | os.PathLike[str],
    batch: int = 128,
    limit: int | None = None,
    width: int | None = None,
    depth: int | None = None,
    device: str = "cpu",
    page: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> list[Row]:
    """Train every rule with every seed on the same net, data and budget, and write down what came of it.

    ``backprop``, ``deep_supervision`` and ``frozen`` always take part. The folder gets one JSON a run, written when it
    is done; runs that are there are not done again, and one that was killed goes on from its last epoch. Runs of other
    data, sizes, options, imprint's version, net, or code of the rule and its objective are never mixed: the folder is
    refused. Then it gets ``comparison.md``, a table with plots. A rule that refuses the net, or fails, is a row with
    the reason, and is tried again the next time.

    Figures are those after the last epoch. Nothing is tuned: options and optimizers are the rules' own.

    Args:
        data: a file of the layout (see DATASETS.md), or what ``load_h5`` made of one; it is standardised here.
        net: ``"mlp"``, ``"cnn"``, ``"vgg8b"``, ``"resnet"``, ``"vit"``, or one of your own.
        rules: ``"all"`` that are registered for layers, names, or rules with options.
        epochs: rounds through the training data, the same for all.
        seeds: how many (0, 1, …), or which.
        out: the folder.
        batch: samples of a batch.
        limit: training samples; None is all there are.
        width: of the net; None is the net's own.
        depth: of the net; None is the net's own.
        device: what it runs on.
        page: where to write the page, plots beside it; by default in the folder.
        progress: show bars.

    Returns:
        A row for each rule, with all its runs.

    Raises:
        UnknownNameError: no such net or rule; with near misses.
        ShapeError: the net does not take such samples.
        DataError: the file is unfit, or the folder holds other runs or a damaged one.
        ArgumentError: a number is none, or the folder cannot be written to.

    >>> import tempfile, torch
    >>> x, y = torch.rand(40, 6), torch.arange(40) % 2
    >>> toy = Data(x, y, x, y, num_classes=2, name="toy")
    >>> folder = tempfile.mkdtemp()
    >>> rows = compare_rules(toy, "mlp", "local_ce", epochs=1, seeds=1, width=8, depth=2, out=folder, progress=False)
    >>> [row.label for row in rows], (Path(folder) / "comparison.md").is_file()
    (['backprop', 'deep_supervision', 'frozen', 'local_ce'], True)
    """
    chosen, budget = contestants(rules), Budget(epochs, batch, limit, width, depth, device)
    numbers = list(range(seeds)) if isinstance(seeds, int) and not isinstance(seeds, bool) else seeds
    if not isinstance(numbers, Iterable) or not (numbers := list(numbers)) or not all(map(_is_seed, numbers)):
        raise ArgumentError("compare", "seeds counts from 1", expected="a count, or seeds", got=seeds, fix="seeds=3")
    made = find_net(net)
    loaded = prepare(data if isinstance(data, Data) else load_h5(data), limit)
    check_net(made, loaded.shape, width, depth)
    task = Task(loaded, made, budget)
    steps = epochs * -(-len(loaded.x_train) // batch)
    model = task.make(0)  # whatever the net itself refuses, it refuses now
    units = made.units(model)
    if len(loaded.x_train) % batch == 1 and any(isinstance(m, _NormBase) for m in model.modules()):
        raise ArgumentError(
            "compare", "the last batch of an epoch would be one sample, which BatchNorm cannot normalise",
            got=f"{len(loaded.x_train)} samples in batches of {batch}", fix=f"batch={batch - 1 or 2}, or limit=",
        )  # fmt: skip
    chosen = [contestant.within(steps, len(units)) for contestant in chosen]
    folder = check_folder(out)
    target = folder / PAGE if page is None else Path(page)
    if target.is_dir():
        raise ArgumentError("compare", "the page is a folder", got=str(target), fix=f"page={str(target / PAGE)!r}")
    check_folder(target.parent)
    runs = [Run(task, contestant, seed) for seed in numbers for contestant in chosen]
    paths = {run: folder / f"{file_name(run.contestant.label, run.seed)}.json" for run in runs}
    left = [run for run in runs if not is_done(paths[run], run.settings)]
    bar = tqdm(total=len(runs), initial=len(runs) - len(left), desc="runs", unit="run", disable=not progress)
    with bar:
        for run in left:
            bar.set_postfix_str(f"{run.contestant.label}, seed {run.seed}")
            write_run(paths[run], run.do(folder / ".running" / run.key, progress))
            bar.update()
    if (folder / ".running").is_dir() and not any((folder / ".running").iterdir()):
        (folder / ".running").rmdir()
    rows = rows_of([c.label for c in chosen], [read_run(path) for path in paths.values()])
    write_text(target, report(rows, draw(rows, target.parent, "" if page is None else f"{target.stem}_")))
    return rows


def _is_seed(seed: object) -> bool:
    return isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**32
