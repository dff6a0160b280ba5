"""Upsamplers that weigh coarse cells by what the image shows: against dense definitions, at any width, in pieces."""

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from featsharp.budget import limit
from featsharp.config import SharpenerConfig
from featsharp.guidance import Rotary
from featsharp.sharpener import Sharpener
from featsharp.upsamplers import Upsampler, build_upsampler
from featsharp.upsamplers.anyup import AnyWidth
from featsharp.upsamplers.base import enlarge
from featsharp.upsamplers.resfu import PairedDifference, average, guided_filter, smoothed
from teachers.seeding import seeded, torch_rng
from tests.featsharp.toys import attention_pieces, random_teacher, with_gradients

FACTORS = (1, 2, 3, 5, 7)
GRIDS = ((5, 5), (3, 7), (1, 6))
ATTENTION = ("jafar", "anyup", "naf")
SMALL = {"width": 32, "heads": 2, "blocks": 1}
SECTIONS = {"resfu": {"width": 8}, "fusion": {"heads": 4}} | dict.fromkeys(ATTENTION, SMALL)


def upsampler(name: str, factor: int = 2, width: int = 8, moved: float = 0.05, **options) -> Upsampler:
    """A small one; its parameters lie `moved` away from where they start."""
    config = SharpenerConfig.model_validate(SECTIONS | {"upsampler": name, "factor": factor} | options)
    with seeded("attention upsampler"):
        made = build_upsampler(config, width)
    with torch.no_grad():
        for i, parameter in enumerate(made.parameters()):
            parameter.add_(moved * torch.randn(parameter.shape, generator=torch_rng("moved", i)))
    return made


def inputs(grid: tuple[int, int], factor: int = 2, width: int = 8, count: int = 2, pixels: int = 4) -> list:
    """Map, map of the tiles, image."""
    fine, rng = [n * factor for n in grid], torch_rng("attention", *grid, factor, width)
    image = 4 * torch.rand(count, 3, *(n * pixels for n in fine), generator=rng) - 2
    return [*(torch.randn(count, width, *size, generator=rng) for size in (grid, fine)), image]


# The upsamplers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*ATTENTION, "resfu", "featsharp_release", "featsharp_slim"])
@pytest.mark.parametrize("factor", FACTORS)
def test_any_factor_and_grid_gives_the_fine_map(name, factor):
    made = upsampler(name, factor)
    for grid in GRIDS:
        with torch.no_grad():
            out = made(*inputs(grid, factor))
        assert out.shape == (2, 8, grid[0] * factor, grid[1] * factor) and out.isfinite().all()


@pytest.mark.parametrize("name", [*ATTENTION, "resfu"])
@pytest.mark.parametrize("grid", GRIDS)
def test_results_are_weighted_means_of_the_coarse_cells(name, grid):
    made, (low, tiles, image) = upsampler(name, 3, moved=0.3), inputs(grid, 3)
    with torch.no_grad():
        out = made(low, tiles, image)
        flat = made(torch.full_like(low, 1.5), tiles, image)
    lowest, highest = low.amin((2, 3), True), low.amax((2, 3), True)
    assert (out >= lowest - 1e-5).all() and (out <= highest + 1e-5).all()
    torch.testing.assert_close(flat, torch.full_like(flat, 1.5))


@pytest.mark.parametrize("name", [*ATTENTION, "resfu"])
def test_at_the_start_they_are_about_bilinear(name):
    made, (_, tiles, image) = upsampler(name, moved=0.0), inputs((8, 8))
    low = F.interpolate(torch.randn(2, 8, 3, 3, generator=torch_rng("low")), size=(8, 8), mode="bicubic")
    with torch.no_grad():
        error = (made(low, tiles, image) - enlarge(low, 2)).square().mean()
    assert error < 0.05 * low.var()
    if name in ATTENTION:  # without `sigma`, as published, only the whole window's mean
        blur = upsampler(name, moved=0.0, **{name: SMALL | {"sigma": None}})
        assert "sigma" not in dict(blur.named_parameters())
        with torch.no_grad():
            assert (blur(low, tiles, image) - enlarge(low, 2)).square().mean() > 0.2 * low.var()


@pytest.mark.parametrize("name", [*ATTENTION, "resfu"])
def test_the_image_decides(name):
    made, (low, tiles, image) = upsampler(name), inputs((5, 5))
    with torch.no_grad():
        assert not torch.allclose(made(low, tiles, image), made(low, tiles, image.flip(3)), atol=1e-3)


@pytest.mark.parametrize("name", ["anyup", "naf"])
def test_the_same_weights_serve_any_width(name):
    narrow, wide = upsampler(name, width=8, moved=0.3), upsampler(name, width=16)
    wide.load_state_dict(narrow.state_dict())
    low, tiles, image = inputs((3, 7))
    with torch.no_grad():
        one, twice = narrow(low, tiles, image), wide(torch.cat([low, low], 1), None, image)
        torch.testing.assert_close(twice, torch.cat([one, one], 1), rtol=1e-4, atol=1e-5)
        order = torch.randperm(8, generator=torch_rng("order"))
        torch.testing.assert_close(narrow(low[:, order], tiles, image), one[:, order], rtol=1e-4, atol=1e-5)


