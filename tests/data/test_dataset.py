"""`Data`: what it refuses, and the numbers of its standardisation."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from imprint.data import Data
from imprint.errors import DataError


def images(n: int = 4, classes: int = 2, **changes):
    fields = {
        "x_train": torch.arange(n * 6, dtype=torch.float64).view(n, 1, 2, 3),
        "y_train": torch.arange(n) % classes,
        "x_test": torch.full((2, 1, 2, 3), 7.0, dtype=torch.float64),
        "y_test": torch.tensor([0, classes - 1]),
        "num_classes": classes,
        "name": "toy",
    }
    return Data(**{**fields, **changes})


def sequences(**changes):
    x = torch.tensor([[[1.0], [3.0], [0.0]], [[5.0], [0.0], [0.0]]])
    fields = {
        "x_train": x, "y_train": torch.tensor([0, 1]), "length_train": torch.tensor([2, 1]),
        "x_test": x.clone(), "y_test": torch.tensor([1, 0]), "length_test": torch.tensor([3, 1]), "num_classes": 2,
    }  # fmt: skip
    return Data(**{**fields, **changes})


def test_normalized_uses_two_numbers_of_the_training_split():
    data = images()
    x = data.x_train.numpy()
    mean, std = data.moments()
    assert mean == pytest.approx(x.mean(), abs=1e-12) and std == pytest.approx(x.std(), abs=1e-12)
    normal = data.normalized()
    np.testing.assert_allclose(normal.x_train.numpy(), (x - x.mean()) / x.std(), atol=1e-12)
    np.testing.assert_allclose(normal.x_test.numpy(), (7 - x.mean()) / x.std(), atol=1e-12)
    assert normal.moments() == pytest.approx((0.0, 1.0), abs=1e-12)
    # control: neither the test split's own moments nor one pair a pixel
    assert abs(normal.x_test.mean().item()) > 0.1
    assert normal.x_train[:, 0, 0, 0].mean().abs().item() > 0.1


def test_normalized_leaves_the_original_alone_and_keeps_the_rest():
    data = images()
    before = data.x_train.clone()
    normal = data.normalized()
    assert torch.equal(data.x_train, before)
    assert normal.y_train is data.y_train and (normal.name, normal.num_classes) == ("toy", 2)


def test_bytes_become_floats():
    x = torch.tensor([[0, 255], [255, 0]], dtype=torch.uint8)
    normal = Data(x, torch.tensor([0, 1]), x, torch.tensor([0, 1]), 2).normalized()
    assert normal.x_train.dtype == torch.float32
    assert normal.x_train.tolist() == [[-1, 1], [1, -1]]


def test_padding_is_no_part_of_the_moments_and_stays_zero():
    data = sequences()
    assert data.moments() == pytest.approx((3.0, (8 / 3) ** 0.5), abs=1e-12)  # of 1, 3, 5
    normal = data.normalized()
    scale = (8 / 3) ** -0.5
    torch.testing.assert_close(normal.x_train[..., 0], torch.tensor([[-2.0, 0, 0], [2, 0, 0]]) * scale)
    torch.testing.assert_close(normal.x_test[..., 0], torch.tensor([[-2.0, 0, -3], [2, 0, 0]]) * scale)
    whole = sequences(length_train=torch.tensor([3, 3]), length_test=torch.tensor([3, 3]))
    assert whole.moments()[0] == pytest.approx(1.5)  # the control: with padding counted


@given(
    st.integers(1, 5), st.lists(st.integers(1, 4), min_size=1, max_size=3), st.floats(-100, 100), st.floats(0.01, 100)
)
def test_normalized_undoes_any_shift_and_scale(n, shape, shift, scale):
    x = torch.randn(n + 1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    y = torch.zeros(n + 1, dtype=torch.int64)
    one, other = (Data(z, y, z, y, 1).normalized().x_test for z in (x, x * scale + shift))
    torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_to_moves_every_tensor_and_nothing_else(device):
    data = sequences()
    moved = data.to(device)
    for key, value in vars(data).items():
        if isinstance(value, torch.Tensor):
            assert getattr(moved, key).device.type == device and torch.equal(getattr(moved, key).cpu(), value)
        else:
            assert getattr(moved, key) == value
    assert moved.normalized().moments() == pytest.approx((0.0, 1.0), abs=1e-6)


def test_repr_is_one_line_and_shape_is_that_of_a_sample():
    assert repr(images()) == "Data 'toy': 4 training and 2 test samples of shape (1, 2, 3), 2 classes"
    assert images().shape == (1, 2, 3)
    assert "regression" in repr(images(num_classes=0, y_train=torch.rand(4), y_test=torch.rand(2)))


def test_what_is_allowed():
    unlabelled = images(y_train=torch.tensor([0, -100, 1, -100]))
    assert unlabelled.y_train.tolist() == [0, -100, 1, -100]
    soft = images(y_train=torch.full((4, 2), 0.5), y_test=torch.full((2, 2), 0.5))
    assert soft.y_train.sum() == 4
    sequences(x_test=torch.ones(2, 5, 1), length_test=torch.tensor([5, 4]))  # padded to another length
    images(y_train=torch.zeros(4, 3, dtype=torch.int64))  # a label sequence


NOTHING = torch.zeros(0, 1, 2, 3)
REFUSED = {
    "no training samples": (images, {"x_train": NOTHING, "y_train": NOTHING}, "train/x holds no samples"),
    "no test samples": (images, {"x_test": NOTHING, "y_test": NOTHING}, "test/x holds no samples"),
    "samples of size zero": (images, {"x_train": torch.zeros(4, 0)}, "train/x holds no samples"),
    "samples that are scalars": (images, {"x_train": torch.zeros(4)}, "train/x holds no samples"),
    "fewer labels than samples": (images, {"y_train": torch.tensor([0, 1, 0])}, "train/x and train/y differ in number"),
    "a label that is a scalar": (images, {"y_test": torch.tensor(1)}, "test/x and test/y differ in number"),
    "a label too large": (images, {"y_test": torch.tensor([0, 2])}, "test/y is out of range"),
    "a label below zero": (images, {"y_train": torch.tensor([0, 1, -1, 1])}, "train/y is out of range"),
    "NaN": (images, {"x_test": torch.full((2, 1, 2, 3), float("nan"))}, "test/x has NaN or infinite values"),
    "infinity": (images, {"x_train": torch.full((4, 1, 2, 3), float("inf"))}, "train/x has NaN or infinite values"),
    "shapes that differ": (images, {"x_test": torch.zeros(2, 1, 3, 2)}, "samples of different shape"),
    "a negative number of classes": (images, {"num_classes": -1}, "num_classes is not a count"),
    "classes that are no number": (images, {"num_classes": "2"}, "num_classes is not a count"),
    "integers as a regression": (images, {"num_classes": 0}, "num_classes is 0"),
    "probabilities of too many classes": (images, {"y_train": torch.zeros(4, 3)}, "train/y is not what 2 classes need"),
    "NaN targets": (images, {"num_classes": 0, "y_train": torch.full((4,), float("nan"))}, "train/y has NaN"),
    "a length of zero": (sequences, {"length_train": torch.tensor([0, 1])}, "train/length is outside the sequences"),
    "a length too long": (sequences, {"length_test": torch.tensor([1, 4])}, "test/length is outside the sequences"),
    "too few lengths": (sequences, {"length_test": torch.tensor([1])}, "test/length is not one integer a sample"),
    "a floating length": (sequences, {"length_train": torch.tensor([1.0, 2.0])}, "train/length is not one integer"),
    "lengths of one split": (sequences, {"length_test": None}, "only one split has lengths"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    make, changes, message = REFUSED[case]
    with pytest.raises(DataError, match=message) as caught:
        make(**changes)
    assert caught.value.expected is not None or "lengths" in case
    assert caught.value.fix


def test_constant_samples_cannot_be_normalized():
    with pytest.raises(DataError, match="do not vary"):
        images(x_train=torch.ones(4, 1, 2, 3)).normalized()
