"""Sequences in files: the same from memory and from disk, in little memory, and every file that is refused."""

import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from imprint.data import SequenceDataset, as_rows, load_h5, save_h5, save_sequences_h5
from imprint.data.stored import Stored
from imprint.errors import ArgumentError, DataError, StateError


def made(count=23, ticks=5, **options):
    x = torch.randn(count, ticks, 3)
    lengths = torch.randint(1, ticks + 1, (count,))
    extra = {"row": torch.arange(count), "track": torch.randn(count, ticks)}
    return SequenceDataset(x, torch.arange(count) % 4, lengths=lengths, name="toy", extra=extra, **options)


@pytest.fixture
def file(tmp_path):
    return save_sequences_h5(tmp_path / "toy.h5", made(), made(9), source="drawn", license="CC0", citation="none")


def edit(path, key, value):
    with h5py.File(path, "r+") as f:
        if key in f:
            del f[key]
        if value is not None:
            f[key] = value


def same(one, two):
    assert one.keys() == two.keys()
    for key in one:
        assert torch.equal(one[key], two[key]) and one[key].dtype == two[key].dtype, key


def both(path, **options):
    return [SequenceDataset.from_h5(path, in_memory=whole, extra=["row"], **options) for whole in (True, False)]


def test_round_trip(tmp_path):
    train, test = made(), made(9)
    path = save_sequences_h5(tmp_path / "toy.h5", train, test, source="drawn", license="CC0", citation="none")
    for split, data in (("train", train), ("test", test)):
        for whole in (True, False, None):
            back = SequenceDataset.from_h5(path, split, in_memory=whole, extra=["row", "track"])
            assert (back.num_classes, back.name, back.stored) == (4, "toy", whole is False)
            for a, b in zip(back.iter_batches(False), data.iter_batches(False), strict=True):
                same(a, b)
            for i in (0, 3, -1):
                same(back[i], data[i])
    with h5py.File(path) as f:
        assert dict(f.attrs) == {
            "name": "toy",
            "source": "drawn",
            "license": "CC0",
            "citation": "none",
            "num_classes": 4,
        }
        assert (
            f["train/y"].dtype == np.uint8 and f["train/length"].dtype == np.int32 and f["train/x"].dtype == np.float32
        )


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (torch.randint(0, 9, (6, 4)), None),
        (torch.randn(6, 4, 1, 2, 3), torch.randn(6, 2, 5)),
        (torch.randn(6, 4, 2), torch.tensor([[0, -100]] * 6)),
        (torch.randn(6, 4, 2), torch.softmax(torch.randn(6, 3), 1)),
    ],
)
def test_every_kind_comes_back(tmp_path, x, y):
    classes = 3 if y is not None and y.dim() == 2 else None
    data = SequenceDataset(x, y, num_classes=classes)
    path = save_sequences_h5(tmp_path / "kind.h5", data)
    for whole in (True, False):
        back = SequenceDataset.from_h5(path, in_memory=whole, num_classes=classes)
        same(next(back.iter_batches(False)), next(data.iter_batches(False)))
        assert (back.num_classes, back.target_dim) == (data.num_classes, data.target_dim)


def test_files_of_images_and_of_the_other_writer(tmp_path, digits):
    data = load_h5(digits)
    for whole in (True, False):
        rows = SequenceDataset.from_h5(digits, "test", in_memory=whole)
        assert (rows.seq_len, rows.feature_dim, rows.num_classes, len(rows)) == (8, 8, 10, 360)
        batch = next(rows.iter_batches(False, batch_size=360))
        assert torch.equal(batch["x"], as_rows(data.x_test)) and torch.equal(batch["y"], data.y_test)
    written = save_h5(tmp_path / "digits.h5", data)
    assert torch.equal(SequenceDataset.from_h5(written).x, as_rows(data.x_train))