def test_naf_is_linear_in_the_map_and_the_others_are_not():
    for name in ATTENTION:
        made, (low, tiles, image) = upsampler(name, moved=0.3), inputs((3, 7))
        other = torch.randn(low.shape, generator=torch_rng("other"))
        with torch.no_grad():
            both = made(low, tiles, image) + made(other, tiles, image)
            assert torch.allclose(made(low + other, tiles, image), both, atol=1e-5) == (name == "naf")


@pytest.mark.parametrize("name", [*ATTENTION, "featsharp_release"])
def test_an_upsampler_in_pieces_gives_the_same_map_and_gradients(name):
    given = inputs((3, 7))
    results = []
    for most in (None, 20):
        made = upsampler(name, max_cells_per_call=most)
        results.append(with_gradients(made(*given), list(made.parameters())))
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ATTENTION)
def test_upsamplers_hear_of_the_memory_budget(name, monkeypatch):
    pieces = attention_pieces(monkeypatch)
    made, given = upsampler(name), inputs((9, 10))
    with torch.no_grad():
        whole = made(*given)
        assert len(pieces) == 1
        limit(made, 1)
        torch.testing.assert_close(made(*given), whole)
    assert len(pieces) > 4


@pytest.mark.parametrize("name", [*ATTENTION, "resfu"])
def test_bf16_weights_and_autocast_follow_fp32(name):
    made, given = upsampler(name), inputs((6, 9), pixels=2)
    with torch.no_grad():
        full = made(*given)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = made(*given)
        half = made.bfloat16()(*(x.bfloat16() for x in given))
    assert half.dtype == torch.bfloat16
    for out in (mixed, half):
        assert (out.float() - full).square().mean() < 0.01 * full.var()


