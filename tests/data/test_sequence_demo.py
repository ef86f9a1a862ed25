"""The loader of the demonstrations: made-up sequences that can be learnt, files, and options that are refused."""

import pytest
import torch
from torch import nn

import imprint.data_helper
from imprint.data import SequenceDataset, load_demo_dataset, load_micro_step_demo_dataset
from imprint.errors import ArgumentError, DataError


def test_what_it_makes():
    data = load_demo_dataset(samples=40, seq_len=9, feature_dim=5, num_classes=3, batch_size=8, seed=4)
    assert (len(data), data.seq_len, data.feature_dim, data.num_classes) == (40, 9, 5, 3)
    assert (data.batch_size, data.batches_per_epoch, data.seed, data.target_dim) == (8, 5, 4, 3)
    assert torch.bincount(data.y).tolist() == [14, 13, 13] and data.lengths is None
    torch.testing.assert_close(data.x.mean((0, 1)), torch.zeros(5), rtol=0, atol=1e-6)
    ragged = load_demo_dataset(samples=200, seq_len=9, ragged=True)
    assert ragged.lengths.unique().tolist() == [4, 5, 6, 7, 8, 9]
    assert load_demo_dataset(seq_len=1, ragged=True, samples=8).lengths.tolist() == [1] * 8


def test_the_same_seed_gives_the_same_sequences():
    first = load_demo_dataset(seed=1)
    assert torch.equal(first.x, load_demo_dataset(seed=1).x) and not torch.equal(first.x, load_demo_dataset(seed=2).x)
    assert not torch.equal(first.x, load_demo_dataset(split="test", seed=1).x)
    before = torch.get_rng_state()
    load_demo_dataset()
    assert torch.equal(before, torch.get_rng_state())


def test_signal_and_noise():
    """The signal is a plane: two of eight features say all but the noise."""
    options = {"samples": 500, "seq_len": 20, "feature_dim": 8, "normalize": False}
    for noise in (0.0, 0.5):
        x = load_demo_dataset(noise=noise, **options).x.flatten(0, 1).double()
        spectrum = torch.linalg.eigvalsh(x.T @ x / len(x))
        assert spectrum.sum() == pytest.approx(8 * (1 + noise**2), rel=0.02)
        assert spectrum[:6].mean() == pytest.approx(noise**2, abs=0.01)


def test_classes_are_frequencies_and_splits_share_the_rest():
    """x(t + 1) + x(t - 1) = 2 cos(w) x(t) for each class, in both splits; with another class's w it is not so."""
    for split in ("train", "val", "test"):
        data = load_demo_dataset(split=split, noise=0.0, normalize=False)
        for c in range(4):
            x = data.x[data.y == c]
            error = [
                (x[:, 2:] + x[:, :-2] - 2 * torch.tensor(0.9 * torch.pi * (k + 1) / 4).cos() * x[:, 1:-1]).abs().max()
                for k in range(4)
            ]
            assert error[c] < 1e-4 and min(e for k, e in enumerate(error) if k != c) > 0.5


def test_a_small_net_learns_the_classes_from_the_past_but_not_from_one_tick():
    train, test = load_demo_dataset(), load_demo_dataset(split="test")
    cell, head, one = (
        nn.GRU(16, 24, batch_first=True),
        nn.Linear(24, 4),
        nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 4)),
    )
    optimizer = torch.optim.Adam([*cell.parameters(), *head.parameters(), *one.parameters()], 0.01)
    for epoch in range(12):
        for batch in train.iter_batches(epoch=epoch):
            loss = nn.functional.cross_entropy(head(cell(batch["x"])[0][:, -1]), batch["y"])
            loss = loss + nn.functional.cross_entropy(one(batch["x"][:, -1]), batch["y"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    hits = (head(cell(test.x)[0][:, -1]).argmax(1) == test.y).double().mean()
    assert hits > 0.9 and (one(test.x[:, -1]).argmax(1) == test.y).double().mean() < 0.5


def test_files(digits):
    train, test = load_demo_dataset(digits, seed=3), load_demo_dataset(digits, "test", config={"batch_size": 50})
    assert (train.seq_len, train.feature_dim, train.num_classes, len(test), test.batch_size) == (8, 8, 10, 360, 50)
    plain = SequenceDataset.from_h5(digits, "test")
    assert torch.equal(test.x, plain.normalized(like=SequenceDataset.from_h5(digits)).x)
    assert torch.equal(load_demo_dataset(digits, "test", normalize=False).x, plain.x)
    assert torch.equal(load_demo_dataset(config={"path": digits}).x, train.x)
    disk = load_demo_dataset(digits, "test", in_memory=False)
    torch.testing.assert_close(next(disk.iter_batches(False))["x"], test.x[:32], rtol=1e-5, atol=1e-6)
    with pytest.raises(DataError, match="it lacks val/x"):
        load_demo_dataset(digits, "val")


def test_without_labels(digits):
    for data in (
        load_micro_step_demo_dataset(seq_len=12),
        load_micro_step_demo_dataset(digits, config={"labels": True}),
    ):
        assert data.y is None and data.num_classes is None and data.target_dim is None
        assert list(next(data.iter_batches())) == ["x"]
    assert torch.equal(load_micro_step_demo_dataset(seed=5).x, load_demo_dataset(seed=5).x)
    assert imprint.data_helper.load_micro_step_demo_dataset is load_micro_step_demo_dataset


def test_options_come_before_the_config():
    data = load_demo_dataset(config={"seq_len": 10, "samples": 6}, seq_len=12)
    assert (data.seq_len, len(data)) == (12, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seqlen": 3}, r"unknown option 'seqlen'(.|\n)*did you mean 'seq_len'"),
        ({"config": {"batchsize": 3}}, r"unknown option 'batchsize'(.|\n)*did you mean 'batch_size'"),
        ({"split": "tests"}, r"no such split(.|\n)*train \| val \| test"),
        ({"seq_len": 0}, "seq_len is not a count"),
        ({"batch_size": 0}, "batch_size is not a count"),
        ({"noise": -0.1}, "noise is a deviation"),
    ],
)
def test_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        load_demo_dataset(**options)


def test_labels_cannot_be_asked_for_without_labels():
    with pytest.raises(ArgumentError, match="it has no labels"):
        load_micro_step_demo_dataset(labels=True)


@pytest.mark.data
def test_real_files(datasets):
    train, test = (load_demo_dataset(datasets / "japanesevowels.h5", split) for split in ("train", "test"))
    assert (len(train), len(test), test.num_classes) == (270, 370, 9)
    assert torch.equal(test.scale.mean, train.scale.mean)
    valid = torch.cat([x[:n] for x, n in zip(train.x, train.lengths, strict=True)])
    torch.testing.assert_close(valid.mean(0), torch.zeros(12), rtol=0, atol=1e-4)
    torch.testing.assert_close(valid.std(0, unbiased=False), torch.ones(12), rtol=0, atol=1e-4)