@given(
    st.integers(1, 30), st.integers(1, 8), st.integers(1, 4), st.integers(1, 9), st.integers(0, 3),
    st.booleans(), st.booleans(), st.booleans(), st.sampled_from([None, 1, 3, 50]),
)  # fmt: skip
def test_chunks_give_the_batches_of_memory(
    tmp_path_factory, count, chunk, buffer, size, epoch, shuffle, bucket, drop, stored
):
    path = tmp_path_factory.mktemp("chunks") / "x.h5"
    x, length = np.random.default_rng(0).standard_normal((count, 4, 2)), np.arange(count) % 4 + 1
    with h5py.File(path, "w") as f:
        f.create_dataset("train/x", data=x, chunks=None if stored is None else (min(stored, count), 2, 2))
        f["train/y"], f["train/length"], f["train/row"] = np.arange(count) % 3, length, np.arange(count)
        f["train/track"] = np.arange(count * 2).reshape(count, 2)
    options = {"chunk": chunk, "buffer": buffer, "seed": 2, "batch_size": size, "extra": ["row", "track"]}
    memory, disk = (SequenceDataset.from_h5(path, in_memory=whole, **options) for whole in (True, False))
    assert disk.stored and not memory.stored
    if count > 3:
        rows = torch.arange(count).flip(0)[::2]
        memory, disk = memory.subset(rows), disk.subset(rows)
    how = {"shuffle": shuffle, "epoch": epoch, "bucket": bucket, "drop_last": drop}
    for a, b in zip(memory.iter_batches(**how), disk.iter_batches(**how), strict=True):
        same(a, b)
        for n, row in enumerate(a["row"].tolist()):  # and what both give is what the file holds
            until = int(length[row])
            assert np.array_equal(a["x"][n, :until].numpy(), x[row, :until].astype(np.float32))
    other = [b["row"].tolist() for b in memory.iter_batches(**{**how, "epoch": epoch + 1})]
    if shuffle and len(memory) > 12 and not drop:
        assert other != [b["row"].tolist() for b in disk.iter_batches(**how)]


def test_stored_rows_in_any_order(file):
    column, whole = Stored(file, "train/x"), load_h5(file).x_train
    assert column.shape == (23, 5, 3) and len(column) == 23 and column.nbytes == 23 * 5 * 3 * 4
    for rows in ([0], [22, 0, 5, 5, 1], list(range(23)), []):
        assert torch.equal(column.take(torch.tensor(rows, dtype=torch.int64)), whole[rows])
    twice = column.subset(torch.tensor([4, 2, 9])).subset(torch.tensor([2, 0]))
    assert torch.equal(twice.changed(torch.neg).take(torch.tensor([1, 0])), -whole[[4, 9]])


def test_a_loader_with_workers_reads_from_the_file(file):
    memory, disk = both(file)
    for a, b in zip(memory.iter_batches(False, batch_size=5), DataLoader(disk, 5, num_workers=1), strict=True):
        b["x"] = b["x"][:, : a["x"].shape[1]]
        same(a, b)


def test_normalized_parts_of_a_file(file):
    memory, disk = both(file)
    one, two = memory.normalized(), disk.normalized()
    for a, b in zip(one.iter_batches(False), two.iter_batches(False), strict=True):
        torch.testing.assert_close(a["x"], b["x"], rtol=1e-5, atol=1e-6)
    test = SequenceDataset.from_h5(file, "test", in_memory=False).normalized(like=two.subset([0, 1]))
    wanted = SequenceDataset.from_h5(file, "test").normalized(like=memory)
    for a, b in zip(test.iter_batches(False), wanted.iter_batches(False), strict=True):
        torch.testing.assert_close(a["x"], b["x"], rtol=1e-5, atol=1e-6)
    valid, _ = next(disk._parts())
    assert valid.shape == (23, 5, 3)


