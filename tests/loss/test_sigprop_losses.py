"""v1, v9, v14, v15 and Hebb's rule: their values and gradients, their options, what they refuse."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from imprint import errors, loss

from references import sigprop as reference

NAIVE = {
    "v1": (loss.v1_input_label_direct, reference.v1),
    "v9": (loss.v9_input_target_max_all, reference.v9),
    "v14": (loss.v14_input_target_max_rand, reference.v14),
    "v15": (loss.v15_input_target_topk(k=3), reference.v15(3)),
}
CONTRASTIVE = [loss.v9_input_target_max_all, loss.v14_input_target_max_rand, loss.v15_input_target_topk]
SHAPES = [(4,), (3, 2), (2, 2, 3), (2, 2, 1, 2)]


def six(shape: tuple[int, ...], rows: int, samples: int = 6) -> tuple[Tensor, ...]:
    h, t = torch.randn(samples, *shape).double(), torch.randn(rows, *shape).double()
    t0 = torch.randn(rows, *shape[1:], 3).double() if len(shape) > 1 else torch.randn(rows, 3).double()
    t0[1::2] = t0[::2][: len(t0[1::2])]  # equal targets in pairs
    return h.requires_grad_(), t.requires_grad_(), torch.randn(samples, 2).double(), t0, torch.arange(samples) % rows


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", NAIVE)
def test_value_and_gradients_equal_the_loops(kind: str, shape: tuple[int, ...]) -> None:
    ours, naive = NAIVE[kind]
    h1, t1, h0, t0, y = six(shape, rows=4 if kind == "v1" else 6)
    torch.manual_seed(5)
    value = ours(None, h1, t1, h0, t0, y)
    found = torch.autograd.grad(value, [h1, t1])
    torch.manual_seed(5)
    expected = naive(h1, t1, t0, y)
    wanted = torch.autograd.grad(expected, [h1, t1])
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-13)
    if kind in ("v9", "v15"):
        other = reference.v15(1)(h1, t1, t0, y)
        assert abs(float((other - expected).detach())) > 1e-3  # other positives are another loss


def test_v9_counts_all_ties_v14_one_and_v15_k() -> None:
    t0 = torch.eye(2)[torch.tensor([0, 0, 0, 1])]
    flat = (None, torch.zeros(4, 3), torch.randn(4, 3), None, t0, None)
    log = torch.log(torch.tensor(4.0))
    torch.testing.assert_close(loss.v9_input_target_max_all(*flat), log * (3 + 3 + 3 + 1) / 4)
    torch.testing.assert_close(loss.v14_input_target_max_rand(*flat), log)
    torch.testing.assert_close(loss.v15_input_target_topk(k=2)(*flat), log * 2)


def test_v14_draws_each_tie_with_the_same_chance() -> None:
    t0 = torch.eye(2)[torch.tensor([0, 0, 0, 1])]
    t1 = torch.eye(4)
    h1 = torch.zeros(4, 4).requires_grad_()
    counts = torch.zeros(4)
    for _ in range(900):
        (grad,) = torch.autograd.grad(loss.v14_input_target_max_rand(None, h1, t1, None, t0, None), h1)
        counts += (grad[0] < 0).float()
    assert counts[3] == 0
    assert ((counts[:3] - 300).abs() < 4 * (900 * 2 / 9) ** 0.5).all(), counts  # 4 standard deviations


@pytest.mark.parametrize("size", [7, 10, 37])
def test_equal_targets_are_found_equal_after_rounding(size: int) -> None:
    """A matrix product rounds equal rows differently; strict equality of its entries loses positives."""
    y = torch.arange(size) % 3
    t0 = torch.randn(3, 1000).relu()[y]
    same = y[:, None] == y
    h1, t1 = torch.zeros(size, 2), torch.randn(size, 2)
    expected = torch.log(torch.tensor(float(size))) * same.sum(1).float().mean()
    torch.testing.assert_close(loss.v9_input_target_max_all(None, h1, t1, None, t0, None), expected)


@pytest.mark.parametrize("similarity", ["dot", "cosine", "l2"])
def test_similarity_and_temperature(similarity: str) -> None:
    h1, t1, h0, t0, y = six((3, 2), rows=6)
    h, t = h1.flatten(1), t1.flatten(1)
    logits = {
        "dot": h @ t.T / 2,
        "cosine": torch.stack([torch.cosine_similarity(h, t[j][None]) for j in range(6)], 1),
        "l2": -torch.cdist(h, t).square() / 2,
    }[similarity]
    # the positives of these pairwise equal targets are the pairs, by cosine and distance
    same = (torch.arange(6)[:, None] // 2 == torch.arange(6) // 2).double()
    value = loss.v9_input_target_max_all(similarity=similarity, temperature=0.25)(None, h1, t1, h0, t0, y)
    if similarity != "dot":
        torch.testing.assert_close(value, -(same * (logits / 0.25).log_softmax(1)).sum(1).mean())
    one = loss.v1_input_label_direct(similarity=similarity, temperature=0.25)(None, h1, t1, h0, t0, y)
    torch.testing.assert_close(one, torch.nn.functional.cross_entropy(logits / 0.25, y))
    assert abs(float((one - torch.nn.functional.cross_entropy(logits, y)).detach())) > 1e-2


@pytest.mark.parametrize("similarity", ["dot", "cosine", "l2"])
def test_hebbian_values(similarity: str) -> None:
    h1, t1, *_ = six((3, 2), rows=6)
    h, t = h1.flatten(1), t1.flatten(1)
    expected = {
        "dot": -(h * t).sum(1).mean() / 2,
        "cosine": -torch.cosine_similarity(h, t).mean(),
        "l2": (h - t).square().sum(1).mean() / 2,
    }[similarity]
    torch.testing.assert_close(loss.hebbian(similarity=similarity)(None, h1, t1, None, None, None), expected)
    y = torch.tensor([2, 0, 1, 1, 2, 2])
    by_class = loss.hebbian(similarity=similarity, rows="class")(None, h1, t1[:3], None, None, y)
    torch.testing.assert_close(by_class, loss.hebbian(None, h1, t1[y], None, None, None) if similarity == "dot" else
                               loss.hebbian(similarity=similarity)(None, h1, t1[y], None, None, None))  # fmt: skip


def test_hebbian_step_of_a_linear_unit_is_hebbs() -> None:
    w = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    x, c = torch.randn(5, 4).double(), torch.randn(5, 4).double()
    loss.hebbian(None, x @ w.T, c @ w.T, x, c, None).backward()
    expected = -sum(torch.outer(w @ c[i], x[i]) + torch.outer(w @ x[i], c[i]) for i in range(5)) / 5
    torch.testing.assert_close(w.grad, expected.detach())


def test_labels_as_positives_survive_dropout_and_small_classes() -> None:
    """Recall and precision of the positives, read off the gradient of flat logits."""
    torch.manual_seed(0)
    y = torch.arange(24) % 8  # three samples a class, fewer than k
    t0 = torch.nn.functional.dropout(torch.randn(8, 64).relu()[y], 0.5)
    same = y[:, None] == y

    def positives(value: Callable[..., Tensor]) -> Tensor:
        h1 = torch.zeros(24, 24, requires_grad=True)
        (grad,) = torch.autograd.grad(value(None, h1, torch.eye(24), None, t0, y), h1)
        return grad < 0

    recall = lambda p: float((p & same).sum() / same.sum())
    precision = lambda p: float((p & same).sum() / p.sum())
    by_targets = positives(loss.v9_input_target_max_all)
    assert recall(by_targets) < 0.5
    assert torch.equal(positives(loss.v9_input_target_max_all(positives="labels")), same)
    assert precision(positives(loss.v15_input_target_topk(k=5))) < 0.7
    assert torch.equal(positives(loss.v15_input_target_topk(k=5, positives="labels")), same)
    two = positives(loss.v15_input_target_topk(k=2, positives="labels"))
    assert (two.sum(1) == 2).all() and precision(two) == 1.0
    one = positives(loss.v14_input_target_max_rand(positives="labels"))
    assert (one.sum(1) == 1).all() and precision(one) == 1.0


def test_one_hot_labels_are_labels() -> None:
    h1, t1, h0, t0, y = six((4,), rows=6)
    y = torch.tensor([0, 2, 1, 1, 2, 0])
    onehot = torch.eye(3).double()[y]
    for value in (
        loss.v9_input_target_max_all(positives="labels"),
        loss.v15_input_target_topk(k=2, positives="labels"),
    ):
        torch.testing.assert_close(value(None, h1, t1, h0, t0, y), value(None, h1, t1, h0, t0, onehot))
    for value in (loss.v1_input_label_direct, loss.v9_input_target_max_all(rows="class"), loss.hebbian(rows="class")):
        torch.testing.assert_close(value(None, h1, t1[:3], h0, t0, y), value(None, h1, t1[:3], h0, t0, onehot))


@pytest.mark.parametrize("value", CONTRASTIVE)
def test_a_last_batch_smaller_than_k_and_of_one_sample(value: Callable[..., Tensor]) -> None:
    for rows in (1, 2, 3):
        h1, t1, t0 = (torch.randn(rows, 4).requires_grad_() for _ in range(3))
        found = value(None, h1, t1, None, t0.detach(), torch.zeros(rows, dtype=torch.long))
        assert torch.isfinite(found) and found >= 0
        if rows == 1:
            assert found == 0
        if value is loss.v15_input_target_topk and rows > 1:
            everything = -(h1 @ t1.T).log_softmax(1).sum(1).mean()
            torch.testing.assert_close(found, everything)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1)], ids=str)
def test_regression_values_and_one_channel_streams(shape: tuple[int, ...]) -> None:
    """By distance a value's positives are the equal values; by dot product they would be the largest."""
    y = torch.tensor([0.5, -1.0, 0.5, 2.0, 100.0, 100.001])
    t0 = y.view(6, *shape)
    h1 = torch.zeros(6, 6, requires_grad=True)
    (grad,) = torch.autograd.grad(
        loss.v9_input_target_max_all(similarity="l2")(None, h1, torch.eye(6), None, t0, y), h1
    )
    logits = torch.full((6, 6), -1.0).requires_grad_()  # distances of zeros from unit vectors are all 1
    same = y[:, None] == y
    expected = -(same * logits.log_softmax(1)).sum(1).mean()
    (wanted,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(grad, 2 * wanted)  # d(-|h - e_j|^2)/dh = 2 e_j at h = 0
    streams = torch.randn(6, *shape)
    for value in (loss.v9_input_target_max_all(similarity="l2"), loss.hebbian(similarity="l2")):
        assert torch.isfinite(value(None, streams, streams.flip(0), None, t0, y))


@pytest.mark.parametrize("value", CONTRASTIVE)
def test_rows_that_do_not_fit_are_refused(value: Callable[..., Tensor]) -> None:
    h1, t1, t0, y = torch.randn(6, 4), torch.randn(3, 4), torch.randn(3, 4), torch.arange(6) % 3
    with pytest.raises(errors.ShapeError, match=r"rows='class'"):
        value(None, h1, t1, None, t0, y)
    assert torch.isfinite(value(rows="class")(None, h1, t1, None, t0, y))
    with pytest.raises(errors.LabelError, match="out of range"):
        value(rows="class")(None, h1, t1, None, t0, y + 1)
    with pytest.raises(errors.LabelError, match="not integers"):
        value(rows="class")(None, h1, t1, None, t0, None)
    with pytest.raises(errors.LabelError, match="no labels"):
        value(positives="labels")(None, h1, h1, None, h1, None)
    with pytest.raises(errors.ShapeError, match="not one label a context row"):
        value(positives="labels")(None, h1, h1, None, h1, y[:4])
    with pytest.raises(errors.ShapeError, match="different features"):
        value(None, h1, torch.randn(6, 5), None, h1, y)


@pytest.mark.parametrize("value", [*CONTRASTIVE, loss.v1_input_label_direct, loss.hebbian])
def test_an_empty_batch_is_refused(value: Callable[..., Tensor]) -> None:
    t1, none = torch.randn(3, 4), torch.zeros(0, 4)
    for h, t in ((none, t1), (none, none), (t1, none)):
        with pytest.raises(errors.ShapeError, match="the batch is empty"):
            value(None, h, t, None, t, torch.zeros(len(h), dtype=torch.long))


def test_v1_refuses_labels_that_name_no_row() -> None:
    h1, t1 = torch.randn(6, 4), torch.randn(3, 4)
    for y in (torch.full((6,), 3), torch.full((6,), -1), torch.rand(6), torch.ones(6).bool(), None):
        with pytest.raises(errors.LabelError):
            loss.v1_input_label_direct(None, h1, t1, None, None, y)
    soft = torch.rand(6, 3).softmax(1)
    expected = -(soft * (h1 @ t1.T).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss.v1_input_label_direct(None, h1, t1, None, None, soft), expected)


def test_a_loss_is_its_own_factory() -> None:
    h1, t1, h0, t0, y = six((4,), rows=6)
    arguments = (None, h1, t1, h0, t0, y)
    raw = loss.v15_input_target_topk
    expected = raw(*arguments, k=2)
    for made in (raw(k=2), raw(topk=2), raw(2)):
        torch.testing.assert_close(made(*arguments), expected, rtol=0, atol=0)
        assert isinstance(made, loss.Loss)
        for twin in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
            torch.testing.assert_close(twin(*arguments), expected, rtol=0, atol=0)
    torch.testing.assert_close(raw(*arguments), raw(k=5)(*arguments), rtol=0, atol=0)
    assert abs(float((raw(*arguments) - expected).detach())) > 1e-3
    assert pickle.loads(pickle.dumps(raw)) is raw
    assert (
        repr(raw(topk=2)) == repr(raw(k=2))
        and repr(raw(k=2, similarity="l2")) == "Configured(v15_input_target_topk(k=2, similarity='l2'))"
    )
    assert loss.option(raw(k=2), "k", None) == 2 and loss.option(raw, "k", None) == 5
    assert loss.option(loss.v1_input_label_direct, "rows", "sample") == "class"
    assert loss.option(object(), "rows", "sample") == "sample"


def test_wrong_options_are_refused_when_they_are_set() -> None:
    with pytest.raises(errors.ArgumentError, match="did you mean 'temperature'"):
        loss.v9_input_target_max_all(temprature=0.1)
    with pytest.raises(errors.ArgumentError, match="wrong arguments"):
        loss.v15_input_target_topk(2, k=3)
    with pytest.raises(errors.ArgumentError, match="wrong arguments"):
        loss.hebbian(None, None, None, None, None)
    for k, topk in ((1, 5), (5, 3), (2, 2)):
        with pytest.raises(errors.ArgumentError, match="topk= beside k="):
            loss.v15_input_target_topk(k=k, topk=topk)
    h1 = torch.randn(3, 4)
    arguments = (None, h1, h1, None, h1, torch.arange(3))
    for value in CONTRASTIVE:
        with pytest.raises(errors.ArgumentError, match="takes its positives from the labels"):
            value(rows="class", positives="targets")(*arguments)
        torch.testing.assert_close(
            value(rows="class", positives="labels")(*arguments), value(rows="class")(*arguments), rtol=0, atol=0
        )
    for options, words in (
        ({"similarity": "cos"}, "unknown similarity"), ({"temperature": 0.0}, "temperature"),
        ({"positives": "label"}, "unknown positives"), ({"rows": "classes"}, "unknown rows"),
    ):  # fmt: skip
        with pytest.raises(errors.ArgumentError, match=words):
            loss.v9_input_target_max_all(**options)(*arguments)
    for k in (0, -1, 2.5, True):
        with pytest.raises(errors.ArgumentError, match="k must be"):
            loss.v15_input_target_topk(k=k)(*arguments)
    with pytest.raises(errors.ArgumentError, match="context rows are the classes"):
        loss.v1_input_label_direct(rows="sample")(*arguments)
    with pytest.raises(TypeError):
        loss.Loss()
