"""The HDF5 layout: what is written is what is read, byte for byte; and every file that is refused."""

import h5py
import numpy as np
import pytest
import torch

from imprint.data import Data, load_h5, save_h5
from imprint.errors import DataError


@pytest.fixture
def data():
    x = torch.randint(0, 256, (7, 3, 4, 4), dtype=torch.uint8)
    return Data(x[:5], torch.tensor([0, 1, 2, 0, 1]), x[5:], torch.tensor([2, 0]), 3, "toy")


@pytest.fixture
def file(tmp_path, data):
    return save_h5(tmp_path / "toy.h5", data, source="drawn", license="CC0", citation="none")


def edit(path, key, value):
    """Replace or delete a dataset."""
    with h5py.File(path, "r+") as f:
        if key in f:
            del f[key]
        if value is not None:
            f[key] = value


def test_round_trip(file, data):
    back = load_h5(file, dtype=None)
    for key in ("x_train", "y_train", "x_test", "y_test"):
        assert (
            torch.equal(getattr(back, key), getattr(data, key)) and getattr(back, key).dtype == getattr(data, key).dtype
        )
    assert (back.name, back.num_classes, back.length_train, back.length_test) == ("toy", 3, None, None)


def test_samples_are_floats_and_labels_int64_by_default(file, data):
    back = load_h5(file)
    assert back.x_train.dtype == torch.float32 and torch.equal(back.x_train, data.x_train.float())
    assert back.y_train.dtype == torch.int64


def test_the_layout_on_disk(file):
    with h5py.File(file) as f:
        assert sorted(f) == ["test", "train"] and sorted(f["train"]) == ["x", "y"]
        assert f["train/x"].dtype == np.uint8 and f["train/y"].dtype == np.uint8
        attributes = {"name": "toy", "source": "drawn", "license": "CC0", "citation": "none", "num_classes": 3}
        assert dict(f.attrs) == attributes


def test_sequences_keep_their_lengths(tmp_path):
    x, length = torch.randn(4, 6, 2), torch.tensor([6, 1, 3, 2])
    data = Data(x, torch.arange(4), x[:2], torch.arange(2), 4, "seq", length, length[:2])
    back = load_h5(save_h5(tmp_path / "seq.h5", data))
    assert (
        torch.equal(back.x_train, x) and torch.equal(back.length_train, length) and back.length_test.tolist() == [6, 1]
    )


@pytest.mark.parametrize("y", [torch.tensor([300, 0]), torch.tensor([-100, 1])])
def test_labels_that_are_no_bytes_survive(tmp_path, y):
    data = Data(torch.randn(2, 1), y, torch.randn(2, 1), y, 301, "wide")
    assert load_h5(save_h5(tmp_path / "wide.h5", data)).y_train.tolist() == y.tolist()


def test_a_regression_survives(tmp_path):
    data = Data(torch.randn(2, 1), torch.randn(2, 3), torch.randn(2, 1), torch.randn(2, 3), 0)
    back = load_h5(save_h5(tmp_path / "r.h5", data))
    assert back.num_classes == 0 and torch.equal(back.y_test, data.y_test)


def test_the_same_data_give_the_same_bytes(tmp_path, data):
    one, two = save_h5(tmp_path / "1.h5", data).read_bytes(), save_h5(tmp_path / "2.h5", data).read_bytes()
    assert one == two
    other = Data(data.x_train + 1, data.y_train, data.x_test, data.y_test, 3, "toy")
    assert save_h5(tmp_path / "3.h5", other).read_bytes() != one


def test_what_was_read_needs_the_file_no_more(file, data):
    back = load_h5(file, dtype=None)
    file.unlink()
    assert torch.equal(back.x_train, data.x_train)


@pytest.mark.parametrize("stored", [">f4", "<f8", ">i2", "<u2", "u1", "?"])
def test_any_number_type_and_byte_order(file, stored):
    x = (np.arange(5 * 3).reshape(5, 3) % 2 + 1).astype(stored)
    edit(file, "train/x", x)
    edit(file, "test/x", x[:2])
    assert load_h5(file).x_train.tolist() == x.astype(float).tolist()


