"""The feature cache: extracts once, survives a kill, mends what is damaged, and refuses what is not a number."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from worlds import Noise, Student, Truth, make_split

from eval import feature_cache
from eval.feature_cache import FeatureCache, Stored, View
from teachers.errors import UserError
from teachers.features import Features


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "CHUNK", 20)
    said: list[str] = []
    cache = FeatureCache(tmp_path, batch=8, say=said.append)
    cache.said = said
    return cache


def fresh(cache: FeatureCache) -> FeatureCache:
    """What another process would see."""
    return FeatureCache(cache.folder, batch=8, say=cache.said.append)


VIEW = View(make_split(), (16, 16), "crop")
BATCHES = 7  # 48 pictures in files of 20, 20 and 8, 8 a forward pass


def test_features_are_the_encoders_in_order(cache):
    encoder = Truth()
    stored = cache.get(encoder, VIEW, "backbone.spatial")
    images = torch.stack([VIEW.split.image(i) for i in range(48)]).float() / 255
    torch.testing.assert_close(stored.all(), encoder(images).spatial)
    torch.testing.assert_close(torch.cat(list(stored.chunks())), stored.all())
    torch.testing.assert_close(stored[torch.tensor([47, 3, 21])], stored.all()[[47, 3, 21]])


def test_large_parts_are_read_from_disk_picture_by_picture(cache, monkeypatch):
    small = cache.get(Truth(), VIEW, "backbone.spatial")
    monkeypatch.setattr(feature_cache, "IN_MEMORY", 0)
    large = cache.get(Truth(), VIEW, "backbone.spatial")
    assert large._memory is None
    torch.testing.assert_close(large.all(), small.all())
    torch.testing.assert_close(torch.cat(list(large.chunks())), small.all())
    torch.testing.assert_close(large[torch.tensor([47, 3, 21])], small[torch.tensor([47, 3, 21])])


def test_one_pass_serves_all_parts_that_were_announced(cache):
    teacher = Truth("teacher")
    student = Student({"a": (Noise("head"), teacher)})
    parts = ["backbone.summary", "backbone.spatial", "a.spatial"]
    cache.want(student, VIEW, parts)
    for part in parts:
        cache.get(student, VIEW, part)
    assert student.calls == BATCHES
    fresh(cache).get(student, VIEW, "a.spatial")
    assert student.calls == BATCHES  # another process reads the files
    fresh(cache).get(student, VIEW, "a.summary")
    assert student.calls == 2 * BATCHES  # not announced: one more pass


def test_another_size_dtype_or_encoder_is_another_entry(cache):
    encoder = Truth()
    cache.get(encoder, VIEW, "backbone.summary")
    assert cache.get(encoder, View(VIEW.split, (32, 32), "crop"), "backbone.spatial").all().shape[2:] == (8, 8)
    assert len(cache.get(Noise("other"), VIEW, "backbone.summary")) == 48
    half = FeatureCache(cache.folder, "bf16", say=cache.said.append)
    assert half.get(Noise("other"), VIEW, "backbone.summary").all().dtype == torch.float32
    assert len({path.name for path in cache.folder.glob("*/*")}) == 3


def test_both_fits_of_a_square_picture_are_one_entry():
    assert View(make_split(), (16, 16), "crop").key == View(make_split(), (16, 16), "stretch").key
    assert View(make_split(), (16, 32), "crop").key != View(make_split(), (16, 32), "stretch").key


def test_pictures_read_in_another_way_are_another_entry_and_the_truths_are_not(monkeypatch):
    before = VIEW.key
    assert View(replace(VIEW.split, truth_identity="corrected"), (16, 16), "crop").key == before
    monkeypatch.setattr(feature_cache, "PICTURES", feature_cache.PICTURES + 1)
    assert VIEW.key != before


def test_a_killed_extraction_goes_on_where_it_was(cache):
    class Dies(Truth):
        def see(self, pixels):
            if self.calls > 4:
                raise KeyboardInterrupt
            return super().see(pixels)

    with pytest.raises(KeyboardInterrupt):
        cache.get(Dies(), VIEW, "backbone.summary")
    encoder = Truth()
    stored = fresh(cache).get(encoder, VIEW, "backbone.summary")
    assert encoder.calls == 4  # the first file of three stood already
    assert len(stored.all()) == 48
    assert not [path for path in cache.folder.rglob("*") if path.name.endswith(".tmp")]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "short"])
def test_a_damaged_file_is_made_again(cache, damage):
    encoder = Truth()
    wanted = cache.get(encoder, VIEW, "backbone.summary").all()
    file = sorted(cache.folder.rglob("00001.safetensors"))[0]
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[-7] ^= 64
    file.write_bytes({"cut": content[:-30], "flipped": content, "empty": b""}.get(damage, content))
    if damage == "short":
        (file.parent / "00002.safetensors").replace(file)  # sound, but of other pictures
    encoder.calls = 0
    torch.testing.assert_close(fresh(cache).get(encoder, VIEW, "backbone.summary").all(), wanted)
    assert encoder.calls == (4 if damage == "short" else 3)
    assert any("damaged" in line and "00001" in line for line in cache.said)


def test_features_that_are_no_numbers_are_refused_with_their_picture(cache):
    encoder = Noise()
    honest = encoder.see

    def see(pixels):
        features = honest(pixels)
        features.summary[pixels[:, 2, 0, 0] == 29] = torch.nan
        return features

    encoder.see = see
    with pytest.raises(UserError, match="noise: backbone.summary of picture 29 of world/val holds NaN"):
        cache.get(encoder, VIEW, "backbone.summary")
    cache.get(Noise("silent"), VIEW, "backbone.spatial")


def test_a_part_that_an_encoder_has_not_is_named(cache):
    encoder = Noise()
    encoder.see = lambda pixels: Features(None, torch.zeros(len(pixels), 8, 4, 4))
    with pytest.raises(UserError, match="noise has no backbone.summary\n.*it has backbone.spatial"):
        cache.get(encoder, VIEW, "backbone.summary")


def test_crop_keeps_the_middle_and_stretch_keeps_everything():
    from dataclasses import replace

    wide = torch.zeros(3, 8, 24, dtype=torch.uint8)
    wide[:, :, 8:16] = 200
    split = replace(make_split(), image=lambda i: wide, shape=None)
    assert View(split, (8, 8), "crop").image(0).eq(200).all()
    stretched = View(split, (8, 24), "stretch").image(0)
    assert torch.equal(stretched, wide)


def test_stored_counts_its_pictures(cache):
    assert isinstance(cache.get(Truth(), VIEW, "backbone.summary"), Stored)
    assert len(cache.get(Truth(), VIEW, "backbone.summary")) == 48


@pytest.mark.parametrize("has", [True, False])
def test_bf16_is_computed_only_where_the_device_has_it(cache, monkeypatch, has):
    """A CPU without it would emulate it, nine times slower; files are bf16 either way."""
    seen = []

    class Watched(Truth):
        def see(self, pixels):
            seen.append(torch.is_autocast_enabled("cpu"))
            return super().see(pixels)

    monkeypatch.setattr(feature_cache, "computes_in_bf16", lambda device: has)
    FeatureCache(cache.folder, "bf16", batch=48, say=cache.said.append).get(Watched(), VIEW, "backbone.summary")
    assert set(seen) == {has}
