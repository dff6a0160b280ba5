"""Who reads which sample when: exact from any position, disjoint between readers, complete within an epoch."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radio_distill.tars import Item
from radio_distill.visits import Deal, Reader, Source, fresh
from teachers.errors import UserError

few = settings(max_examples=60, deadline=None, derandomize=True)
# Not mostly empty: a reader gives up after many shards in a row without a picture.
sizes_of_shards = st.lists(st.integers(0, 7), min_size=1, max_size=6).filter(lambda s: 2 * s.count(0) <= len(s))


def reader_of(sizes, *, reader=0, readers=1, shuffle=5, start=None, weights=(1.0,), seed=3):
    """A reader of shards in memory; with several weights, as many sources of the same shards."""

    def read(shard, first=0, part=0, parts=1):
        count = sizes[int(shard)]
        items = [Item(shard, index, f"{shard}/{index}", b"picture", None) for index in range(count)]
        items = items or [Item(shard, 0, "", None, "holds no samples")]
        return (item for item in items if item.index >= first and item.index % parts == part)

    shards = tuple(str(number) for number in range(len(sizes)))
    sources = [Source(str(number), shards, weight) for number, weight in enumerate(weights)]
    start = start or fresh(sources, reader)
    return Reader(sources, "low", seed, reader, readers, shuffle, start, read)


def take(reader, count):
    return list(islice(iter(reader.__next__, None), count))


@few
@given(sizes_of_shards, st.integers(1, 5), st.integers(1, 9), st.integers(0, 40), st.sampled_from([(1.0,), (1.0, 3.0)]))
def test_a_row_goes_on_the_same_from_any_split(sizes, readers, shuffle, split, weights):
    for reader in {0, readers - 1}:
        options = {"reader": reader, "readers": readers, "shuffle": shuffle, "weights": weights}
        whole = take(reader_of(sizes, **options), split + 30)
        first = reader_of(sizes, **options)
        assert take(first, split) == whole[:split]
        position = json.loads(json.dumps(first.position()))
        assert take(reader_of(sizes, start=position, **options), 30) == whole[split:]


@few
@given(sizes_of_shards, st.integers(1, 6), st.integers(1, 9))
def test_every_sample_comes_once_an_epoch_over_all_readers(sizes, readers, shuffle):
    everything = {f"{shard}/{index}" for shard, size in enumerate(sizes) for index in range(size)}
    units = Deal(Source("0", tuple(map(str, range(len(sizes))))), "low", 3, readers).units
    epochs = defaultdict(Counter)
    for reader in range(readers):
        row = reader_of(sizes, reader=reader, readers=readers, shuffle=shuffle)
        # Far enough: every reader's block has passed the second epoch's last visit.
        while min(cursor[0] for cursor in row._began) < 2 * units:
            taken = next(row)
            epochs[taken.visit // units].update([taken.item.key] if taken.item.picture else [])
    for epoch in (0, 1):
        assert epochs[epoch] == Counter(everything)


def test_readers_beyond_the_shards_share_a_shard_without_sharing_a_sample():
    rows = [reader_of([20], reader=reader, readers=4) for reader in range(4)]
    keys = [taken.item.key for row in rows for taken in take(row, 5)]
    assert len(set(keys)) == 20


def test_blocks_permute_across_shards_and_epochs_differ():
    row = [taken.item.key for taken in take(reader_of([10, 10, 10], shuffle=100), 60)]
    assert sorted(row[:30]) == sorted(row[30:]) and row[:30] != row[30:]
    assert len({key[0] for key in row[:6]}) > 1  # not shard after shard
    assert row != [taken.item.key for taken in take(reader_of([10, 10, 10], shuffle=100, seed=4), 60)]


def test_no_sample_comes_twice_in_a_block_even_if_blocks_are_longer_than_an_epoch():
    row = [taken.item.key for taken in take(reader_of([4, 3], shuffle=1000), 70)]
    assert all(len(set(row[start : start + 7])) == 7 for start in range(0, 70, 7))


def test_a_mix_follows_its_weights():
    taken = take(reader_of([5, 5], shuffle=50, weights=(1.0, 3.0)), 4000)
    share = np.mean([one.source for one in taken])
    assert abs(share - 0.75) < 0.03


def test_shards_that_never_give_a_picture_stop_the_reader():
    def read(shard, *_):
        yield Item(shard, 0, "", None, "is gone")

    reader = Reader([Source("", ("a.tar", "b.tar"))], "low", 0, 0, 1, 100, fresh([0], 0), read)
    with pytest.raises(UserError, match="20 shards in a row gave no picture; the last, [ab].tar, is gone"):
        take(reader, 100)
