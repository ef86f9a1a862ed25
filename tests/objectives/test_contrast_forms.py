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
from imprint.errors import ArgumentError
from imprint.objectives import Contrast, Labels, Spec, Target, View

from references import descent, nets, sigprop_attached

CLASSES, WIDTH = 4, 6
KINDS = ("v1", "v9", "v14", "v15")
SIMILARITIES = ("dot", "cosine", "l2")


def objective(kind: str, labels: Labels | None = None, **options: Any) -> Contrast:
    made = Contrast(kind, k=2 if kind == "v15" else None, **options)
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
    ours = objective(kind, similarity=similarity, temperature=0.4)(View(h=h, t=t, context=by_class(y)))
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
    made = objective(kind, similarity=similarity)
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
    made = objective(kind)
    some = made(View(h=h, t=t, context=by_class(y)))
    torch.testing.assert_close(some, made(View(h=h[has], t=t, context=by_class(y[has]))), rtol=1e-12, atol=0)
    rows = t[y.clamp(min=0)]
    torch.testing.assert_close(made(View(h=h, t=rows, context=by_sample(y))), some, rtol=1e-11, atol=0)
    assert torch.autograd.grad(some, h)[0][~has].abs().max() == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_that_are_sure_equal_labels(kind: str) -> None:
    y = torch.tensor([0, 1, 2, 3, 1, 1])
    h, t = streams(6)
    made, soft = objective(kind), F.one_hot(y, CLASSES).double()
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


WEIGHT = torch.tensor([1.0, 2.0, 0.5, 4.0], dtype=torch.float64)
OPTIONS: list[dict[str, Any]] = [
    {"label_smoothing": 0.2}, {"weight": WEIGHT}, {"label_smoothing": 0.2, "weight": WEIGHT},
    {"label_smoothing": 0.2, "weight": WEIGHT, "ignore_index": 1},
]  # fmt: skip


def positives(kind: str, y: Tensor, k: int) -> Tensor:
    """Which samples of the batch each one should resemble, ``[B, B]``."""
    same = (y[:, None] == y[None, :]).double()
    most = {"v9": len(y), "v14": 1, "v15": k}[kind]
    return same * (same.cumsum(1) <= most)


def torchs(kind: str, z: Tensor, y: Tensor, k: int = 2, **options: Any) -> Tensor:
    """torch's cross entropy of one logit a class (v1), or one a sample (the others), whose weight is its class's."""
    if kind == "v1":
        return F.cross_entropy(z, y, **options)
    has = y != options.pop("ignore_index", -100)
    y = y[has]
    weight = options.pop("weight", None)
    if weight is None:
        return F.cross_entropy(z[has][:, y], positives(kind, y, k), **options)
    mean = F.cross_entropy(z[has][:, y], positives(kind, y, k), weight[y], **options)
    return mean * len(y) / weight[y].sum()  # torch divides by the number of rows where targets are probabilities


@pytest.mark.parametrize("distinct", [True, False], ids=["class rows", "sample rows"])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: " ".join(o))
@pytest.mark.parametrize("kind", KINDS)
def test_smoothing_weights_and_missing_labels_are_torchs(kind: str, options: dict[str, Any], distinct: bool) -> None:
    """On class rows and on sample rows, where v1 knows the classes alone that have a row."""
    y = torch.tensor([0, 1, 2, 3, 1, 1, 0])
    labels = Labels(CLASSES, **options)
    h, t = streams(len(y))
    made = objective(kind, labels)
    view = View(h=h, t=t, context=by_class(y, labels))
    z, torch_y, torch_options = made.logits(view), y, dict(options)
    if kind == "v1" and "ignore_index" in options and not distinct:
        z, torch_y = z[:, [0, 2, 3]], torch.tensor([0, -100, 1, 2, -100, -100, 0])
        torch_options |= {"weight": WEIGHT[[0, 2, 3]], "ignore_index": -100}
    expected = torchs(kind, z, torch_y, **torch_options)
    if not distinct:
        view = View(h=h, t=t[y], context=by_sample(y, labels))
    torch.testing.assert_close(made(view), expected, rtol=1e-11, atol=1e-13)
    grads = [torch.autograd.grad(value, [h, t], retain_graph=True) for value in (made(view), expected)]
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-12)
    for name, without in (("label_smoothing", 0.0), ("weight", None)):
        if name in options:
            other = objective(kind, Labels(CLASSES, **options | {name: without}))
            assert abs(float((other(view) - expected).detach())) > 1e-3


def test_v14_takes_one_of_its_class_and_smoothing_does_not_ask_which() -> None:
    """The last of its class in place of the first: rows of one class are equal."""
    y = torch.tensor([2, 0, 2, 1, 3])
    assert positives("v14", y, 1).argmax(1).tolist() == [0, 1, 0, 3, 4]
    h, t = streams(len(y))
    made = objective("v14", Labels(CLASSES, label_smoothing=0.3))
    view = View(h=h, t=t, context=by_class(y))
    last = F.cross_entropy(made.logits(view)[:, y], torch.tensor([2, 1, 2, 3, 4]), label_smoothing=0.3)
    torch.testing.assert_close(made(view), last, rtol=1e-11, atol=0)


@pytest.mark.parametrize("options", OPTIONS[:3], ids=lambda o: " ".join(o))
def test_probabilities_smoothed_and_weighted_as_torch_has_it(options: dict[str, Any]) -> None:
    soft = torch.rand(6, CLASSES, dtype=torch.float64).softmax(1)
    h, t = streams(6)
    made = objective("v1", Labels(CLASSES, **options))
    view = View(h=h, t=t, context=by_class(soft))
    torch.testing.assert_close(made(view), F.cross_entropy(made.logits(view), soft, **options), rtol=1e-11, atol=0)


@pytest.mark.parametrize("kind", ["v9", "v14", "v15"])
def test_more_classes_than_samples_take_one_row_a_sample_and_equal_class_rows(kind: str) -> None:
    """A model attached with 9 classes and batches of 6: by hand with nine rows, of which the absent do not count."""
    classes = 9
    start = nn.Sequential(*nets.chain("dense", False)[:3], nn.Linear(7, classes)).double()
    model, (units, classifier) = copy.deepcopy(start), nets.split(start)
    batches = [(x, y * 3) for x, y in nets.batches("dense")]
    sgd = lambda params: torch.optim.SGD(params, 0.05)
    manager = imprint.attach(
        model,
        "sigprop",
        loss=kind,
        k=2 if kind == "v15" else None,
        num_classes=classes,
        layers=["0", "1", "2"],
        optimizer=sgd,
    )
    manager.bind(*batches[0])
    context = manager.context.stream.weight0.detach()
    assert len(context) == classes > len(batches[0][0])
    for x, y in batches:
        manager.step(x, y)
    sigprop_attached.train(units, context, classifier, batches, descent.SGD, loss=kind, k=2)
    assert nets.furthest(model, nets.join(units, classifier)) < 1e-10
    assert nets.furthest(model, start) > 1e-3


@pytest.mark.parametrize("kind", ["v1", "v9", "v14"])
def test_k_is_of_v15_alone(kind: str) -> None:
    with pytest.raises(ArgumentError, match=f"k has no meaning for {kind}"):
        imprint.attach(nn.Linear(4, 3), "sigprop", loss=kind, k=2)
    assert Contrast("v15").k == 5 and Contrast("v15", k=2).k == 2
