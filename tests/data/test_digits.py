"""The digits that come with the repository, and the script that made them."""

import hashlib

import h5py
import numpy as np
import pytest
import torch

from imprint.data import load_h5

SHA256 = "e1c966138427b4bad4c38428215b03d06a1d41ca01abebf29d639d215ad73b36"


def arrays(path):
    with h5py.File(path) as f:
        return {key: f[key][()] for key in ("train/x", "train/y", "test/x", "test/y")}, dict(f.attrs)


def test_the_file_is_what_it_was(digits):
    digest = hashlib.sha256()
    for key, array in arrays(digits)[0].items():
        digest.update(f"{key} {array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    assert digest.hexdigest() == SHA256


def test_what_it_holds(digits):
    data = load_h5(digits, dtype=None)
    assert repr(data) == "Data 'digits': 1437 training and 360 test samples of shape (1, 8, 8), 10 classes"
    assert data.x_train.dtype == torch.uint8 and (data.x_train.min(), data.x_train.max()) == (0, 16)
    assert torch.bincount(data.y_test).tolist() == [36] * 10
    everything = torch.cat([data.x_train, data.x_test]).flatten(1)
    assert len(torch.unique(everything, dim=0)) == 1797  # no image is in both splits, or twice


def test_source_and_licence_are_attributes(digits):
    attributes = arrays(digits)[1]
    assert "scikit-learn" in attributes["source"] and "CC BY 4.0" in attributes["license"]
    assert "Alpaydin" in attributes["citation"] and attributes["num_classes"] == 10


def test_ridge_regression_reads_them(digits):
    """A linear map learns 94 % of them, and none of them when the training labels are shuffled (the control)."""
    data = load_h5(digits, dtype=torch.float64).normalized()

    def with_one(x):
        return torch.cat([x.flatten(1), torch.ones(len(x), 1, dtype=x.dtype)], 1)

    def accuracy(labels):
        x, y = with_one(data.x_train), torch.nn.functional.one_hot(labels, 10).double()
        weight = torch.linalg.solve(x.T @ x + 10 * torch.eye(65, dtype=x.dtype), x.T @ y)
        return ((with_one(data.x_test) @ weight).argmax(1) == data.y_test).double().mean().item()

    assert accuracy(data.y_train) == pytest.approx(0.939, abs=0.003)
    assert accuracy(data.y_train[torch.randperm(1437)]) < 0.25


def test_the_script_makes_the_same_file_again(digits, tmp_path, root, monkeypatch):
    pytest.importorskip("sklearn", reason="needs scikit-learn", exc_type=ImportError)
    monkeypatch.syspath_prepend(str(root / "examples" / "data"))
    make_digits = __import__("make_digits")
    one, two = (make_digits.main([str(tmp_path / name)]) for name in ("1.h5", "2.h5"))
    assert one.read_bytes() == two.read_bytes()
    made, kept = arrays(one), arrays(digits)
    assert made[1] == kept[1]
    for key in kept[0]:
        np.testing.assert_array_equal(made[0][key], kept[0][key])
