"""Make digits.h5, the handwritten digits that the examples learn, from the copy that scikit-learn ships.

Every class gives 36 of its images, drawn with a fixed seed, to the test split: 1437 are left for training.

    python examples/data/make_digits.py [FILE.h5]        (needs scikit-learn: pip install "imprint[bench]")
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from imprint.data import Data, save_h5

HERE = Path(__file__).resolve().parent
TEST_PER_CLASS = 36
SOURCE = "scikit-learn's load_digits(), the test part of UCI's Optical Recognition of Handwritten Digits"
LICENSE = "CC BY 4.0 (UCI Machine Learning Repository, dataset 80)"
CITATION = "E. Alpaydin, C. Kaynak. Optical Recognition of Handwritten Digits. UCI Machine Learning Repository, 1998."


def main(argv: list[str] | None = None) -> Path:
    """Write the file and return its path."""
    from sklearn.datasets import load_digits

    arguments = sys.argv[1:] if argv is None else argv
    digits = load_digits()
    x, y = digits.images.astype(np.uint8)[:, None], digits.target
    draw = np.random.RandomState(0)  # its numbers are frozen across numpy's versions
    test = np.zeros(len(y), dtype=bool)
    for label in range(10):
        test[draw.permutation(np.flatnonzero(y == label))[:TEST_PER_CLASS]] = True
    train_x, train_y, test_x, test_y = (torch.from_numpy(part) for part in (x[~test], y[~test], x[test], y[test]))
    data = Data(train_x, train_y, test_x, test_y, num_classes=10, name="digits")
    path = Path(arguments[0]) if arguments else HERE / "digits.h5"
    return save_h5(path, data, source=SOURCE, license=LICENSE, citation=CITATION)


if __name__ == "__main__":
    print(main())
