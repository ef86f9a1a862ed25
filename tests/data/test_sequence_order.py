"""The order of rows: each once, a function of seed and epoch, and alike in length where that is asked for."""

import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from imprint.data import SequenceDataset
from imprint.data.order import POOL, cut, generator_of, seed_of, windows

from references.sequences import blocks_of_order


def rows_of(data, **options):
    return [b["row"].tolist() for b in data.iter_batches(**options)]


def numbered(count, ticks=3, **options):
    return SequenceDataset(torch.ones(count, ticks, 1), extra={"row": torch.arange(count)}, **options)


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 5), st.integers(0, 5))
def test_pieces_are_whole_blocks(count, block, buffer, epoch):
    pieces = list(windows(count, generator_of(1, epoch), block, buffer))
    assert blocks_of_order(torch.cat(pieces).tolist(), block, buffer, count)
    assert all(len(piece) <= block * buffer for piece in pieces)
    plain = torch.cat(list(windows(count, None, block, buffer)))
    assert plain.tolist() == list(range(count))


def test_the_search_for_blocks_finds_a_row_out_of_place():
    assert blocks_of_order([2, 3, 1, 0, 4], 2, 1, 5) and not blocks_of_order([2, 0, 3, 1, 4], 2, 1, 5)
    assert blocks_of_order([2, 0, 3, 1, 4], 2, 2, 5) and not blocks_of_order([0, 1, 2, 2, 4], 2, 1, 5)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 7), st.booleans())
def test_batches_go_across_pieces(sizes, batch_size, drop_last):
    rows = torch.arange(sum(sizes))
    parts = list(cut(rows.split(sizes), batch_size, drop_last=drop_last))
    batches = [b for part in parts for b in part.batches]
    wanted = [b for b in rows.split(batch_size) if len(b) == batch_size or not drop_last]
    assert [b.tolist() for b in batches] == [b.tolist() for b in wanted]
    held = set()
    for part in parts:  # whoever keeps `rest` and fetches `rows` has every row of every batch
        held |= set(part.rows.tolist())
        assert all(set(b.tolist()) <= held for b in part.batches)
        held = set(part.rest.tolist())


def test_seed_and_epoch_decide():
    data = numbered(50, batch_size=8, seed=3)
    assert rows_of(data, epoch=4) == rows_of(data, epoch=4) == rows_of(numbered(50, batch_size=8, seed=3), epoch=4)
    orders = [rows_of(data, epoch=epoch, seed=seed) for epoch in range(4) for seed in (0, 1, -1, 2**63)]
    assert len({str(order) for order in orders}) == 16
    assert rows_of(data, epoch=1, seed=3) == rows_of(data, epoch=1) != rows_of(data, epoch=1, shuffle=False)
    assert seed_of(0, 1) != seed_of(1, 0)


def test_epochs_count_themselves():
    data = numbered(30, batch_size=8, seed=3)
    first, second = rows_of(data), rows_of(data)
    assert first != second and (first, second) == (rows_of(data, epoch=0), rows_of(data, epoch=1))
    assert data.epoch == 2  # a named epoch does not count
    data.set_epoch(1)
    assert rows_of(data) == second


def test_without_a_seed_the_global_random_numbers_decide():
    data = numbered(30, batch_size=8)
    torch.manual_seed(7)
    one = rows_of(data, epoch=0)
    other = rows_of(data, epoch=0)
    torch.manual_seed(7)
    assert rows_of(data, epoch=0) == one != other
    torch.manual_seed(7)
    found = data.iter_batches(epoch=0)  # the seed is drawn here
    torch.manual_seed(8)
    assert [b["row"].tolist() for b in found] == one
    own = torch.Generator().manual_seed(7)
    before = torch.get_rng_state()
    assert rows_of(data, epoch=0, generator=own) == one
    assert torch.equal(torch.get_rng_state(), before)
    rows_of(numbered(30, seed=1))
    rows_of(data, shuffle=False)
    assert torch.equal(torch.get_rng_state(), before)  # nothing is drawn that is not needed


def test_another_process_finds_the_same_order():
    program = (
        "import torch; from imprint.data import SequenceDataset\n"
        "data = SequenceDataset(torch.ones(50, 1, 1), seed=3, extra={'row': torch.arange(50)})\n"
        "print([b['row'].tolist() for b in data.iter_batches(epoch=4)])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(rows_of(numbered(50, seed=3), epoch=4))


@pytest.mark.parametrize("block", [None, 16])
def test_every_row_is_as_likely_first_as_any_other(block):
    data = numbered(64, batch_size=4, seed=0)
    data.block, data.buffer = block, 2
    first = torch.bincount(torch.tensor([rows_of(data, epoch=k)[0] for k in range(400)]).flatten(), minlength=64)
    assert 5 <= first.min() and first.max() <= 50  # 25 each, deviation 5


@given(st.integers(2, 90), st.integers(1, 6), st.integers(0, 3), st.booleans())
def test_buckets_hold_sequences_of_similar_length(count, batch_size, seed, shuffle):
    own = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 31, (count,), generator=own)
    data = SequenceDataset(
        torch.ones(count, 30, 1), lengths=lengths, batch_size=batch_size, seed=seed, extra={"row": torch.arange(count)}
    )
    batches = rows_of(data, epoch=0, shuffle=shuffle, bucket=True)
    assert sorted(r for b in batches for r in b) == list(range(count))
    assert batches == rows_of(data, epoch=0, shuffle=shuffle, bucket=True)
    whole = [b for b in batches if len(b) == batch_size]
    if count <= POOL * batch_size:  # sorted all together: batches do not overlap
        spans = sorted((min(lengths[b]), max(lengths[b])) for b in map(torch.tensor, whole))
        assert all(a[1] <= b[0] for a, b in pairwise(spans))


def test_buckets_save_padding_and_are_shuffled():
    lengths = torch.randint(1, 101, (1000,))
    data = SequenceDataset(torch.ones(1000, 100, 1), lengths=lengths, batch_size=20, seed=0)

    def ticks(bucket):
        return [b["x"].shape[1] for b in data.iter_batches(epoch=0, bucket=bucket)]

    assert sum(ticks(True)) < 0.62 * sum(ticks(False)) and len(ticks(True)) == len(ticks(False)) == 50
    assert ticks(True) != sorted(ticks(True))
    assert [b["x"].shape[1] for b in data.iter_batches(epoch=1, bucket=True)] != ticks(True)


def test_a_batch_is_whole_where_targets_may_go_along_with_the_ticks():
    x, lengths = torch.ones(4, 6, 2), [2, 3, 1, 2]
    for y, until in [(None, 3), ([0, 1, 0, 1], 3), (torch.zeros(4, 6), 6), (torch.zeros(4, 3).long(), 6)]:
        (batch,) = SequenceDataset(x, y, lengths=lengths).iter_batches()
        assert batch["x"].shape[1] == until
    (batch,) = SequenceDataset(x, lengths=lengths, extra={"mask": torch.ones(4, 6)}).iter_batches()
    assert batch["x"].shape[1] == 6
