"""A cache of teachers' features: a hit has a miss's bits, damage is mended, and nothing else reaches the run."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import time

import pytest
import torch
from shard_maker import write_shards

from radio_distill import teacher_cache
from radio_distill.recipe import StreamConfig
from radio_distill.shards import ShardStream
from radio_distill.teacher_cache import TeacherCache
from teachers.catalogue import build
from teachers.features import Dims, Encoder, Features

KEYS = ["a", "b", "c", "d"]


class Watched(Encoder):
    """A random encoder that writes down how many images it is asked for."""

    def __init__(self, seed=0, summary=True):
        super().__init__()
        self.inner, self.asked, self.summary = build("random", seed=seed, image_size=32), [], summary
        self.name, self.identity, self.patch_size = "watched", f"{self.inner.identity}{summary}", self.inner.patch_size
        self.dims = Dims(self.inner.dims.summary if summary else None, self.inner.dims.spatial)

    def forward(self, images):
        self.asked.append(len(images))
        seen = self.inner(images)
        return Features(seen.summary if self.summary else None, seen.spatial)


def pictures(count=4, size=(32, 48), seed=0):
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(seed))


def same(ours, theirs):
    if ours.summary is None or theirs.summary is None:
        return ours.summary is theirs.summary and torch.equal(ours.spatial, theirs.spatial)
    return all(torch.equal(a, b) for a, b in zip(ours, theirs))


def entries(folder):
    return sorted(folder.rglob("*.safetensors"))


@pytest.mark.parametrize("summary", [True, False])
def test_a_hit_has_the_bits_of_the_miss_and_asks_the_encoder_nothing(tmp_path, summary):
    encoder, images = Watched(summary=summary), pictures()
    missed = TeacherCache(tmp_path, 1).features(encoder, images, KEYS)
    cache = TeacherCache(tmp_path, 1)
    assert same(cache.features(encoder, images, KEYS), missed) and encoder.asked == [4]
    assert cache.counts == {"hits": 4, "misses": 0, "rebuilt": 0}
    assert missed.spatial.dtype == torch.float32 and missed.spatial.shape[2:] == encoder.grid((32, 48))
    assert torch.equal(missed.spatial, encoder(images).spatial.bfloat16().float())


def test_only_the_missing_rows_are_computed_and_every_row_is_its_own(tmp_path):
    encoder, images, cache = Watched(), pictures(6), TeacherCache(tmp_path, 1)
    cache.features(encoder, images[[1, 3]], ["b", "d"])
    mixed = cache.features(encoder, images, ["a", "b", "c", "d", "e", "f"])
    assert encoder.asked == [2, 4] and cache.counts == {"hits": 2, "misses": 6, "rebuilt": 0}
    assert torch.allclose(mixed.spatial, encoder(images).spatial, atol=0.02)
    assert torch.allclose(mixed.summary, encoder(images).summary, atol=0.02)


def test_an_encoder_is_asked_once_who_it_is(tmp_path):
    class Forgetful(Watched):
        times = 0

        @property
        def identity(self):
            self.times += 1
            return "whoever"

        @identity.setter
        def identity(self, value): ...

    encoder, cache = Forgetful(), TeacherCache(tmp_path, 1)
    for _ in range(3):
        cache.features(encoder, pictures(), KEYS)
    assert encoder.times == 1 and cache.counts["hits"] == 8


def test_a_picture_twice_in_a_batch_is_computed_once(tmp_path):
    encoder, images = Watched(), pictures(2)
    seen = TeacherCache(tmp_path, 1).features(encoder, images[[0, 1, 0]], ["a", "b", "a"])
    assert encoder.asked == [2] and torch.equal(seen.spatial[0], seen.spatial[2])
    assert torch.allclose(seen.spatial[1], encoder(images).spatial[1], atol=0.02)


def test_another_size_note_encoder_or_precision_is_another_entry(tmp_path):
    cache, encoder = TeacherCache(tmp_path, 1), Watched()
    cache.features(encoder, pictures(1), ["a"])
    cache.features(encoder, pictures(1, (32, 32)), ["a"])
    cache.features(encoder, pictures(1), ["a"], note="sharpened")
    cache.features(Watched(seed=1), pictures(1), ["a"])
    with torch.autocast("cpu", torch.bfloat16):
        cache.features(encoder, pictures(1), ["a"])
    assert cache.counts == {"hits": 0, "misses": 5, "rebuilt": 0} and len(entries(tmp_path)) == 5


def damage_by(kind):
    def change(path):
        data = bytearray(path.read_bytes())
        if kind == "bit":
            data[-7] ^= 4
        path.write_bytes({"bit": data, "cut": data[: len(data) // 2], "empty": b"", "junk": b"x" * 99}[kind])

    return change


@pytest.mark.parametrize("kind", ["bit", "cut", "empty", "junk"])
def test_a_damaged_entry_is_made_again_and_counted(tmp_path, kind):
    encoder, images = Watched(), pictures()
    whole = TeacherCache(tmp_path, 1).features(encoder, images, KEYS)
    damage_by(kind)(entries(tmp_path)[2])
    cache = TeacherCache(tmp_path, 1)
    assert torch.allclose(cache.features(encoder, images, KEYS).spatial, whole.spatial, atol=0.02)
    assert cache.counts == {"hits": 3, "misses": 1, "rebuilt": 1} and encoder.asked == [4, 1]
    cache.features(encoder, images, KEYS)
    assert cache.counts["hits"] == 7


def test_an_entry_of_another_shape_is_not_believed(tmp_path):
    encoder = Watched()
    cache = TeacherCache(tmp_path, 1)
    cache.features(encoder, pictures(2), KEYS[:2])
    cache.features(encoder, pictures(1, (64, 64)), ["a"])
    files = sorted(entries(tmp_path), key=lambda path: path.stat().st_size)
    files[0].write_bytes(files[-1].read_bytes())  # sound in itself, but of another size
    assert cache.features(encoder, pictures(2), KEYS[:2]).spatial.shape[2:] == encoder.grid((32, 48))
    assert cache.counts["rebuilt"] == 1


def test_past_its_size_the_cache_is_read_but_not_written_and_says_so_once(tmp_path):
    encoder, images, said = Watched(), pictures(8), []
    TeacherCache(tmp_path, 1).features(encoder, images[:3], KEYS[:3])  # another run's
    used = sum(path.stat().st_size for path in entries(tmp_path))
    cache = TeacherCache(tmp_path, (used * 5 / 3 + 10) / 2**30, said.append)
    for _ in range(2):
        cache.features(encoder, images, [*KEYS, "e", "f", "g", "h"])
    assert len(entries(tmp_path)) == 5 and len(said) == 1 and "max_gib" in said[0]
    assert cache.counts == {"hits": 3 + 5, "misses": 5 + 3, "rebuilt": 0}


def test_a_disk_that_takes_no_more_does_not_end_the_run(tmp_path, monkeypatch):
    encoder, images, said = Watched(), pictures(), []

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    cache = TeacherCache(tmp_path, 1, said.append)
    assert torch.allclose(cache.features(encoder, images, KEYS).spatial, encoder(images).spatial, atol=0.02)
    assert len(said) == 1 and "No space left on device" in said[0]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_killed_write_leaves_no_entry_and_its_file_is_cleared_away(tmp_path, monkeypatch):
    encoder, images = Watched(), pictures()
    with monkeypatch.context() as killed:
        killed.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            TeacherCache(tmp_path, 1).features(encoder, images, KEYS)
    (left,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    os.utime(left, (time.time() - 2 * teacher_cache.STALE,) * 2)
    cache = TeacherCache(tmp_path, 1)
    cache.features(encoder, images, KEYS)
    assert cache.counts == {"hits": 0, "misses": 4, "rebuilt": 0} and not left.exists() and len(entries(tmp_path)) == 4


def test_features_that_are_not_finite_are_handed_on_but_not_kept(tmp_path):
    encoder, images = Watched(), pictures()
    images[1] = float("nan")
    assert not TeacherCache(tmp_path, 1).features(encoder, images, KEYS).spatial[1].isfinite().any()
    assert len(entries(tmp_path)) == 3


def test_processes_share_a_folder(tmp_path):
    keys, images = [f"{number}" for number in range(24)], pictures(24)

    def run(seed):
        torch.set_num_threads(1)
        encoder, cache = Watched(), TeacherCache(tmp_path, 1)
        for chunk in torch.randperm(24, generator=torch.Generator().manual_seed(seed)).split(4):
            cache.features(encoder, images[chunk], [keys[row] for row in chunk])

    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=run, args=(seed,)) for seed in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    cache, encoder = TeacherCache(tmp_path, 1), Watched()
    seen = cache.features(encoder, images, keys)
    assert cache.counts == {"hits": 24, "misses": 0, "rebuilt": 0} and len(list(tmp_path.rglob("*.tmp"))) == 0
    assert torch.allclose(seen.spatial, encoder(images).spatial, atol=0.02)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_crops_of_a_stream_come_again_where_they_are_whole_pictures(tmp_path, workers):
    shards = write_shards(tmp_path / "data", shards=2, samples=4)
    options = {"letterbox": True, "scale": (1, 1), "ratio": (1, 1), "flip": False, "workers": workers}
    config = StreamConfig(shards=shards, batch=4, size=32, shuffle=4, **options)
    encoder, cache = Watched(), TeacherCache(tmp_path / "cache", 1)
    with ShardStream(config, name="low", seed=0, sizes=lambda index: [(32, 32)]) as stream:
        for batch in itertools.islice(stream, 6):  # three visits of eight pictures
            seen = cache.features(encoder, batch.float((32, 32)), batch.crops)
            assert torch.allclose(seen.spatial, encoder.inner(batch.float((32, 32))).spatial, atol=0.02)
    assert cache.counts == {"hits": 16, "misses": 8, "rebuilt": 0}