def test_a_file_can_be_written_from_a_file(file, tmp_path):
    _, disk = both(file)
    back = SequenceDataset.from_h5(save_sequences_h5(tmp_path / "copy.h5", disk.normalized()), extra=["row"])
    same(next(back.iter_batches(False)), next(disk.normalized().iter_batches(False)))
    before = file.read_bytes()
    with pytest.raises(ArgumentError, match="is being read from"):
        save_sequences_h5(file, disk.subset([1, 0]))
    assert file.read_bytes() == before


def test_the_same_data_give_the_same_bytes(tmp_path):
    data = made()
    one, two = (save_sequences_h5(tmp_path / f"{i}.h5", data).read_bytes() for i in range(2))
    assert one == two != save_sequences_h5(tmp_path / "3.h5", made()).read_bytes()


def test_a_failed_save_keeps_the_old_file(file, monkeypatch):
    old = file.read_bytes()
    monkeypatch.setattr(h5py.Dataset, "__setitem__", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_sequences_h5(file, made())
    monkeypatch.undo()
    assert file.read_bytes() == old and [p.name for p in file.parent.iterdir()] == ["toy.h5"]


def test_splits_of_different_classes_are_not_saved(tmp_path):
    with pytest.raises(ArgumentError, match="differ in classes"):
        save_sequences_h5(tmp_path / "x.h5", made(), SequenceDataset(torch.ones(2, 5, 3), [0, 1]))
    assert not list(tmp_path.iterdir())


def test_the_number_of_classes_is_that_of_the_whole_file(file):
    with h5py.File(file, "r+") as f:
        del f.attrs["num_classes"], f.attrs["name"]
    edit(file, "test/y", np.zeros(9, np.uint8))
    for whole in (True, False):
        back = SequenceDataset.from_h5(file, "test", in_memory=whole)
        assert back.num_classes == 4 and back.name == "toy"
        assert SequenceDataset.from_h5(file, "test", in_memory=whole, num_classes=7, name="n").num_classes == 7


def test_a_file_without_targets(file):
    edit(file, "train/y", None)
    data = SequenceDataset.from_h5(file)
    assert data.y is None and data.target_dim is None and "y" not in next(data.iter_batches())


@pytest.mark.parametrize("stored", [">f4", "<f8", ">i2", "<u2", "u1", "?"])
def test_any_number_type_and_byte_order(file, stored):
    x = (np.arange(23 * 5 * 3).reshape(23, 5, 3) % 2 + 1).astype(stored)
    edit(file, "train/x", x)
    edit(file, "train/length", None)
    for data in both(file):
        batch = next(data.iter_batches(False))["x"]
        assert batch.dtype == torch.float32 and batch.tolist() == x.astype(float).tolist()
    assert SequenceDataset.from_h5(file, dtype=torch.float64).x.dtype == torch.float64


@pytest.mark.parametrize("part", [0.0, 0.5, 0.99])
def test_truncated(file, part):
    disk = both(file)[1]
    content = file.read_bytes()
    file.write_bytes(content[: int(part * len(content))])
    for attempt in (lambda: SequenceDataset.from_h5(file), lambda: disk[0], lambda: list(disk.iter_batches())):
        with pytest.raises(DataError, match="cannot be read as HDF5"):
            attempt()
    file.unlink()
    with pytest.raises(DataError, match="there is no such file"):
        disk[0]


def test_a_damaged_chunk(file):
    with h5py.File(file) as f:
        chunk = f["train/x"].id.get_chunk_info(0)
    content = bytearray(file.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    file.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as HDF5"):
        SequenceDataset.from_h5(file)
    test = SequenceDataset.from_h5(file, "test", in_memory=False)
    assert len(test[0]["x"]) == 5  # the rest is there


def test_a_file_that_became_another(file):
    disk = both(file)[1]
    edit(file, "train/x", np.zeros((9, 5, 3), np.float32))
    with pytest.raises(DataError, match=r"is not what it was(.|\n)*\[23, 5, 3\](.|\n)*\[9, 5, 3\]"):
        disk[0]
    edit(file, "train/x", None)
    with pytest.raises(DataError, match=r"is not what it was(.|\n)*nothing"):
        disk[0]


def test_missing_datasets_are_named_beside_those_present(file):
    with pytest.raises(DataError, match="it lacks val/x") as caught:
        SequenceDataset.from_h5(file, "val")
    assert caught.value.got == ", ".join(
        f"{s}/{k}" for s in ("test", "train") for k in ("length", "row", "track", "x", "y")
    )
    with pytest.raises(DataError, match="it lacks train/speaker"):
        SequenceDataset.from_h5(file, extra=["row", "speaker"])


NAN = np.zeros((23, 5, 3), np.float32)
NAN[17, 0, 1] = np.nan
AT_ONCE = {
    "words": ("train/x", np.array([b"a"] * 23), "train/x holds no array of numbers"),
    "a scalar": ("train/x", np.float32(1), "train/x holds no array of numbers"),
    "empty": ("train/x", np.zeros((0, 5, 3)), "train/x holds no samples"),
    "a stream": ("train/x", np.zeros(23, np.uint8), "x is no set of sequences"),
    "no features": ("train/x", np.zeros((23, 5)), "x has no features"),
    "fewer labels": ("train/y", np.zeros(4, np.uint8), "x and y differ in number"),
    "labels out of range": ("train/y", np.full(23, 4), "y is out of range"),
    "length zero": ("train/length", np.zeros(23, int), "length is outside the sequences"),
    "length too long": ("train/length", np.full(23, 6), "length is outside the sequences"),
    "floating lengths": ("train/length", np.ones(23), "length is not one integer"),
    "lengths of lengths": ("train/length", np.ones((23, 2), int), "length is not one integer"),
    "classes": ("num_classes", "ten", "num_classes is no integer"),
}  # fmt: skip


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("case", AT_ONCE)
def test_refused_at_once(file, case, whole):
    key, value, message = AT_ONCE[case]
    if "/" in key:
        edit(file, key, value)
    else:
        with h5py.File(file, "r+") as f:
            f.attrs[key] = value
    before = file.read_bytes()
    with pytest.raises(DataError, match=message):
        SequenceDataset.from_h5(file, in_memory=whole)
    assert file.read_bytes() == before


WHEN_READ = {
    "NaN": ("train/x", NAN, r"NaN or infinite(.|\n)*row 17, tick 0"),
    "labels out of range": ("train/y", np.full((23, 2), 9), "y is out of range"),
    "NaN targets": ("train/y", np.full((23, 2, 2), np.nan), "y has NaN"),
}  # fmt: skip


@pytest.mark.parametrize("case", WHEN_READ)
def test_refused_when_it_is_read(file, case):
    key, value, message = WHEN_READ[case]
    edit(file, key, value)
    edit(file, "train/length", np.ones(23, int))
    if case == "NaN targets":
        with h5py.File(file, "r+") as f:
            f.attrs["num_classes"] = 0
    with pytest.raises(DataError, match=message):
        SequenceDataset.from_h5(file)
    disk = SequenceDataset.from_h5(file, in_memory=False)
    with pytest.raises(DataError, match=message):
        list(disk.iter_batches(batch_size=4))
    with pytest.raises(DataError, match=message):
        disk[17]


def test_nan_in_padding_is_no_harm(file):
    edit(file, "train/x", NAN)
    edit(file, "train/length", np.where(np.arange(23) == 17, 1, 2))
    with pytest.raises(DataError, match="row 17, tick 0"):
        SequenceDataset.from_h5(file)
    NAN[17] = 0
    moved = NAN.copy()
    moved[17, 1:] = np.nan
    edit(file, "train/x", moved)
    NAN[17, 0, 1] = np.nan
    for data in both(file):
        assert not torch.cat([b["x"].flatten() for b in data.iter_batches()]).any()


def test_options_are_checked(file):
    for option in ("chunk", "buffer", "batch_size"):
        with pytest.raises(ArgumentError, match=f"{option} is not a count"):
            SequenceDataset.from_h5(file, **{option: 0})
    with pytest.raises(StateError, match="read from a file"):
        both(file)[1].to("cpu")
    assert both(file)[1].block == 23 * 1 or both(file)[1].block > 23


PROGRAM = """
import sys, torch
from imprint.data import SequenceDataset

def resident(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) / 1024

path, whole = sys.argv[1], sys.argv[2] == "memory"
list(SequenceDataset(torch.randn(64, 64, 64)).iter_batches())  # what torch needs anyway
open("/proc/self/clear_refs", "w").write("5")
before = resident("VmRSS")
data = SequenceDataset.from_h5(path, in_memory=whole, batch_size=64, seed=0)
rows, total = 0, 0.0
for epoch in range(2):
    for batch in data.iter_batches(epoch=epoch):
        rows, total = rows + len(batch["x"]), total + float(batch["x"].sum())
if not whole:
    data = data.normalized()
print(rows, total, resident("VmHWM") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads memory figures of Linux")
def test_a_file_larger_than_the_buffer_takes_little_memory(tmp_path):
    """192 MB of features: 8 blocks of 4 MB are in memory, not the file (the control reads it whole)."""
    path = tmp_path / "large.h5"
    count, ticks, features = 6144, 64, 128
    with h5py.File(path, "w") as f:
        x = f.create_dataset(
            "train/x", (count, ticks, features), np.float32, chunks=(64, ticks, features), compression="lzf"
        )
        for start in range(0, count, 1024):
            rows = np.empty((1024, ticks, features), np.float32)
            rows[:] = np.arange(start, start + 1024)[:, None, None] % 7
            x[start : start + 1024] = rows
        f["train/y"] = np.arange(count) % 7
    found = {}
    for how in ("memory", "disk"):
        done = subprocess.run([sys.executable, "-c", PROGRAM, path, how], capture_output=True, text=True, check=True)
        rows, total, found[how] = map(float, done.stdout.split())
        assert rows == 2 * count and total == 2 * ticks * features * sum(i % 7 for i in range(count))
    assert found["memory"] > 190 and found["disk"] < 80, found


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "shape", "lengths", "classes"),
    [("fsdd_logmel", (2700, 226, 32), (12, 226), 10), ("japanesevowels", (270, 29, 12), (7, 26), 9)],
)
def test_real_files(datasets, name, shape, lengths, classes):
    path = datasets / f"{name}.h5"
    data = load_h5(path)
    memory, disk = (SequenceDataset.from_h5(path, in_memory=w, chunk=40, buffer=3, seed=1) for w in (True, False))
    assert (len(memory), memory.seq_len, memory.feature_dim) == shape and memory.num_classes == classes
    assert (int(memory.lengths.min()), int(memory.lengths.max())) == lengths
    assert torch.equal(memory.y, data.y_train) and torch.equal(memory.lengths, data.length_train)
    for a, b in zip(memory.iter_batches(epoch=3, bucket=True), disk.iter_batches(epoch=3, bucket=True), strict=True):
        same(a, b)
    test = SequenceDataset.from_h5(path, "test").normalized(like=memory)
    with h5py.File(path) as f:
        if "feature_mean" in f.attrs:  # what the file says about itself
            torch.testing.assert_close(test.scale.mean, torch.from_numpy(f.attrs["feature_mean"]), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(test.scale.std, torch.from_numpy(f.attrs["feature_std"]), rtol=1e-5, atol=1e-5)


@pytest.mark.data
def test_length_buckets_save_padding_on_spoken_digits(datasets):
    data = SequenceDataset.from_h5(datasets / "fsdd_logmel.h5", seed=0)
    ticks = [sum(b["x"].shape[1] for b in data.iter_batches(epoch=0, bucket=how)) for how in (False, True)]
    assert ticks[1] < 0.65 * ticks[0]
