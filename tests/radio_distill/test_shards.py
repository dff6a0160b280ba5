"""Streams of batches: exact resume with and without processes, bad samples and their limit, held-out reading."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import pickle
import signal

import pytest
import torch
from PIL import Image
from shard_maker import PHOTOS, encoded, jpeg, write_shards, write_tar

from radio_distill import batches
from radio_distill.recipe import StreamConfig
from radio_distill.shards import ShardStream, read_all
from teachers.errors import UserError

SIZES = ([(16, 16), (14, 14)], [(16, 24)], [(32, 32)])


def stream_of(shards, position=None, rank=0, world=1, name="low", sizes=None, **config):
    config = StreamConfig(**({"shards": shards, "batch": 4, "size": 16, "shuffle": 10} | config))
    sizes = sizes or (lambda index: SIZES[index % 3])
    return ShardStream(config, name=name, seed=5, sizes=sizes, rank=rank, world=world, position=position)


def taken(stream, count):
    with stream:
        return list(itertools.islice(stream, count))


def same(ours, theirs):
    """Whether two rows of batches are equal to the bit, faults and positions included."""
    facts = [
        [(b.index, b.keys, b.crops, b.skipped, b.too_small, b.position, sorted(b.images)) for b in row]
        for row in (ours, theirs)
    ]
    pairs = [(a.images[size], b.images[size]) for a, b in zip(ours, theirs) for size in a.images]
    pairs += [(a.extents, b.extents) for a, b in zip(ours, theirs)]
    return facts[0] == facts[1] and all(torch.equal(*pair) for pair in pairs)


def saved(batch):
    return json.loads(json.dumps(batch.position, sort_keys=True))


@pytest.fixture
def faulty(tmp_path):
    """Three shards: one whole, one with an undecodable picture and a sample without one, one cut short."""
    pattern = write_shards(tmp_path, shards=3, samples=9)
    members = {f"{number}.jpg": jpeg(number) for number in range(100, 107)}
    write_tar(tmp_path / "s-01.tar", {**members, "bad.jpg": jpeg(7)[:300], "none.txt": b"words"})
    whole = (tmp_path / "s-02.tar").read_bytes()
    (tmp_path / "s-02.tar").write_bytes(whole[: len(whole) // 2])
    return pattern


@pytest.mark.parametrize("workers, ranks", [(0, [0]), (0, [0, 1]), (1, [0]), (2, [0])])
def test_a_stream_goes_on_bit_for_bit_from_any_batch(faulty, workers, ranks):
    for rank in ranks:
        options = {"workers": workers, "rank": rank, "world": len(ranks), "max_bad": 0.5}
        whole = taken(stream_of(faulty, **options), 16)
        assert [batch.index for batch in whole] == list(range(16))
        for split in (1, 5, 9) if not workers else (5,):
            stream = stream_of(faulty, position=saved(whole[split - 1]), **options)
            assert stream.notice is None
            assert same(taken(stream, 16 - split), whole[split:])


def test_all_ranks_positions_may_be_given_to_each(tmp_path):
    shards = write_shards(tmp_path, shards=4, samples=5)
    rows = [taken(stream_of(shards, rank=rank, world=2), 6) for rank in range(2)]
    positions = [saved(row[2]) for row in rows]
    for rank in range(2):
        assert same(taken(stream_of(shards, positions, rank=rank, world=2), 3), rows[rank][3:])


def test_other_ranks_or_workers_go_on_with_shards_nobody_had_begun(tmp_path):
    shards = write_shards(tmp_path, shards=8, samples=4)
    rows = [taken(stream_of(shards, rank=rank, world=2, shuffle=4), 2) for rank in range(2)]
    seen = {key for row in rows for batch in row for key in batch.keys}
    positions = [saved(row[-1]) for row in rows]
    stream = stream_of(shards, positions, workers=1, shuffle=4)
    assert "rank" not in stream.notice.split(":")[0] and "workers, world changed" in stream.notice
    after = taken(stream, 4)
    assert after[0].index == 2
    assert seen.isdisjoint(key for batch in after for key in batch.keys)


def test_another_list_of_shards_is_noticed(tmp_path):
    first = taken(stream_of(write_shards(tmp_path, shards=2, samples=4)), 1)[0]
    stream = stream_of(write_shards(tmp_path, shards=3, samples=4), saved(first))
    assert "sources changed" in stream.notice
    assert len(next(stream).keys) == 4


def test_views_are_one_crop_at_every_size_and_the_same_in_any_company(tmp_path):
    shards = write_shards(tmp_path, shards=2, samples=6)
    small = taken(stream_of(shards, sizes=lambda index: [(16, 16)]), 4)
    both = taken(stream_of(shards, sizes=lambda index: [(16, 16), (32, 32)]), 4)
    for one, two in zip(small, both):
        assert one.keys == two.keys
        assert torch.equal(one.images[16, 16], two.images[16, 16])
        shrunk = torch.nn.functional.avg_pool2d(two.float((32, 32)), 2)
        assert (shrunk - two.float((16, 16))).abs().mean() < 0.02


def test_two_streams_and_two_epochs_see_other_crops(tmp_path):
    shards = write_shards(tmp_path, shards=1, samples=4)
    low, later = taken(stream_of(shards, sizes=lambda index: SIZES[0]), 2)
    high = taken(stream_of(shards, sizes=lambda index: SIZES[0], name="high"), 1)[0]
    for other in (later, high):
        assert sorted(low.keys) == sorted(other.keys)
        order = [other.keys.index(key) for key in low.keys]
        assert not torch.equal(low.images[16, 16], other.images[16, 16][order])


def test_bad_samples_are_skipped_and_told_by_shard(faulty):
    row = taken(stream_of(faulty, max_bad=0.5, shuffle=100), 8)
    told = {}
    for batch in row:
        for shard, reasons in batch.skipped.items():
            told.setdefault(shard[-7:], set()).update(reasons)
        assert len(batch.keys) == 4 and "bad" not in batch.keys
    assert {reason.split(":")[0] for reason in told["-01.tar"]} == {"bad", "none"}
    assert [reason[:9] for reason in told["-02.tar"]] == ["broke off"]
    assert set(told) == {"-01.tar", "-02.tar"}


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_bad_samples_stop_with_the_worst_shard(tmp_path, workers):
    shards = write_shards(tmp_path, shards=2, samples=30)
    write_tar(tmp_path / "s-01.tar", {f"{number}.jpg": b"junk" for number in range(30)})
    with pytest.raises(
        UserError, match=r"samples were bad; the worst shard is .*s-01.tar with \d+: \d+: cannot be"
    ) as caught:
        taken(stream_of(shards, workers=workers, shuffle=60), 100)
    assert "streams.low.max_bad" in str(caught.value) and "shards look" in str(caught.value)


def test_a_few_bad_samples_among_many_do_not_stop(tmp_path):
    shards = write_shards(tmp_path, shards=1, samples=30)
    with_bad = {f"{number}.jpg": jpeg(number) for number in range(60)} | {"x.jpg": b"junk"}
    write_tar(tmp_path / "s-00.tar", with_bad)
    row = taken(stream_of(shards, batch=60), 25)  # 1500 samples, 25 of them bad
    assert sum(len(reasons) for batch in row for reasons in batch.skipped.values()) >= 20


def test_small_pictures_are_left_out_and_not_called_bad(tmp_path):
    write_shards(tmp_path, shards=1, samples=6, width=48, height=40)
    write_tar(tmp_path / "t.tar", {f"large{number}.jpg": jpeg(number, width=70, height=60) for number in range(6)})
    row = taken(stream_of(str(tmp_path / "*.tar"), min_side=50), 6)
    assert all(key.startswith("large") for batch in row for key in batch.keys)
    assert sum(batch.too_small for batch in row) > 6 and not any(batch.skipped for batch in row)


def test_a_filter_that_lets_nothing_pass_stops_instead_of_spinning(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "BARREN_SAMPLES", 200)
    shards = write_shards(tmp_path, shards=1, samples=6)
    with pytest.raises(UserError, match="200 samples in a row were of no use") as caught:
        taken(stream_of(shards, min_side=500), 1)
    assert "min_side = 500" in str(caught.value)


def test_a_shard_that_vanishes_is_passed_over(tmp_path):
    stream = stream_of(write_shards(tmp_path, shards=3, samples=4), shuffle=2, max_bad=0.5)
    next(stream)
    (tmp_path / "s-01.tar").unlink()
    row = list(itertools.islice(stream, 12))
    assert {reason for batch in row for reasons in batch.skipped.values() for reason in reasons} == {"is gone"}


def test_missing_shards_are_an_error_before_anything_is_read(tmp_path):
    with pytest.raises(UserError, match=r"streams.low.shards.b: no file matches"):
        mix = {"a": {"shards": write_shards(tmp_path, 1, 1)}, "b": {"shards": str(tmp_path / "x*.tar")}}
        stream_of(mix)


def test_sizes_of_different_aspect_are_refused(tmp_path):
    stream = stream_of(write_shards(tmp_path, 1, 4), sizes=lambda index: [(16, 16), (16, 24)])
    with pytest.raises(UserError, match="one crop cannot be both 16×16 and 16×24"):
        next(stream)


def test_a_mix_resumes_and_draws_from_all(tmp_path):
    a, b = write_shards(tmp_path / "a", 2, 5), write_shards(tmp_path / "b", 3, 5, width=80)
    mix = {"a": {"shards": a, "weight": 3}, "b": {"shards": b}}
    whole = taken(stream_of(mix), 12)
    assert same(taken(stream_of(mix, saved(whole[4])), 7), whole[5:])


def test_processes_outlive_signals_until_the_stream_is_closed(tmp_path):
    stream = stream_of(write_shards(tmp_path, shards=2, samples=8), workers=2)
    whole = taken(stream_of(write_shards(tmp_path, shards=2, samples=8), workers=2), 12)
    ours = [next(stream)]
    processes = list(stream._loader._answers._workers)
    for process in processes:
        os.kill(process.pid, signal.SIGINT)
        os.kill(process.pid, signal.SIGTERM)
    ours += list(itertools.islice(stream, 11))
    assert same(ours, whole)
    stream.close()
    for process in processes:
        process.join(5)
        assert not process.is_alive()


def test_makers_reach_processes_that_are_not_forked(tmp_path):
    stream = stream_of(write_shards(tmp_path, shards=2, samples=8))
    maker = pickle.loads(pickle.dumps(stream._loader._makers.makers[0]))
    batch, _ = maker.make(0, SIZES[0])
    assert same([next(stream)], [dataclasses.replace(batch, position=stream.position)])


def test_a_killed_process_is_a_clear_message(tmp_path):
    stream = stream_of(write_shards(tmp_path, shards=2, samples=8), workers=1)
    next(stream)
    os.kill(stream._loader._answers._workers[0].pid, signal.SIGKILL)
    with pytest.raises(UserError, match="a loader process died") as caught:
        list(itertools.islice(stream, 50))
    assert "streams.low.workers" in str(caught.value)


def test_a_mistake_in_our_code_keeps_its_traceback(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("a bug")

    monkeypatch.setattr(batches, "random_crop", fail)
    with pytest.raises(OSError, match="(?s)Caught OSError in DataLoader worker.*in fail.*a bug"):
        taken(stream_of(write_shards(tmp_path, shards=1, samples=8), workers=1), 1)


def test_a_stream_leaves_the_global_generator_alone(tmp_path):
    shards = write_shards(tmp_path, shards=1, samples=8)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    taken(stream_of(shards, workers=1), 2)
    assert torch.equal(torch.rand(3), expected)


def test_held_out_reading_is_in_order_once_and_whole(tmp_path):
    shards = write_shards(tmp_path, shards=2, samples=5)
    row = list(read_all(shards, 8, [(16, 16)], batch=3))
    assert [batch.keys for batch in row] == [["000", "001", "002"], ["003", "004", "005"], ["006", "007"]]
    assert row[-1].images[16, 16].shape == (2, 3, 16, 16)
    everything = list(read_all(shards, None, [(16, 16)], batch=3))
    assert sum(len(batch.keys) for batch in everything) == 10
    ranks = [[key for b in read_all(shards, 8, [(16, 16)], rank=rank, world=3) for key in b.keys] for rank in range(3)]
    assert sorted(itertools.chain(*ranks)) == [f"{number:03d}" for number in range(8)]
    assert ranks[1] == ["001", "004", "007"]


def test_held_out_reading_tells_every_fault_and_fails_only_when_nothing_is_good(faulty, tmp_path):
    row = list(read_all(faulty, None, [(16, 16)], batch=21))
    assert len(row) == 1 and len(row[0].keys) == 21  # the last shard broke off after the last picture
    assert sorted(shard[-7:] for shard in row[0].skipped) == ["-01.tar", "-02.tar"]
    write_tar(tmp_path / "junk.tar", {"a.jpg": b"junk"})
    with pytest.raises(UserError, match="no picture could be read; .*junk.tar: a: cannot be decoded"):
        list(read_all(str(tmp_path / "junk.tar"), None, [(16, 16)]))


def test_the_middle_of_a_picture_is_what_held_out_reading_takes(tmp_path):
    picture = Image.new("RGB", (60, 20), "red")
    picture.paste("blue", (20, 0, 40, 20))
    write_tar(tmp_path / "s.tar", {"a.png": encoded(picture, "PNG")})
    batch = next(read_all(str(tmp_path / "s.tar"), None, [(16, 16)]))
    assert batch.float((16, 16)).mean((0, 2, 3)).tolist() == pytest.approx([0, 0, 1], abs=0.02)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_names_its_crops_and_visits_differ_in_them(tmp_path, workers):
    shards = write_shards(tmp_path, shards=1, samples=4)
    first, second = taken(stream_of(shards, workers=workers, sizes=lambda index: [(16, 16)], scale=(0.3, 0.5)), 2)
    assert len(first.crops) == len(set(first.crops + second.crops)) / 2 == 4
    digests = [{crop.split()[0] for crop in batch.crops} for batch in (first, second)]
    if not workers:  # two readers share the shard: each sees one half of it, again and again
        assert len(digests[0]) == 4 and digests[0] == digests[1]
    assert torch.equal(first.extents, torch.ones(4, 2))


def test_a_letterboxed_stream_keeps_whole_pictures_and_says_how_much_of_a_view_they_fill(tmp_path):
    shards = write_shards(tmp_path, shards=1, samples=4)  # 48 wide, 40 high
    options = {
        "letterbox": True,
        "scale": (1, 1),
        "ratio": (1, 1),
        "flip": False,
        "sizes": lambda index: [(48, 48), (24, 24)],
    }
    batch, again = taken(stream_of(shards, **options), 2)
    assert sorted(batch.crops) == sorted(again.crops)
    assert torch.allclose(batch.extents, torch.tensor([40 / 48, 1.0]).expand(4, 2))
    assert not batch.images[48, 48][:, :, 40:].any() and not batch.images[24, 24][:, :, 20:].any()
    assert batch.images[48, 48][:, :, :40].float().std() > 10
    (held,) = read_all(shards, 3, [(48, 48)], letterbox=True)
    assert held.extents.shape == (3, 2) and torch.equal(held.extents, batch.extents[:3])
    for row, crop in enumerate(held.crops):
        assert torch.equal(held.images[48, 48][row], batch.images[48, 48][batch.crops.index(crop)])


def test_photographs_stream(tmp_path):
    if not PHOTOS.is_dir():
        pytest.skip(f"no photographs at {PHOTOS}")
    files = sorted(PHOTOS.glob("*.jpg"))[:40]
    write_tar(tmp_path / "p.tar", {file.name: file.read_bytes() for file in files})
    row = taken(stream_of(str(tmp_path / "p.tar"), batch=40, sizes=lambda index: [(64, 64), (56, 56)], shuffle=40), 2)
    assert sorted(row[0].keys) == sorted(row[1].keys) == [file.stem for file in files]
    means = torch.stack([row[0].float(size).mean((1, 2, 3)) for size in [(64, 64), (56, 56)]])
    assert (means[0] - means[1]).abs().max() < 0.01 and means.std() > 0.05
