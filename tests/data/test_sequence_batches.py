"""Whatever holds batches becomes one thing: the same dicts, epoch after epoch, and on from the middle of one."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from imprint.data import SequenceDataset, Table, as_batches, collate, pad
from imprint.data.batches import generators, length, parts
from imprint.errors import ArgumentError, DataError
from imprint.training.epochs import Epochs

from references.runs import Drawn


class Ragged(Dataset):
    """Sequences of different length, as dicts."""

    num_classes = 3

    def __init__(self, noise=0.0):
        self.noise = noise

    def __len__(self):
        return 26

    def __getitem__(self, i):
        x = torch.full((i % 4 + 1, 2), float(i)) + self.noise * torch.randn(i % 4 + 1, 2)
        return {"x": x, "y": i % 3, "row": i}


class Stream(IterableDataset):
    def __iter__(self):
        return iter([Ragged()[i] for i in range(10)])


def table(**options):
    x = torch.arange(1.0, 27).view(26, 1, 1).repeat(1, 4, 2)
    rows = torch.arange(26)
    return SequenceDataset(x, rows % 3, lengths=rows % 4 + 1, extra={"row": rows}, batch_size=4, **options)


def columns():
    return {
        "x": torch.ones(26, 4, 2),
        "y": torch.arange(26) % 3,
        "length": torch.arange(26) % 4 + 1,
        "row": torch.arange(26),
    }


def whole():
    return list(table(seed=9).iter_batches(epoch=0))


def loader(dataset=None, **options):
    return DataLoader(dataset or Ragged(), 4, collate_fn=collate, **options)


SOURCES = {  # how it is made, batches of an epoch, classes, and whether it is shuffled by seed and epoch
    "table": (table, 7, 3, True),
    "dict": (columns, 7, 3, True),
    "dataset": (Ragged, 7, 3, True),
    "subset": (lambda: Subset(Ragged(), range(26)), 7, 3, True),
    "loader": (loader, 7, 3, False),
    "list": (whole, 7, None, False),
    "function": (lambda: whole, None, None, False),
    "stream": (Stream, None, None, False),
}


def rows_of(batches):
    return [b["row"].tolist() for b in batches]


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source(kind):
    make, count, classes, shuffled = SOURCES[kind]
    size = {} if kind in ("loader", "list", "function") else {"batch_size": 4}
    found = as_batches(make(), seed=5, **size)
    assert (found.batches_per_epoch, length(found), found.num_classes) == (count, count, classes)
    epochs = [rows_of(found.at(k)) for k in (0, 1, 0)]
    assert epochs[0] == epochs[2] and (epochs[0] != epochs[1]) == shuffled
    expected = 10 if kind == "stream" else 26
    assert sorted(r for b in epochs[1] for r in b) == list(range(expected))
    assert all(len(b) == 4 for b in epochs[0][:-1])
    if shuffled:
        assert rows_of(as_batches(make(), seed=5, **size).at(1)) == epochs[1]
        assert rows_of(as_batches(make(), seed=6, **size).at(1)) != epochs[1]
        plain = rows_of(as_batches(make(), seed=5, shuffle=False, **size))
        assert plain == [list(range(s, min(s + 4, 26))) for s in range(0, 26, 4)]
    for batch in found.at(0):
        assert all(isinstance(v, torch.Tensor) for v in batch.values())
        for at, row in enumerate(batch["row"].tolist()):
            assert batch["y"][at] == row % 3 and batch["length"][at] == row % 4 + 1
            assert not batch["x"][at, row % 4 + 1 :].any()


@pytest.mark.parametrize("kind", [*SOURCES, "own generator", "noise", "sampler", "no seed", "noise, no seed"])
@pytest.mark.parametrize("stop", [(0, 1), (1, 3), (2, 6)])
def test_on_from_the_middle(kind, stop):
    """The trainer's bookkeeping of epochs finds the next batch again, for any source, in new objects."""
    makes = {
        "own generator": lambda: loader(shuffle=True, generator=torch.Generator().manual_seed(2)),
        "noise": lambda: Ragged(noise=1.0),
        "sampler": lambda: loader(sampler=Drawn()),
        "no seed": table,
        "noise, no seed": lambda: Ragged(noise=1.0),
    }
    make = makes.get(kind) or SOURCES[kind][0]
    seed = None if "no seed" in kind else 5
    size = {} if kind in ("loader", "list", "function", "own generator", "sampler") else {"batch_size": 4}
    epoch, after = stop
    if kind == "stream" and after > 2:
        after = 2

    def run(state=None):
        """All batches of three epochs, or those behind a saved state, and what was saved at `stop`."""
        torch.manual_seed(1 if state is None else 77)  # a new process stands elsewhere
        epochs, found, saved = Epochs(as_batches(make(), seed=seed, **size), 4), [], None
        first, batches = 0, None
        if state is not None:
            first, done, held, random = state
            batches = epochs.resume(first, done, held)
            torch.set_rng_state(random)
        for k in range(first, 3):
            for batch in epochs.start(k) if batches is None else batches:
                found.append(batch)
                torch.rand(1)  # a model that draws
                if state is None and (k, len(found) - before(k)) == (epoch, after):
                    saved = (k, after, epochs.state_dict(), torch.get_rng_state()), len(found)
            batches = None
        return found, saved

    def before(k):
        return k * (3 if kind == "stream" else 7)

    everything, (state, seen) = run()
    rest, _ = run(state)
    assert len(rest) == len(everything) - seen == before(3) - seen
    for one, two in zip(everything[seen:], rest, strict=True):
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_the_order_is_the_datasets_own_if_it_has_a_seed():
    assert rows_of(as_batches(table(seed=2), seed=5).at(3)) == rows_of(table(seed=2).iter_batches(epoch=3))
    assert rows_of(as_batches(table(), seed=5).at(3)) == rows_of(table(seed=5).iter_batches(epoch=3))
    data = table(seed=2)
    as_batches(data).at(7)
    assert data.epoch == 0  # the dataset's own count is left alone


