"""``manager.evaluate`` is the accuracy and the loss of all labelled rows at once, and changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import imprint
from imprint.data.batches import Samples, batches, generators, length, split
from imprint.errors import ArgumentError, DataError, LabelError
from imprint.managers.evaluation import Tally

from references.states import differences


@pytest.fixture(autouse=True)
def double(same_start: None) -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def net(out: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, out))


def trained(rule: str = "local_ce", y: Tensor | None = None, out: int = 4, **options: Any) -> imprint.Manager:
    manager = imprint.attach(net(out), rule, **options)
    for _ in range(3):
        manager.step(torch.randn(11, 5), torch.randint(4, (11,)) if y is None else y[:11])
    return manager


X = torch.randn(23, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.randint(4, (23,), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("batch_size", [1, 7, 23, 256])
@pytest.mark.parametrize("case", ["plain", "weights", "smoothing", "unlabelled", "soft", "weights and unlabelled"])
def test_batches_of_any_size_give_the_value_of_all_rows_at_once(case: str, batch_size: int) -> None:
    weight = torch.tensor([0.1, 2.0, 1.0, 5.0]) if "weights" in case else None
    labels = imprint.Labels(4, weight, label_smoothing=0.2 if case == "smoothing" else 0.0)
    y = Y.clone()
    if "unlabelled" in case:
        y[::3] = -100
        y[7:14] = -100  # a whole batch without a label
    if case == "soft":
        y = F.softmax(torch.randn(23, 4), 1)
    manager = trained(labels=labels)
    out = manager.predict(X)
    found = manager.evaluate((X, y), batch_size)
    wanted, valid = (y.argmax(1), torch.ones(23, dtype=torch.bool)) if case == "soft" else (y, y >= 0)
    accuracy = (out.argmax(1) == wanted)[valid].double().mean().item()
    loss = F.cross_entropy(out, y, weight, label_smoothing=labels.label_smoothing).item()
    assert found == pytest.approx({"accuracy": accuracy, "loss": loss}, abs=1e-12)
    if case == "weights":
        assert abs(found["loss"] - F.cross_entropy(out, y).item()) > 1e-3
    if batch_size == 7 and "weights" in case:  # what a mean of the batches' means would be
        parts = [F.cross_entropy(o, t, weight) for o, t in zip(out.split(7), y.split(7), strict=True) if (t >= 0).any()]
        assert abs(found["loss"] - torch.stack(parts).mean().item()) > 1e-4


def test_values_have_a_loss_alone_and_an_own_task_loss_is_used() -> None:
    y = torch.randn(23, 2)
    manager = trained(y=y, out=2)
    out = manager.predict(X)
    assert manager.evaluate((X, y), 5) == pytest.approx({"loss": F.mse_loss(out, y).item()}, abs=1e-12)
    manager = trained(task_loss=lambda o, t: F.multi_margin_loss(o, t))
    out = manager.predict(X)
    expected = {"accuracy": (out.argmax(1) == Y).double().mean().item(), "loss": F.multi_margin_loss(out, Y).item()}
    assert manager.evaluate((X, Y), 5) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("rule", ["local_ce", "sigprop", "forward_forward"])
def test_local_scores_are_evaluated_as_logits(rule: str) -> None:
    manager = trained(rule, num_classes=4)
    scores = manager.predict(X, by="local")
    found = manager.evaluate((X, Y), 6, by="local")
    expected = {
        "accuracy": (scores.argmax(1) == Y).double().mean().item(),
        "loss": F.cross_entropy(scores, Y).item(),
    }
    assert found == pytest.approx(expected, abs=1e-10)
    assert found != manager.evaluate((X, Y), 6)


def test_labels_of_tokens() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(x)))

    x, y = torch.randn(9, 4, 5), torch.randint(3, (9, 4))
    y[:3] = -100
    manager = imprint.attach(Tokens(), "local_ce", layers=["a"])
    manager.step(x, y)
    out = manager.predict(x)
    accuracy = (out.argmax(-1) == y)[y >= 0].double().mean().item()
    expected = {"accuracy": accuracy, "loss": F.cross_entropy(out.flatten(0, 1), y.flatten()).item()}
    assert manager.evaluate((x, y), 2) == pytest.approx(expected, abs=1e-12)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 4), nn.Linear(5, 4)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.a(x) + self.b(z)


def test_every_kind_of_data_gives_the_same_value() -> None:
    manager = trained()
    expected = manager.evaluate((X, Y), 6)
    data = TensorDataset(X, Y)
    assert manager.evaluate(data, 6) == expected
    assert manager.evaluate(DataLoader(data, 6)) == expected
    assert manager.evaluate([(X[:6], Y[:6]), [X[6:], Y[6:]]]) == pytest.approx(expected)
    assert manager.evaluate(DataLoader(data, 6, shuffle=True)) == pytest.approx(expected)
    two = imprint.attach(Two(), {"a": "backprop", "b": "backprop"})
    two.step((X, X), Y)
    expected = two.evaluate(((X, X), Y), 6)
    assert two.evaluate(DataLoader(TensorDataset(X, X, Y), 6)) == expected  # the last is y
    assert two.evaluate(({"x": X, "z": X}, Y), 6) == expected


def test_it_changes_nothing() -> None:
    manager = trained("sigprop", num_classes=4)
    manager.model[1].eval()
    loader = DataLoader(TensorDataset(X, Y), 4, shuffle=True, generator=torch.Generator().manual_seed(3))
    state, modes = manager.state_dict(), [m.training for m in manager.model.modules()]
    order = loader.generator.get_state()
    table = manager.metrics(reset=False)
    for by in ("output", "local"):
        first = manager.evaluate(loader, by=by)
        assert manager.evaluate(loader, by=by) == first
    assert differences(manager.state_dict(), state) == []
    assert [m.training for m in manager.model.modules()] == modes and not modes[2] and modes[1]
    assert torch.equal(loader.generator.get_state(), order)
    assert manager.metrics() == table
    assert all(p.grad is None for p in manager.model.parameters())


def test_before_bind_the_number_of_classes_is_read_off_the_output() -> None:
    manager = imprint.attach(net(), "local_ce")
    out = manager.predict(X)
    expected = {"accuracy": (out.argmax(1) == Y).double().mean().item(), "loss": F.cross_entropy(out, Y).item()}
    assert manager.evaluate((X, Y)) == pytest.approx(expected, abs=1e-12)
    assert manager.bound is None and manager.labels.num_classes is None


def test_what_cannot_be_evaluated_is_an_error() -> None:
    manager = trained()
    with pytest.raises(LabelError, match="no row has a label"):
        manager.evaluate((X, torch.full((23,), -100)))
    with pytest.raises(LabelError, match="targets are missing"):
        manager.evaluate(DataLoader(X, 4))
    with pytest.raises(ArgumentError, match="no source of batches"):
        manager.evaluate(X)
    with pytest.raises(ArgumentError, match="only once"):
        manager.evaluate(iter([(X, Y)]))
    with pytest.raises(DataError, match="not as many"):
        manager.evaluate((X, Y[:3]))
    with pytest.raises(DataError, match="not as many"):
        manager.evaluate((X[:0], Y[:0]))
    with pytest.raises(DataError, match="told apart"):
        manager.evaluate([{"x": X, "y": Y}])
    with pytest.raises(ArgumentError, match="batch_size"):
        manager.evaluate((X, Y), 0)


def test_a_bar_is_shown_on_demand(capsys: pytest.CaptureFixture[str]) -> None:
    manager = trained()
    manager.evaluate((X, Y), 6)
    assert capsys.readouterr().err == ""
    manager.evaluate((X, Y), 6, progress=True)
    assert "evaluate:" in capsys.readouterr().err


def test_the_tally_goes_on_from_its_state() -> None:
    labels = imprint.Labels(4)
    whole, first, second = (Tally(labels) for _ in range(3))
    out = torch.randn(23, 4)
    for rows in (slice(0, 9), slice(9, 23)):
        whole.add_batch(out[rows], Y[rows])
    first.add_batch(out[:9], Y[:9])
    second.load_state_dict(first.state_dict())
    second.add_batch(out[9:], Y[9:])
    assert second.value() == whole.value() != first.value()


def test_samples_are_shuffled_anew_each_time_and_none_is_lost() -> None:
    x, y = torch.arange(10.0)[:, None], torch.arange(10)
    own = torch.Generator().manual_seed(0)
    source = Samples({"a": x, "b": (x + 1,)}, y, 4, own)
    orders = []
    for _ in range(3):
        seen = list(source)
        assert [len(labels) for _, labels in seen] == [4, 4, 2] and len(source) == 3
        for xs, labels in seen:
            assert torch.equal(xs["a"][:, 0], labels.double()) and torch.equal(xs["b"][0][:, 0], labels + 1.0)
        orders.append([int(v) for _, labels in seen for v in labels])
    assert all(sorted(o) == list(range(10)) for o in orders) and len({tuple(o) for o in orders}) == 3
    assert [int(v) for _, labels in Samples(x, y, 4) for v in labels] == list(range(10))
    assert generators(source) == [own] and generators(batches((x, y), 3)) == []
    assert length(iter([])) is None and split(x)[1] is None