def test_without_attributes_the_file_and_the_labels_say_it(file):
    with h5py.File(file, "r+") as f:
        for key in list(f.attrs):
            del f.attrs[key]
    back = load_h5(str(file))
    assert (back.num_classes, back.name) == (3, "toy")


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match="there is no such file"):
        load_h5(tmp_path / "nowhere.h5")
    with pytest.raises(DataError, match="there is no such file"):
        load_h5(tmp_path)


def test_not_hdf5(tmp_path):
    (tmp_path / "x.h5").write_text("an ordinary text")
    with pytest.raises(DataError, match="cannot be read as HDF5"):
        load_h5(tmp_path / "x.h5")


@pytest.mark.parametrize("part", [0.0, 0.5, 0.99])
def test_truncated(file, part):
    content = file.read_bytes()
    file.write_bytes(content[: int(part * len(content))])
    with pytest.raises(DataError, match="cannot be read as HDF5"):
        load_h5(file)


def test_a_damaged_chunk(file):
    with h5py.File(file) as f:
        chunk = f["train/x"].id.get_chunk_info(0)
    content = bytearray(file.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    file.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as HDF5"):
        load_h5(file)


def test_missing_keys_are_named_beside_those_present(file):
    edit(file, "test/y", None)
    edit(file, "test/z", [1])
    with pytest.raises(DataError, match="it lacks test/y") as caught:
        load_h5(file)
    assert caught.value.got == "test/x, test/z, train/x, train/y"


def test_a_group_is_no_dataset(file):
    edit(file, "train/y/inner", None)
    with h5py.File(file, "r+") as f:
        del f["train/y"]
        f.create_group("train/y")
    with pytest.raises(DataError, match="it lacks train/y"):
        load_h5(file)


REFUSED = {
    "fewer labels": ("train/y", np.zeros(4, np.uint8), "train/x and train/y differ in number"),
    "labels out of range": ("test/y", np.array([0, 3]), "test/y is out of range"),
    "empty": ("test/x", np.zeros((0, 3, 4, 4), np.uint8), "test/x holds no samples"),
    "words": ("train/y", np.array([b"a", b"b", b"c", b"d", b"e"]), "train/y holds no array of numbers"),
    "a scalar": ("train/x", np.float32(1), "train/x holds no array of numbers"),
    "NaN": ("train/x", np.full((5, 3, 4, 4), np.nan), "train/x has NaN or infinite values"),
    "one length": ("train/length", np.ones(5, int), "only one split has lengths"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(file, case):
    key, value, message = REFUSED[case]
    edit(file, key, value)
    with pytest.raises(DataError, match=message):
        load_h5(file)


@pytest.mark.parametrize("value", ["ten", 3.5, [3, 3]])
def test_num_classes_must_be_an_integer(file, value):
    with h5py.File(file, "r+") as f:
        f.attrs["num_classes"] = value
    with pytest.raises(DataError, match="num_classes is no integer"):
        load_h5(file)


def test_a_failed_save_keeps_the_old_file(file, data, monkeypatch):
    old = file.read_bytes()
    monkeypatch.setattr(h5py.Group, "create_dataset", lambda *a, **k: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_h5(file, data)
    monkeypatch.undo()
    assert file.read_bytes() == old and [p.name for p in file.parent.iterdir()] == ["toy.h5"]


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "samples", "shape", "classes"),
    [("fashion_mnist", 60000, (1, 28, 28), 10), ("japanesevowels", 270, (29, 12), 9), ("mnist1d", 4000, (40, 1), 10)],
)
def test_real_files(datasets, name, samples, shape, classes):
    data = load_h5(datasets / f"{name}.h5", dtype=None)
    assert (len(data.x_train), data.shape, data.num_classes) == (samples, shape, classes)
    assert (data.length_train is not None) == (name == "japanesevowels")