def test_a_dict_becomes_what_it_says():
    found = as_batches({**columns(), "length": torch.full((26,), 2)}, batch_size=26, shuffle=False)
    (batch,) = found.at(0)
    assert isinstance(found.dataset, SequenceDataset) and batch["x"].shape == (26, 2, 2)
    two = as_batches({"audio": torch.zeros(5, 4, 2), "video": torch.ones(5, 3, 1)}, batch_size=5)
    assert type(two.dataset) is Table and two.num_classes is None
    assert {k: tuple(v.shape) for k, v in two.peek().items()} == {"audio": (5, 4, 2), "video": (5, 3, 1)}
    pair = as_batches((torch.ones(4, 3, 2), torch.arange(4)))
    assert pair.num_classes == 4 and sorted(pair.peek()) == ["x", "y"]
    arrays = as_batches({"x": np.ones((3, 2, 1), np.float32), "y": np.arange(3)})
    assert arrays.num_classes == 3


def test_batches_of_pairs_and_arrays():
    pairs = DataLoader(TensorDataset(torch.ones(4, 3, 2), torch.arange(4)), 2)
    assert [b["y"].tolist() for b in as_batches(pairs)] == [[0, 1], [2, 3]]
    (batch,) = as_batches([{"x": np.ones((2, 3, 1)), "name": ["a", "b"]}])
    assert batch["x"].dtype == torch.float64 and batch["name"] == ["a", "b"]


def test_functions_get_the_epoch_if_they_take_it():
    asked = []

    def numbered(epoch):
        asked.append(epoch)
        yield {"x": torch.full((1, 1, 1), float(epoch))}

    found = as_batches(numbered)
    assert [b["x"].item() for k in (3, 1) for b in found.at(k)] == [3, 1] and asked == [3, 1]
    assert list(as_batches(lambda: [{"x": torch.ones(1)}]).at(4)) == [{"x": torch.ones(1)}]


def test_looking_at_the_first_batch_changes_nothing():
    for make in (lambda: loader(shuffle=True, generator=torch.Generator().manual_seed(2)), lambda: Ragged(1.0), table):
        found = as_batches(make())
        torch.manual_seed(3)
        before = torch.get_rng_state(), [g.get_state() for g in generators(found)]
        first = found.peek()
        assert torch.equal(before[0], torch.get_rng_state())
        assert all(torch.equal(a, g.get_state()) for a, g in zip(before[1], generators(found), strict=True))
        again = next(iter(found))
        assert all(torch.equal(first[key], again[key]) for key in first)


def test_devices_and_buckets():
    found = as_batches(table(seed=1), device="meta")
    assert all(v.device.type == "meta" for b in found.at(0) for v in b.values())
    like = rows_of(as_batches(table(seed=1), bucket=True).at(2))
    assert like == rows_of(table(seed=1).iter_batches(epoch=2, bucket=True)) != rows_of(as_batches(table(seed=1)).at(2))


