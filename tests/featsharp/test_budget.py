"""Tiles at several levels, and a memory budget: pieces are as small as it asks for, and change no answer."""

from functools import partial

import pytest
import torch
from torch import nn

from featsharp import fusion
from featsharp.adaptive import adaptive_upsample
from featsharp.budget import by_channels, fitting, images_at_once, limit, on_meta, peak_bytes
from featsharp.config import FusionConfig, JbuConfig, SharpenerConfig
from featsharp.fusion import Fusion
from featsharp.jbu import JbuLevel
from featsharp.sharpener import Sharpener
from featsharp.tiles import look, shrink, stitch
from teachers.seeding import seeded, torch_rng
from tests.featsharp.test_sharpener import images, sharpener
from tests.featsharp.toys import NoisyColours, random_teacher


def test_peak_counts_what_is_alive_at_a_time_on_any_device():
    def three(x):
        a = x * 2
        b = (a + 1).view(-1)  # two
        del a
        return b.exp() + 1  # b, its exponential, the sum

    for device in ("meta", "cpu"):
        assert peak_bytes(three, torch.empty(10, 100, device=device)) == 3 * 4000


def test_as_much_as_fits_is_taken_in_whole_steps_and_never_less_than_one():
    assert fitting(1000, 300, 500, 8, 100) == 8 * 4
    assert fitting(10, 300, 500, 8, 100) == 8 and fitting(10, 300, 500, 8, 5) == 5
    assert fitting(10**9, 300, 500, 8, 100) == 100


@pytest.mark.parametrize("text, expected", [("4GiB", 4 * 2**30), ("1.5 MB", 1_500_000), (12345, 12345), (None, None)])
def test_a_budget_is_bytes_or_a_text_with_a_unit(text, expected):
    budget = SharpenerConfig(memory_budget=text).memory_budget
    assert budget == expected and type(budget) in (int, type(None))


@pytest.mark.parametrize("text", [0, -5, "much", "4 sheep"])
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(ValueError):
        SharpenerConfig(memory_budget=text)


def block(position: str = "alibi", window: int = 7) -> Fusion:
    with seeded("block"):
        return Fusion(16, 2, FusionConfig(heads=4, position=position, window=window, layer_scale=0.5)).eval()


def watch_bands(monkeypatch) -> list[tuple[int, int]]:
    """The rows that blocks work on, as they do (what is only estimated, without memory, aside)."""
    bands, band = [], Fusion._band

    def watched(self, maps, top, bottom):
        if not maps[0].is_meta:
            bands.append((top, bottom))
        return band(self, maps, top, bottom)

    monkeypatch.setattr(Fusion, "_band", watched)
    return bands


@pytest.mark.parametrize("position", ["alibi", "rope", "none"])
@pytest.mark.parametrize("h, w", [(37, 10), (25, 33)])
@torch.no_grad()
def test_the_block_in_bands_of_rows_answers_the_same(monkeypatch, position, h, w):
    made = block(position)
    maps = [torch.randn(2, 16, h, w, generator=torch_rng("maps", i)) for i in range(2)]
    whole = made(*maps)
    bands = watch_bands(monkeypatch)
    limit(made, 1)
    torch.testing.assert_close(made(*maps), whole, rtol=1e-5, atol=1e-6)
    assert bands == [(top, min(top + fusion.TILE, h)) for top in range(0, h, fusion.TILE)]


