"""Targets mean what torch's cross entropy says they mean, in every objective alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import imprint
from imprint.errors import ArgumentError, LabelError, ShapeError
from imprint.functional.similarity_matching import centered_cosine
from imprint.objectives import Contrast, Goodness, Head, Labels, SimilarityMatching, Spec, Target, TargetFeedback, View

CLASSES = 4
WEIGHT = torch.tensor([1.0, 2.0, 0.5, 4.0], dtype=torch.float64)
OPTIONS: list[dict[str, Any]] = [
    {}, {"weight": WEIGHT}, {"label_smoothing": 0.2}, {"ignore_index": 1}, {"ignore_index": 1, "weight": WEIGHT},
    {"weight": WEIGHT, "label_smoothing": 0.2, "ignore_index": 1},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: " ".join(o) or "plain")
def test_cross_entropy_is_torchs(options: dict[str, Any]) -> None:
    logits, y = torch.randn(7, CLASSES, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 1, 2, 2])
    labels = Labels(CLASSES, **options)
    torch.testing.assert_close(labels.cross_entropy(logits, y), F.cross_entropy(logits, y, **options))
    wide = torch.randn(7, 3, CLASSES, dtype=torch.float64)
    per_token = y[:, None].expand(7, 3)
    expected = F.cross_entropy(wide.movedim(2, 1), per_token, **options)
    torch.testing.assert_close(labels.cross_entropy(wide, per_token), expected)
    torch.testing.assert_close(labels.cross_entropy(wide.movedim(2, 1), per_token), expected)
    if "ignore_index" not in options:
        soft = torch.rand(7, CLASSES, dtype=torch.float64).softmax(1)
        torch.testing.assert_close(labels.cross_entropy(logits, soft), F.cross_entropy(logits, soft, **options))


def test_no_labelled_row_is_a_loss_of_zero_with_a_gradient_of_zero() -> None:
    logits = torch.randn(3, CLASSES, requires_grad=True)
    loss = Labels(CLASSES).cross_entropy(logits, torch.full((3,), -100))
    loss.backward()
    assert loss == 0.0 and logits.grad.abs().max() == 0.0
    assert Labels(CLASSES).mean(torch.ones(3), torch.full((3,), -100)) == 0.0


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["even", "weighted"])
def test_the_mean_weighs_rows_by_class_and_leaves_unlabelled_ones_out(weight: Tensor | None) -> None:
    losses, y = torch.tensor([1.0, 10.0, 100.0, 7.0], dtype=torch.float64), torch.tensor([1, 3, -100, 1])
    by_hand = (2 * 1 + 4 * 10 + 2 * 7) / 8 if weight is not None else (1 + 10 + 7) / 3
    assert float(Labels(CLASSES, weight=weight).mean(losses, y)) == pytest.approx(by_hand, rel=1e-12)


def test_onehot_of_a_label_a_token_masks_tokens_not_samples() -> None:
    y = torch.randint(CLASSES, (4, 4))
    y[0] = y[2, 1] = -100
    expected = torch.zeros(4, 4, CLASSES)
    for row in range(4):
        for token in range(4):
            if y[row, token] >= 0:
                expected[row, token, y[row, token]] = 1
    assert torch.equal(Labels(CLASSES).onehot(y), expected)
    smoothed = Labels(CLASSES, label_smoothing=0.3).smoothed(y)
    torch.testing.assert_close(smoothed, expected * 0.7 + 0.3 / CLASSES)


@pytest.mark.parametrize("objective", [SimilarityMatching, TargetFeedback, Goodness, Contrast])
@pytest.mark.parametrize("tokens", [10, CLASSES])
def test_what_compares_samples_refuses_a_label_a_token(objective: Any, tokens: int) -> None:
    with pytest.raises(ArgumentError, match="one label a sample") as error:
        objective().bind(Spec((10, 8), target=(tokens,), channels_last=True), Labels(CLASSES))
    assert "local_ce" in str(error.value)


@pytest.mark.parametrize("rule", ["predsim", "sim", "drtp", "sigprop", "forward_forward"])
@pytest.mark.parametrize("rows", [16, 10])
def test_a_label_a_token_is_refused_at_bind_by_rules_of_samples(rule: str, rows: int) -> None:
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    with pytest.raises(ArgumentError, match="one label a sample"):
        imprint.attach(net, rule, num_classes=3).step(torch.randn(rows, 10, 8), torch.randint(3, (rows, 10)))


def test_onehot_index_and_valid() -> None:
    labels, y = Labels(3, ignore_index=9), torch.tensor([2, 9, 0])
    assert labels.onehot(y).tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]
    assert labels.index(y).tolist() == [2, 0, 0] and labels.valid(y).tolist() == [True, False, True]
    soft = torch.tensor([[0.2, 0.8, 0.0]])
    assert labels.onehot(soft) is soft and labels.index(soft).tolist() == [1] and labels.soft(soft)


@pytest.mark.parametrize(
    "labels,y,error",
    [
        (Labels(3), torch.tensor([0, 3]), LabelError),
        (Labels(3), torch.tensor([0, -1]), LabelError),
        (Labels(3), torch.tensor([True]), LabelError),
        (Labels(3), torch.zeros(2, 4), ShapeError),
        (Labels(3), torch.tensor([], dtype=torch.long), ShapeError),
        (Labels(None), torch.tensor([1, 2]), LabelError),
    ],
)
def test_labels_that_mean_nothing_are_refused(labels: Labels, y: Tensor, error: type[Exception]) -> None:
    with pytest.raises(error):
        labels.check(y)


def made(objective: Any, labels: Labels, width: int = 5, target: tuple[int, ...] = ()) -> Any:
    objective.bind(Spec((width,), dtype=torch.float64, target=target), labels)
    return objective


@pytest.mark.parametrize("make", [Head, TargetFeedback, Goodness, SimilarityMatching], ids=lambda m: m.__name__)
def test_an_objective_counts_labelled_rows_by_weight(make: Any) -> None:
    """The same loss on the labelled rows alone, and on rows repeated by their weight."""
    y = torch.tensor([0, -100, 1, 1, -100, 3])
    has = y != -100
    torch.manual_seed(1)
    plain = made(make(), Labels(CLASSES))
    torch.manual_seed(1)
    weighted = made(make(), Labels(CLASSES, weight=torch.tensor([1.0, 2.0, 1.0, 1.0], dtype=torch.float64)))
    h = torch.randn(12, 5, dtype=torch.float64)
    if hasattr(plain, "linear"):
        weighted.linear.weight.data.normal_()
        plain.load_state_dict(weighted.state_dict())

    def loss(objective: Any, rows: Tensor) -> Tensor:
        both = torch.cat(
            [h[:6][rows], h[6:][rows]]
        )  # goodness reads positives and negatives, the others the first half
        view = View(h=h[:6][rows], t=both, context=Target(y[rows]))
        return objective(view)

    all_rows = torch.arange(6)
    torch.testing.assert_close(loss(plain, all_rows), loss(plain, all_rows[has]), rtol=1e-12, atol=0)
    twice = torch.tensor([0, 2, 2, 3, 3, 5])
    torch.testing.assert_close(loss(weighted, all_rows), loss(plain, twice), rtol=1e-12, atol=0)
    assert abs(float((loss(weighted, all_rows) - loss(plain, all_rows)).detach())) > 1e-3


@pytest.mark.parametrize("kind", ["labels", "soft", "values"])
def test_target_feedback_is_the_gradient_it_says(kind: str) -> None:
    h = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    y = {
        "labels": torch.tensor([0, 1, 2, 3, 3, 1]),
        "soft": torch.rand(6, CLASSES, dtype=torch.float64),
        "values": torch.randn(6, CLASSES, dtype=torch.float64),
    }[kind]
    labels = Labels(None if kind == "values" else CLASSES)
    objective = made(TargetFeedback(), labels, target=(CLASSES,) if kind == "values" else ())
    loss = objective(View(h=h, context=Target(y)))
    target = F.one_hot(y, CLASSES).double() if kind == "labels" else y
    torch.testing.assert_close(torch.autograd.grad(loss, h)[0], target @ objective.feedback / 6, rtol=1e-12, atol=0)
    assert objective.feedback.abs().max() <= (6 / 5) ** 0.5 and not list(objective.parameters())


def test_smoothed_labels_throw_the_mixture() -> None:
    y, h = torch.tensor([0, -100, 2, 3]), torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    objective = made(TargetFeedback(), Labels(CLASSES, label_smoothing=0.2))
    loss = objective(View(h=h, context=Target(y)))
    wanted = 0.8 * F.one_hot(y.clamp(min=0), CLASSES).double() + 0.2 / CLASSES
    has = (y != -100).double()[:, None]
    expected = (wanted @ objective.feedback) * has / 3
    torch.testing.assert_close(torch.autograd.grad(loss, h)[0], expected, rtol=1e-7, atol=1e-9)
    assert (expected - (F.one_hot(y.clamp(min=0), CLASSES).double() @ objective.feedback) * has / 3).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["labels", "soft"])
def test_similarity_matching_cannot_tell_smoothed_labels(kind: str) -> None:
    y = torch.tensor([0, 1, 3, 3]) if kind == "labels" else torch.rand(4, CLASSES, dtype=torch.float64).softmax(1)
    smooth = Labels(CLASSES, label_smoothing=0.3)
    plain, mixed = (centered_cosine(v) for v in (smooth.onehot(y, torch.float64), smooth.smoothed(y, torch.float64)))
    torch.testing.assert_close(plain, mixed, rtol=1e-6, atol=1e-7)
    assert (smooth.onehot(y, torch.float64) - smooth.smoothed(y, torch.float64)).abs().max() > 0.01


def test_goodness_refuses_smoothed_labels() -> None:
    with pytest.raises(ArgumentError, match=r"cannot be smoothed[\s\S]*got:\s+0\.1[\s\S]*task_loss="):
        Goodness().bind(Spec((5,)), Labels(CLASSES, label_smoothing=0.1))
    made(Goodness(), Labels(CLASSES))


@pytest.mark.parametrize(
    "options,match",
    [
        ({"num_classes": 0}, "num_classes"), ({"num_classes": 2.0}, "num_classes"), ({"num_classes": True}, "True"),
        ({"label_smoothing": -0.1}, "0..1"), ({"label_smoothing": 1.5}, "1.5"),
        ({"weight": [1.0, 2.0]}, r"\[num_classes\][\s\S]*\[1.0, 2.0\]"), ({"weight": torch.ones(2, 2)}, "a class"),
        ({"weight": torch.tensor([1.0, -1.0])}, "from 0"),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        Labels(**options)


@pytest.mark.parametrize(
    "options", [{"weight": WEIGHT}, {"label_smoothing": 0.1}, {"ignore_index": 3}], ids=lambda o: next(iter(o))
)
@pytest.mark.parametrize("rule", ["local_ce", "sigprop", "drtp", "backprop"])
def test_values_have_no_class_weights_smoothing_or_missing_labels(rule: str, options: dict[str, Any]) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    manager = imprint.attach(model, rule, labels=Labels(**options))
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    with pytest.raises(ArgumentError, match=rf"{next(iter(options))}=\) has no meaning[\s\S]*num_classes="):
        manager.step(x, y)
    assert manager.bound is None
    imprint.attach(manager.detach(), rule).step(x, y)
