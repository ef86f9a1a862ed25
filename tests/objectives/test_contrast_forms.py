"""The contrast of attached models, on one context row a class, equals the spec's losses on one row a sample."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import imprint
from imprint import loss as losses
from imprint.objectives import Contrast, Labels, Spec, Target, View

from references import descent, nets, sigprop_attached

CLASSES, WIDTH = 4, 6
KINDS = ("v1", "v9", "v14", "v15")
SIMILARITIES = ("dot", "cosine", "l2")


def objective(kind: str, labels: Labels | None = None, **options: Any) -> Contrast:
    made = Contrast(kind, **options)
    made.bind(Spec((WIDTH,)), labels or Labels(CLASSES))
    return made


def by_class(y: Tensor, labels: Labels | None = None) -> Target:
    """Targets of a context with one row a class."""
    labels = labels or Labels(CLASSES)
    return Target(y, labels.index(y), labels.onehot(y).sum(0), True)


def by_sample(y: Tensor, labels: Labels | None = None) -> Target:
    """Targets of a context with one row a sample."""
    labels = labels or Labels(CLASSES)
    onehot = labels.onehot(y)
    return Target(y, torch.arange(len(y)), onehot @ onehot.sum(0), False)


def streams(samples: int) -> tuple[Tensor, Tensor]:
    h, t = (torch.randn(n, WIDTH, dtype=torch.float64, requires_grad=True) for n in (samples, CLASSES))
    return h, t


def spec_loss(kind: str, similarity: str, temperature: float, k: int) -> Any:
    """The loss of `imprint.loss`."""
    options: dict[str, Any] = {"similarity": similarity, "temperature": temperature}
    if kind == "v1":
        return losses.v1_input_label_direct(**options)
    if kind == "v15":
        return losses.v15_input_target_topk(k=k, positives="labels", **options)
    named = {"v9": losses.v9_input_target_max_all, "v14": losses.v14_input_target_max_rand}
    return named[kind](positives="labels", **options)


@pytest.mark.parametrize(
    "labels", [[0, 1, 2, 3, 1, 1, 2], [0, 2, 2, 2, 0], [3, 3, 3]], ids=["all", "absent", "one class"]
)
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("kind", KINDS)
def test_class_rows_equal_the_losses_on_sample_rows(kind: str, similarity: str, labels: list[int]) -> None:
    y = torch.tensor(labels)
    h, t = streams(len(y))
    ours = objective(kind, similarity=similarity, temperature=0.4, k=2)(View(h=h, t=t, context=by_class(y)))
    rows = t if kind == "v1" else t[y]
    theirs = spec_loss(kind, similarity, 0.4, 2)(None, h, rows, None, F.one_hot(y, CLASSES).double(), y)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)
    grads = [torch.autograd.grad(value, [h, t], retain_graph=True) for value in (ours, theirs)]
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-12)
    by_hand = sigprop_attached.contrast(h, t, y, kind, 2, similarity, 0.4)
    torch.testing.assert_close(ours, by_hand, rtol=1e-11, atol=1e-12)
    wrong = spec_loss(kind, similarity, 0.5, 2)(None, h, rows, None, F.one_hot(y, CLASSES).double(), y)
    assert abs(float((ours - wrong).detach())) > 1e-3 or len(set(labels)) == 1


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("kind", KINDS)
def test_sample_rows_equal_class_rows_where_both_are_exact(kind: str, similarity: str) -> None:
    """v1 counts every class, so all must be in the batch; the others count those that are."""
    y = torch.tensor([0, 1, 2, 3, 1, 1] if kind == "v1" else [0, 2, 2, 0, 2])
    h, t = streams(len(y))
    made = objective(kind, similarity=similarity, k=2)
    few, many = (made(View(h=h, t=rows, context=c(y))) for rows, c in ((t, by_class), (t[y], by_sample)))
    torch.testing.assert_close(many, few, rtol=1e-11, atol=1e-12)
    grads = [torch.autograd.grad(value, [h, t], retain_graph=True) for value in (few, many)]
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-12)


def test_v1_counts_absent_classes_and_the_others_do_not() -> None:
    y = torch.tensor([0, 1, 0, 1])
    h, t = streams(4)
    moved = torch.cat([t[:2], t[2:] + 5]).detach()
    for kind in KINDS:
        made = objective(kind)
        here, there = (made(View(h=h, t=rows, context=by_class(y))) for rows in (t, moved))
        assert (abs(float((here - there).detach())) > 1e-3) == (kind == "v1")
        if kind != "v1":
            assert torch.autograd.grad(here, t)[0][2:].abs().max() == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_unlabelled_rows_change_nothing(kind: str) -> None:
    y = torch.tensor([0, -100, 2, 2, -100, 3, 1])
    has = y != -100
    h, t = streams(len(y))
    made = objective(kind, k=2)
    some = made(View(h=h, t=t, context=by_class(y)))
    torch.testing.assert_close(some, made(View(h=h[has], t=t, context=by_class(y[has]))), rtol=1e-12, atol=0)
    rows = t[y.clamp(min=0)]
    torch.testing.assert_close(made(View(h=h, t=rows, context=by_sample(y))), some, rtol=1e-11, atol=0)
    assert torch.autograd.grad(some, h)[0][~has].abs().max() == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_that_are_sure_equal_labels(kind: str) -> None:
    y = torch.tensor([0, 1, 2, 3, 1, 1])
    h, t = streams(6)
    made, soft = objective(kind, k=2), F.one_hot(y, CLASSES).double()
    torch.testing.assert_close(
        made(View(h=h, t=t, context=by_class(soft))), made(View(h=h, t=t, context=by_class(y))), rtol=1e-12, atol=0
    )


def test_v1_with_probabilities_is_their_cross_entropy() -> None:
    soft = torch.rand(6, CLASSES, dtype=torch.float64).softmax(1)
    h, t = streams(6)
    made = objective("v1")
    view = View(h=h, t=t, context=by_class(soft))
    torch.testing.assert_close(made(view), F.cross_entropy(made.logits(view), soft), rtol=1e-11, atol=0)


def test_class_weights() -> None:
    weight = torch.tensor([1.0, 2.0, 0.0, 4.0], dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 3, 1, 1])
    h, t = streams(6)
    made = objective("v1", Labels(CLASSES, weight=weight))
    view = View(h=h, t=t, context=by_class(y))
    torch.testing.assert_close(made(view), F.cross_entropy(made.logits(view), y, weight=weight), rtol=1e-11, atol=0)
    assert abs(float((made(view) - objective("v1")(view)).detach())) > 1e-3


@pytest.mark.parametrize("kind", ["v9", "v14", "v15"])
def test_more_classes_than_samples_take_one_row_a_sample_and_equal_class_rows(kind: str) -> None:
    """A model attached with 9 classes and batches of 6: by hand with nine rows, of which the absent do not count."""
    classes = 9
    start = nn.Sequential(*nets.chain("dense", False)[:3], nn.Linear(7, classes)).double()
    model, (units, classifier) = copy.deepcopy(start), nets.split(start)
    batches = [(x, y * 3) for x, y in nets.batches("dense")]
    sgd = lambda params: torch.optim.SGD(params, 0.05)
    manager = imprint.attach(
        model, "sigprop", loss=kind, k=2, num_classes=classes, layers=["0", "1", "2"], optimizer=sgd
    )
    manager.bind(*batches[0])
    context = manager.context.stream.weight0.detach()
    assert len(context) == classes > len(batches[0][0])
    for x, y in batches:
        manager.step(x, y)
    sigprop_attached.train(units, context, classifier, batches, descent.SGD, loss=kind, k=2)
    assert nets.furthest(model, nets.join(units, classifier)) < 1e-10
    assert nets.furthest(model, start) > 1e-3