@pytest.mark.parametrize("factor", [2, 3])
@torch.no_grad()
def test_jbu_in_blocks_of_channels_answers_the_same(factor):
    with seeded("level"):
        level = JbuLevel(factor, JbuConfig())
    rng = torch_rng("jbu")
    source, guidance = torch.randn(2, 50, 5, 9, generator=rng), torch.rand(2, 3, 5 * factor, 9 * factor, generator=rng)
    whole = level(source, guidance)
    limit(level, 1)
    torch.testing.assert_close(level(source, guidance), whole, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_jbu_keeps_within_its_budget():
    """Beside the result, whose blocks are gathered in one map."""
    rng = torch_rng("jbu")
    source, kernel = torch.randn(1, 256, 16, 16, generator=rng), torch.rand(1, 49, 32, 32, generator=rng)
    upsample = partial(adaptive_upsample, factor=2)
    upsample(source, kernel)  # once makes constants that are kept
    whole, result = peak_bytes(upsample, source, kernel), 4 * source.nbytes
    for share in (0.3, 0.6, 0.9):
        taken = peak_bytes(partial(by_channels, upsample, budget=int(share * whole)), source, kernel)
        assert taken - result <= share * whole
    assert peak_bytes(partial(by_channels, upsample, budget=whole), source, kernel) == whole


@torch.no_grad()
def test_the_block_keeps_within_its_budget_and_uses_it():
    """Memory as it is really taken on the CPU, but for the result, whose bands are gathered in one map."""
    made = block()
    maps = [torch.randn(1, 16, 240, 24) for _ in range(2)]  # large beside what a tile takes
    everything, result = peak_bytes(made, *maps), maps[0].nbytes
    taken = []
    for share in (0.6, 0.9, 1.5, 2.0, 4.0):
        limit(made, int(share * everything))
        taken.append(peak_bytes(made, *maps))
        assert taken[-1] - result < min(share, 1.01) * everything
    assert taken == sorted(taken) and 0.5 * everything < taken[0] < taken[-1] == everything


@torch.no_grad()
def test_training_is_not_cut_up(monkeypatch):
    made = block()
    limit(made, 1)
    bands = watch_bands(monkeypatch)
    with torch.enable_grad():
        made(*(torch.randn(1, 16, 24, 8) for _ in range(2)))
    assert bands == [(0, 24)]


def test_a_teacher_call_takes_the_images_that_fit():
    teacher = random_teacher()
    one, two = (peak_bytes(on_meta(teacher), torch.empty(n, 3, 48, 64, device="meta")) for n in (1, 2))

    def allowed(**config) -> int | None:
        return images_at_once(teacher, (48, 64), SharpenerConfig(**config))

    assert two == 2 * one
    assert allowed(memory_budget=5 * one + 10) == 5 and allowed(memory_budget=1) == 1
    assert allowed(memory_budget=5 * one, max_tiles_per_call=3) == 3
    assert allowed() is None and allowed(max_tiles_per_call=3) == 3


def test_a_teacher_that_cannot_be_estimated_takes_one_image_at_a_time():
    teacher = NoisyColours((4, 4))  # its noise is no buffer, so it cannot follow to the meta device
    assert images_at_once(teacher, (16, 16), SharpenerConfig(memory_budget="1GB")) == 1


@pytest.mark.parametrize("config", [{}, {"factor": 3}, {"factor": 4, "progressive": True}])
def test_a_sharpener_under_the_smallest_budget_answers_the_same(config):
    made = sharpener(**config)
    x = images(48 * made.factor, 64 * made.factor)
    whole = made(x)
    tight = Sharpener(made.encoder, made.config.model_copy(update={"memory_budget": 1}), made.adapter)
    calls = []
    made.encoder.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    answer = tight(x)
    assert set(calls[-8:]) == {1} and tight.identity == made.identity
    torch.testing.assert_close(answer.spatial, whole.spatial, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(answer.summary, whole.summary, rtol=1e-5, atol=1e-6)


# Levels -----------------------------------------------------------------------------------------------------------


def test_tiles_of_every_level_come_from_one_call():
    teacher, x = random_teacher((16, 24)), images(96, 144)
    calls = []
    teacher.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    whole, (coarse, fine), _ = look(teacher, x, 6, (2, 6))
    assert calls == [2 * (1 + 4 + 36)] and whole.spatial.shape[-2:] == (2, 3)
    assert coarse.shape[-2:] == (4, 6) and fine.shape[-2:] == (12, 18)
    corner = teacher(shrink(x, (32, 48))[..., 16:, 24:]).spatial
    torch.testing.assert_close(coarse[..., 2:, 3:], corner)
    torch.testing.assert_close(fine, look(teacher, x, 6, (6,))[1])
    assert look(teacher, x, 6, ())[1] is None


@pytest.mark.parametrize("factor, levels", [(1, (1,)), (2, (2,)), (6, (2, 6)), (12, (2, 4, 12))])
def test_progressive_goes_through_the_primes(factor, levels):
    made = sharpener(random_teacher((16, 24)), factor=factor, progressive=True)
    assert made.adapter.upsampler.tile_levels == levels
    assert made(images(16 * factor, 24 * factor, 1)).spatial.shape == (1, 32, 2 * factor, 3 * factor)


def test_progressive_levels_start_from_what_the_last_one_made():
    upsampler = sharpener(factor=4, progressive=True).adapter.upsampler
    rng = torch_rng("levels")
    low, coarse, fine = (torch.randn(1, 32, 3 * n, 5 * n, generator=rng) for n in (1, 2, 4))
    image = torch.rand(1, 3, 96, 160, generator=rng)
    first, second = upsampler.stages
    expected = second(first(low, coarse, image), fine, image)
    assert torch.equal(upsampler(low, (coarse, fine), image), expected)


def test_progressive_upsamplers_without_tiles_ask_for_none():
    made = sharpener(factor=4, progressive=True, upsampler="bilinear")
    assert made.adapter.upsampler.tile_levels == ()
    assert made(images(192, 256, 1)).spatial.shape == (1, 32, 24, 32)


def test_position_noise_is_taken_from_every_tile_of_every_level():
    made = sharpener(factor=4, progressive=True)
    nn.init.normal_(made.adapter.bias.table, generator=torch_rng("table"))
    seen = []
    made.adapter.upsampler.register_forward_pre_hook(lambda _, given: seen.append(given))
    low, coarse, fine = (torch.zeros(1, 32, 6 * n, 8 * n) for n in (1, 2, 4))
    made.adapter(low, (coarse, fine), torch.rand(1, 3, 192, 256))
    bias, tiles = seen[0][0], seen[0][1]
    for n, stitched in zip((2, 4), tiles):
        torch.testing.assert_close(stitched, stitch(bias.repeat(n * n, 1, 1, 1), n))