@pytest.mark.parametrize("name", [*ATTENTION, "resfu", "featsharp_release", "featsharp_slim"])
def test_gradients_reach_every_parameter_in_the_published_size(name):
    with seeded("published"):
        made = build_upsampler(SharpenerConfig(upsampler=name, fusion={"heads": 8, "layer_scale": 0.1}), 16)
    out = made(*inputs((3, 2), width=16, pixels=3))
    out.backward(torch.randn(out.shape, generator=torch_rng("upstream")))
    assert not [key for key, p in made.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not [key for key, p in made.named_parameters() if p.ndim == 0 or not p.grad.isfinite().all()]


@pytest.mark.parametrize("section, wrong", [("jafar", {"width": 40}), ("naf", {"heads": 3}), ("anyup", {"window": 4})])
def test_sizes_that_do_not_divide_are_refused(section, wrong):
    with pytest.raises(ValidationError, match=section):
        SharpenerConfig.model_validate({section: wrong})


# Their parts -----------------------------------------------------------------------------------------------------


def test_turned_features_are_alike_by_distance_alone():
    rotary, rng = Rotary(16, heads=2), torch_rng("rotary")
    q, k = (torch.randn(1, 16, 1, 1, generator=rng).expand(-1, -1, 6, 9) for _ in range(2))
    with torch.no_grad():
        alike = torch.einsum("bcyx,bcuv->yxuv", rotary(q), rotary(k))
        torch.testing.assert_close(alike[0, 0, 2, 3], alike[3, 5, 5, 8])
        torch.testing.assert_close(alike[4, 8, 1, 2], alike[3, 6, 0, 0])
        torch.testing.assert_close(rotary(q).norm(dim=1), q.norm(dim=1))
        assert not torch.allclose(alike[0, 0, 2, 3], alike[0, 0, 3, 2])


def test_a_place_turns_features_the_same_at_every_size():
    rotary, x = Rotary(16), torch.randn(1, 16, 1, 1, generator=torch_rng("size"))
    with torch.no_grad():  # the centre of the middle cell is the middle of the image, of 3 cells or of 9
        coarse, fine = rotary(x.expand(-1, -1, 3, 5)), rotary(x.expand(-1, -1, 9, 15))
    torch.testing.assert_close(coarse[..., 1, 2], fine[..., 4, 7])
    torch.testing.assert_close(coarse, fine[..., 1::3, 1::3])


def test_channels_are_filtered_alone_and_averaged():
    made, x = AnyWidth(6, 3), torch.randn(2, 150, 4, 5, generator=torch_rng("any width"))
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    answers = torch.stack([F.conv2d(padded[:, i : i + 1], made.filters.weight).softmax(1) for i in range(150)])
    out = made(x)
    torch.testing.assert_close(out, answers.mean(0))
    for a, b in zip(*(with_gradients(y, [made.filters.weight]) for y in (out, answers.mean(0)))):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("grid", GRIDS)
def test_resfu_averages_places_of_the_bilinear_map_a_coarse_cell_apart(grid, factor):
    rng, k = torch_rng("places", *grid, factor), 5
    low = torch.randn(2, 3, *grid, generator=rng)
    weights = torch.randn(2, k * k, *(n * factor for n in grid), generator=rng).softmax(1)
    border = k // 2 + 1  # coarse cells beyond the border are those at it
    large = enlarge(F.pad(low, (border,) * 4, mode="replicate"), factor)[..., factor:, factor:]
    h, w = weights.shape[-2:]
    expected = sum(
        weights[:, i * k + j, None] * large[..., i * factor : i * factor + h, j * factor : j * factor + w]
        for i in range(k)
        for j in range(k)
    )
    torch.testing.assert_close(average(low, weights, factor), expected)


def test_paired_differences_are_their_definition():
    rng, made = torch_rng("pairs"), PairedDifference(3, 3, factor=2)
    query, key = (torch.randn(1, 3, 6, 8, generator=rng) for _ in range(2))
    padded = F.pad(key, (2, 2, 2, 2), mode="replicate")
    away = torch.stack([padded[..., 2 * i : 2 * i + 6, 2 * j : 2 * j + 8] for i in range(3) for j in range(3)]) - query
    expected = torch.einsum("tbcyx,oct->boyx", away, made.taps.weight.flatten(2)) + made.taps.bias[:, None, None]
    torch.testing.assert_close(made(query, key), expected)


def test_the_guided_filter_carries_a_map_to_the_edges_of_what_it_follows():
    guidance = torch.zeros(1, 1, 12, 16)
    guidance[..., 7:] = 10.0  # the edge runs through the middle of a coarse cell
    low = 0.3 * F.avg_pool2d(guidance, 2) - 1
    out = guided_filter(low, guidance, 2)
    torch.testing.assert_close(out, 0.3 * guidance - 1, rtol=0, atol=0.05)
    assert (enlarge(low, 2) - (0.3 * guidance - 1)).abs().max() > 0.5


def test_smoothing_keeps_constants_and_loses_what_is_finer_than_a_coarse_cell():
    stripes = torch.ones(1, 2, 20, 28)
    torch.testing.assert_close(smoothed(stripes, 3), stripes)
    stripes[..., ::2] = -1
    assert smoothed(stripes, 4)[..., 4:-4].abs().max() < 0.15


# FeatSharp's variants --------------------------------------------------------------------------------------------


def test_the_release_is_jafar_and_tiles_without_layer_norm():
    release, given = upsampler("featsharp_release", moved=0.0), inputs((5, 5))
    assert not [m for m in release.modules() if isinstance(m, torch.nn.LayerNorm)]
    with torch.no_grad():
        for gamma in (release.fusion.gamma1, release.fusion.gamma2):
            gamma.zero_()
        assert torch.equal(release(*given), release.jafar(*given))
        low, tiles, image = given
        release.fusion.gamma1.fill_(1.0)
        assert not torch.allclose(release(low, tiles, image), release(low, -tiles, image))


@pytest.mark.parametrize("layer_norm", [True, False])
def test_slim_begins_as_its_jbu_and_then_listens_to_the_tiles(layer_norm):
    made = upsampler("featsharp_slim", moved=0.0, fusion={"heads": 4, "layer_norm": layer_norm})
    low, tiles, image = inputs((3, 7))
    with torch.no_grad():
        for gamma in (made.fusion.gamma1, made.fusion.gamma2):
            gamma.zero_()
        assert torch.equal(made(low, tiles, image), made.jbu(low, image))
        made.fusion.gamma2.fill_(1.0)
        assert not torch.allclose(made(low, tiles, image), made(low, -tiles, image))


def test_slim_in_bands_under_a_memory_budget_gives_the_same_map():
    made, given = upsampler("featsharp_slim"), inputs((11, 5))
    with torch.no_grad():
        whole = made(*given)
        limit(made.fusion, 1)
        bands, band = [], made.fusion._band
        made.fusion._band = lambda maps, top, bottom: bands.append(bottom - top) or band(maps, top, bottom)
        torch.testing.assert_close(made(*given), whole)
    assert bands[-3:] == [8, 8, 6]  # after two calls on the meta device, which found how large they may be


def test_pieces_do_not_change_a_sharpeners_identity():
    config, teacher = SharpenerConfig.model_validate(SECTIONS | {"upsampler": "naf"}), random_teacher((16, 24))
    made = Sharpener(teacher, config)
    again = Sharpener(teacher, config.model_copy(update={"max_cells_per_call": 7}), made.adapter)
    assert again.identity == made.identity


def test_slim_is_a_third_of_the_papers_block():
    with torch.device("meta"):
        full, slim = (
            sum(p.numel() for p in build_upsampler(SharpenerConfig(upsampler=name), 768).fusion.parameters())
            for name in ("featsharp", "featsharp_slim")
        )
    assert 0.31 < slim / full < 0.34