def test_where_a_loaders_random_numbers_are_found():
    own = torch.Generator()
    sampler = Drawn()
    assert generators(as_batches(loader(shuffle=True, generator=own))) == [own]
    found = as_batches(loader(sampler=sampler))
    assert sampler in parts(found) and generators(found) == [sampler.generator]
    found.at(6)
    assert sampler.epoch == 6 and generators(as_batches(table())) == []


ONE = {"x": torch.ones(2, 3, 1)}
REFUSED = {
    "nothing": (lambda: None, {}, ArgumentError, "there are no batches in it"),
    "a path": (lambda: "data.h5", {}, ArgumentError, r"no batches in it(.|\n)*from_h5"),
    "a tensor": (lambda: ONE["x"], {}, ArgumentError, r"no batches in it(.|\n)*SequenceDataset"),
    "a model": (lambda: nn.Linear(1, 1), {}, ArgumentError, "no batches in it"),
    "a class": (lambda: Ragged, {}, ArgumentError, "no batches in it"),
    "an iterator": (lambda: iter([ONE]), {}, ArgumentError, "only once"),
    "a size for batches": (loader, {"batch_size": 3}, ArgumentError, "has batches already"),
    "a size for a function": (lambda: whole, {"batch_size": 3}, ArgumentError, "has batches already"),
    "buckets of batches": (loader, {"bucket": True}, ArgumentError, "needs a SequenceDataset"),
    "no size": (table, {"batch_size": 0}, ArgumentError, "batch_size is not a count"),
    "no size of samples": (Ragged, {"batch_size": 0}, ArgumentError, "batch_size is not a count"),
    "datasets": (lambda: {"train": Ragged()}, {}, DataError, r"no dict of tensors(.|\n)*'train': 'Ragged'"),
    "an empty dict": (dict, {}, DataError, "do not hold equally many rows"),
    "columns": (lambda: {**ONE, "y": torch.ones(3)}, {}, DataError, "x and y differ in number"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    make, options, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        list(as_batches(make(), **options))


WRONG = {
    "words": ["a"],
    "numbers": [3],
    "no tensor": [{"x": "a"}],
    "an empty dict": [{}],
    "several inputs": [(torch.ones(1), torch.ones(1), torch.ones(1))],
    "nothing": [],
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_batches_that_are_none(case):
    found = as_batches(WRONG[case])
    with pytest.raises(DataError, match=r"no dict of tensors|cannot be told apart|has no batches"):
        list(found)


def test_a_function_that_runs_dry():
    once = iter([ONE])
    found = as_batches(lambda: once)
    list(found.at(0))
    with pytest.raises(DataError, match="epoch 1 has no batches"):
        list(found.at(1))
    with pytest.raises(ArgumentError, match="not known"):
        len(found)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.sampled_from([(), (2,), (1, 2, 2)]), st.integers(-9, 9))
def test_padding(lengths, shape, value):
    sequences = [torch.randn(n, *shape) for n in lengths]
    found = pad(sequences, value)
    assert found.shape == (len(lengths), max(lengths), *shape)
    for row, sequence in zip(found, sequences, strict=True):
        assert torch.equal(row[: len(sequence)], sequence) and (row[len(sequence) :] == value).all()


def test_collate():
    one = {"x": np.ones((2, 1)), "y": torch.tensor([1, 2]), "w": torch.ones(2), "name": "a", "p": 0.5}
    two = {"x": np.ones((1, 1)), "y": torch.tensor([3]), "w": torch.ones(1), "name": "b", "p": 0.5}
    batch = collate([one, two])
    assert batch["y"].tolist() == [[1, 2], [3, -100]] and batch["w"].tolist() == [[1, 1], [1, 0]]
    assert batch["length"].tolist() == [2, 1] and batch["name"] == ["a", "b"] and batch["p"].tolist() == [0.5, 0.5]
    assert batch["x"].dtype == torch.float64 and batch["x"].squeeze(2).tolist() == [[1, 1], [1, 0]]
    given = collate([{"x": torch.ones(2, 1), "length": 1}, {"x": torch.ones(1, 1), "length": 1}])
    assert given["length"].tolist() == [1, 1]
    assert "length" not in collate([{"x": torch.ones(2, 1)}, {"x": torch.ones(2, 1)}])


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "samples are not dicts"),
        ([torch.ones(1)], "samples are not dicts"),
        ([{"x": torch.ones(1)}, {"y": torch.ones(1)}], "sample 1 has other keys"),
        ([{"x": torch.ones(2, 1)}, {"x": torch.ones(2, 2)}], "key 'x': sequence 1 does not fit"),
    ],
)
def test_collate_refuses(samples, message):
    with pytest.raises(DataError, match=message):
        collate(samples)
