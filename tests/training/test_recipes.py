"""Recipes for classes of whole sequences: each row's own last emission counts, and nothing else."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import imprint
from imprint.data import SequenceDataset, load_demo_dataset
from imprint.errors import ArgumentError, DataError, LabelError, ShapeError, UnknownNameError
from imprint.training import (
    infer_num_classes,
    last_step_accuracy,
    last_step_ce_loss,
    prepare_seq2static_classification,
)

OWN = torch.Generator().manual_seed(3)
X = torch.randn(6, 9, 4, generator=OWN)
Y, LENGTH = torch.tensor([0, 2, 1, 2, 0, 1]), torch.tensor([9, 2, 6, 3, 8, 4])


def graph(period: int = 3) -> imprint.Graph:
    torch.manual_seed(0)
    src, enc = imprint.Source("x"), imprint.Module("enc", imprint.protos.GRUStack(hidden=5))
    head = imprint.Module("head", imprint.protos.MLP([5, imprint.Auto]), schedule=imprint.Rate(emit_every=period))
    made = imprint.Graph()
    made.connect(src["out"], enc["in"])
    made.connect(enc["out"], head["in"])
    return made


def naive(out: torch.Tensor, y: torch.Tensor, length: torch.Tensor, period: int) -> tuple[float, float]:
    """Loss and accuracy, row by row; emissions are at ticks period - 1, 2 * period - 1, …"""
    losses, hits = [], []
    for row in range(len(y)):
        own = [e for e in range(out.shape[1]) if (e + 1) * period - 1 < length[row]]
        if y[row] != -100 and own:
            losses.append(F.cross_entropy(out[row, own[-1]], y[row]).item())
            hits.append(float(out[row, own[-1]].argmax() == y[row]))
    return sum(losses) / max(len(losses), 1), sum(hits) / max(len(hits), 1)


@pytest.mark.parametrize("period", [1, 2, 3, 9])
@pytest.mark.parametrize("keep", ["all", "last"])
def test_the_last_emission_of_each_row_is_its_own(period: int, keep: str) -> None:
    made = graph(period)
    prepare_seq2static_classification(made, {"x": X, "y": Y})
    y = Y.clone()
    y[2] = -100
    batch = {"x": X, "y": y, "length": LENGTH}
    out = made.rollout(batch, keep=keep)
    whole = out if keep == "all" else made.rollout(batch)
    loss, accuracy = naive(whole["head"].detach(), y, LENGTH, period)
    assert last_step_ce_loss()(out, batch).item() == pytest.approx(loss, abs=1e-6)
    assert last_step_accuracy()(out, batch) == pytest.approx(accuracy)
    made.rollout(batch)
    assert made.losses()["head.ce"].item() == pytest.approx(loss, abs=1e-6)  # what it declares is the same number
    if period < 9:
        others = naive(whole["head"].detach(), y, torch.full((6,), 9), period)[0]
        padded = F.cross_entropy(whole["head"].detach()[:, -1][y >= 0], y[y >= 0]).item()
        assert others == pytest.approx(padded, abs=1e-6)  # ended rows hold their last emission
    counted = [n >= period and label != -100 for n, label in zip(LENGTH.tolist(), y.tolist(), strict=True)]
    assert int(last_step_accuracy().count(out, batch)) == sum(counted)


def test_the_loss_is_that_of_plain_tensors_and_passes_gradient() -> None:
    logits = torch.randn(4, 3, 5, requires_grad=True)
    y = torch.tensor([1, -100, 4, 0])
    loss = last_step_ce_loss("top", "label")({"top": logits}, {"label": y})
    torch.testing.assert_close(loss, F.cross_entropy(logits[:, -1], y))
    loss.backward()
    assert not logits.grad[:, :-1].any() and not logits.grad[1].any() and logits.grad[0, -1].all()
    nothing = last_step_ce_loss()({"head": logits}, {"y": torch.full((4,), -100)})
    assert nothing.item() == 0 and last_step_accuracy()({"head": logits}, {"y": torch.full((4,), -100)}) == 0
    assert last_step_ce_loss(ignore_index=7)({"head": logits}, {"y": torch.tensor([1, 7, 4, 0])}).item() == loss.item()


def test_classes_are_counted() -> None:
    y = torch.tensor([0, 3, -100])
    x = torch.zeros(3, 2, 1)
    assert infer_num_classes({"x": x, "y": y}) == 4 and infer_num_classes({"x": x, "y": y}, override=9) == 9
    assert infer_num_classes(SequenceDataset(x, y, num_classes=6)) == 6
    assert infer_num_classes([{"x": x, "y": y}, {"x": x, "y": y + 2}]) == 6  # of all batches
    assert infer_num_classes([{"x": x, "z": y}], key="z") == 4
    with pytest.raises(DataError, match="no class labels"):
        infer_num_classes([{"x": x}])
    with pytest.raises(DataError, match="no class labels"):
        infer_num_classes([{"x": x, "y": torch.randn(3)}])
    with pytest.raises(DataError, match="no row of the dataset has a label"):
        infer_num_classes([{"x": x, "y": torch.full((3,), -100)}])
    for bad in (0, True, 2.0):
        with pytest.raises(ArgumentError, match="override= is no number of classes"):
            infer_num_classes({"x": x, "y": y}, override=bad)  # type: ignore[arg-type]


def test_prepare_sets_width_objective_and_pace() -> None:
    data = load_demo_dataset(samples=6, seq_len=9, feature_dim=4, num_classes=3)
    made = graph()
    term = prepare_seq2static_classification(made, data)
    assert (term.kind, term.on, term.at, term.labels.num_classes) == ("ce", "out", "last", 3)
    again = prepare_seq2static_classification(made, data)
    assert list(made["head"].objectives) == [again]  # never twice
    assert made.rollout(next(data.iter_batches()))["head"].shape == (6, 3, 3)
    once = graph(1)
    _ = once.schedule  # known already
    prepare_seq2static_classification(once, data, emit_once=True)
    assert once["head"].schedule.emit_every == 9 and once["head"].schedule.inner_steps == 1
    assert once.rollout(next(data.iter_batches()))["head"].shape == (6, 1, 3)


def test_other_keys_have_classes_of_their_own() -> None:
    made = graph()
    table = {"x": X, "y": Y, "label": torch.tensor([0, 1, 2, 3, 4, 5])}
    term = prepare_seq2static_classification(made, table, label_key="label")
    assert term.labels.num_classes == 6 and made.rollout(table)["head"].shape == (6, 3, 6)
    assert prepare_seq2static_classification(graph(), table, num_classes=11).labels.num_classes == 11


def test_what_does_not_fit_is_refused() -> None:
    out, batch = {"head": torch.zeros(2, 3, 4)}, {"x": 0, "y": torch.tensor([0, 1])}
    for loss in (last_step_ce_loss(), last_step_accuracy()):
        with pytest.raises(DataError, match=r"no key 'y'.*\n.*\['x'\]"):
            loss(out, {"x": 0})
        with pytest.raises(ShapeError, match="not one class label a row"):
            loss(out, {"y": torch.zeros(2, 3, dtype=torch.long)})
        with pytest.raises(ShapeError, match="not one class label a row"):
            loss(out, {"y": torch.zeros(2)})
        with pytest.raises(ShapeError, match="there is no emission"):
            loss({"head": torch.zeros(2, 0, 4)}, batch)
    with pytest.raises(LabelError, match="out of range"):
        last_step_ce_loss()(out, {"y": torch.tensor([0, 4])})
    with pytest.raises(ArgumentError, match="head_name= is a name"):
        last_step_ce_loss(3)  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="did you mean 'head'"):
        prepare_seq2static_classification(graph(), {"x": X, "y": Y}, "haed")
    ragged = SequenceDataset(X, Y, lengths=LENGTH)
    for data in (ragged, [{"x": X, "y": Y}]):
        with pytest.raises(ArgumentError, match="not all sequences end at the same tick"):
            prepare_seq2static_classification(graph(), data, emit_once=True)
    follower = graph()
    follower.set_schedule("head", imprint.Rate.follow("enc"))
    with pytest.raises(ArgumentError, match="follows 'enc'"):
        prepare_seq2static_classification(follower, {"x": X, "y": Y}, emit_once=True)
    assert follower["head"].schedule.follows == "enc" and not len(follower["head"].objectives)
