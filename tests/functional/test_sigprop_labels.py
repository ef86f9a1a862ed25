"""Labels, digits and the functional twins of signals, propagators and losses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import imprint.propagators
import imprint.signals
from imprint import errors, functional, loss, propagators, signals, utils

BAD_LABELS = {
    "too large": torch.tensor([0, 3]),
    "negative": torch.tensor([-1, 0]),
    "floating": torch.tensor([0.0, 1.0]),
    "bool": torch.tensor([True, False]),
    "two a sample": torch.zeros(2, 2, dtype=torch.long),
    "a column": torch.zeros(2, 1, dtype=torch.long),
    "one number": torch.tensor(1),
    "a list": [0, 1],
}


USES: dict[str, Callable[[object], object]] = {
    "onehot": lambda y: functional.onehot(y, 3),
    "counts": lambda y: functional.class_counts(y, 3),
    "numbers": lambda y: functional.class_numbers(y, 3),
    "formatter": lambda y: signals.LabelNumberToOnehot(3)((torch.zeros(2, 4), y)),
}


@pytest.mark.parametrize("why", BAD_LABELS)
@pytest.mark.parametrize("use", USES)
def test_bad_labels_are_refused_with_what_is_wrong(use: str, why: str) -> None:
    with pytest.raises(errors.LabelError) as caught:
        USES[use](BAD_LABELS[why])
    assert caught.value.fix is not None and caught.value.expected is not None


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_onehot_and_counts(dtype: torch.dtype) -> None:
    y = torch.tensor([2, 0, 2], dtype=dtype)
    expected = torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 0, 1]])
    torch.testing.assert_close(functional.onehot(y, 3), expected)
    assert functional.onehot(y, 3, torch.float16).dtype == torch.float16
    assert functional.class_counts(y, 4).tolist() == [1, 0, 2, 0]
    assert functional.class_numbers(expected, 3).tolist() == [2, 0, 2]
    assert functional.onehot(y[:0], 3).shape == (0, 3)


@pytest.mark.parametrize("count", [0, -1, 2.0, True, None])
def test_num_classes_must_be_a_positive_integer(count: object) -> None:
    with pytest.raises(errors.ArgumentError, match="num_classes"):
        functional.onehot(torch.tensor([0]), count)
    with pytest.raises(errors.ArgumentError, match="num_classes"):
        signals.LabelNumberToOnehot(count)


def test_digits_are_told_apart_and_right_by_eye() -> None:
    glyphs = functional.digit_glyphs()
    assert all(not torch.equal(glyphs[a], glyphs[b]) for a in range(11) for b in range(a))
    assert set(glyphs[:10].unique().tolist()) == {-1.0, 1.0} and not glyphs[10].any()
    picture = ["".join("#" if v > 0 else "." for v in row) for row in glyphs[5].tolist()]
    assert picture == ["#######", "#......", "#......", "#######", "......#", "......#", "#######"]


def test_numbers_are_drawn_digit_by_digit() -> None:
    glyphs = functional.digit_glyphs()
    drawn = functional.draw_digits(torch.tensor([42, 7, 0, 9999]), (2, 14, 14), places=4)
    assert drawn.shape == (4, 2, 14, 14)
    blank = glyphs[10]
    for row, digits in enumerate([[4, 2], [7], [0], [9, 9, 9, 9]]):
        cells = [glyphs[d] for d in digits] + [blank] * (4 - len(digits))
        expected = torch.cat([torch.cat(cells[:2], 1), torch.cat(cells[2:], 1)], 0)
        for channel in (0, 1):
            assert torch.equal(drawn[row, channel], expected)
    assert torch.equal(functional.draw_digits(torch.tensor([[42.0]]), (2, 14, 14), 4)[0], drawn[0])


@pytest.mark.parametrize(
    "height,width,places", [(28, 28, 1), (28, 28, 3), (8, 8, 2), (5, 40, 7), (32, 8, 4), (3, 3, 9)]
)
def test_digits_fit_wherever_there_is_a_pixel_a_digit(height: int, width: int, places: int) -> None:
    size, per_row = functional.digits.digit_grid(height, width, places)
    assert size >= 1 and per_row * size <= width and -(-places // per_row) * size <= height
    numbers = torch.tensor([10**places - 1, 0])
    drawn = functional.draw_digits(numbers, (1, height, width), places)
    assert (drawn.shape == (2, 1, height, width) and not torch.equal(drawn[0], drawn[1])) or size == 1


def test_numbers_that_cannot_be_drawn_are_refused() -> None:
    for number, places in ((10, 1), (-1, 2)):
        with pytest.raises(errors.LabelError, match="does not fit"):
            functional.draw_digits(torch.tensor([number]), (1, 8, 8), places)
    with pytest.raises(errors.LabelError, match="one number a row"):
        functional.draw_digits(torch.eye(3), (1, 8, 8), 1)
    with pytest.raises(errors.ShapeError, match="do not fit"):
        functional.draw_digits(torch.tensor([1]), (1, 2, 2), 5)
    with pytest.raises(errors.ShapeError, match="no picture"):
        functional.draw_digits(torch.tensor([1]), (8,), 1)
    for places in (0, -1, 1.5, True):
        with pytest.raises(errors.ArgumentError, match="places"):
            signals.FixedDrawContext(places)


def test_formatters_and_generators_equal_their_functional_twins() -> None:
    h0, y = torch.randn(4, 1, 8, 8), torch.tensor([1, 0, 2, 1])
    onehot = torch.eye(3)[y]
    F = functional.signals
    pairs = [
        (signals.LabelNumberToOnehot(3), y, F.label_number_to_onehot(y, 3)),
        (signals.DistinctBatchLabelsOnehot(), onehot, F.distinct_batch_labels_onehot(onehot)),
        (signals.DistinctBatchLabels(), onehot, F.distinct_batch_labels(onehot)),
        (signals.LabelVectorToNumber(), onehot, F.label_vector_to_number(onehot)),
    ]
    for formatter, t0, expected in pairs:
        same, t1 = formatter((h0, t0))
        assert same is h0
        torch.testing.assert_close(t1, expected, rtol=0, atol=0)
        assert formatter((h0, None)) == (h0, None)
    context, first, sizes = nn.Linear(3, 64), nn.Conv2d(1, 1, 1), ((3,), (1, 8, 8))
    for made, twin in (
        (signals.ProjectionContext(context, *sizes), F.projection_context((h0, onehot), context, *sizes)),
        (signals.ProjectionContextInput(context, first, *sizes),
         F.projection_context_input((h0, onehot), context, first, *sizes)),
    ):  # fmt: skip
        for a, b in zip(made((h0, onehot)), twin, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
        assert made((h0, None))[1] is None
    drawn = signals.FixedDrawContext(1)((h0, y))
    torch.testing.assert_close(drawn[1], F.fixed_draw_context((h0, y), 1)[1], rtol=0, atol=0)
    assert signals.FixedDrawContext(1)((h0, None))[1] is None


def test_the_twins_are_where_the_rooms_say() -> None:
    assert imprint.propagators.functional is functional.propagators
    assert imprint.signals.functional is functional.signals
    layer = nn.Linear(2, 2)
    h, t, y = torch.randn(3, 2), torch.randn(3, 2), torch.arange(3)
    for cls, twin in (
        (propagators.Forward, functional.propagators.forward), (propagators.Fixed, functional.propagators.fixed),
        (propagators.Identity, functional.propagators.identity),
    ):  # fmt: skip
        for a, b in zip(cls(layer)((h, t, y)), twin((h, t, y), layer), strict=True):
            assert torch.equal(a, b) and a.requires_grad == b.requires_grad
    logits, same = functional.similarity_logits(h, t), functional.find_positives(t, y)
    six = (None, h, t, None, t, y)
    torch.testing.assert_close(functional.input_label_direct(logits, y), loss.v1_input_label_direct(*six))
    torch.testing.assert_close(functional.input_target_max_all(logits, same), loss.v9_input_target_max_all(*six))
    torch.testing.assert_close(functional.input_target_max_rand(logits, same), loss.v14_input_target_max_rand(*six))
    torch.testing.assert_close(functional.hebbian(functional.paired_similarity(h, t)), loss.hebbian(*six))


def test_shape_numel() -> None:
    assert utils.shape_numel((2, 3, 4)) == 24 and utils.shape_numel([]) == 1
    assert utils.shape_numel(torch.zeros(5, 0).shape) == 0
    assert isinstance(utils.shape_numel(torch.Size([2])), int)
    with pytest.raises(errors.ShapeError, match="negative"):
        utils.shape_numel((2, -1))
