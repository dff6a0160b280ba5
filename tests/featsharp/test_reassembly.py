"""The parts of the shelf that learn how to average coarse cells: against their definitions, from their starts."""

import pytest
import torch
import torch.nn.functional as F

from featsharp.config import CarafeConfig, SapaConfig, SharpenerConfig
from featsharp.upsamplers import build_upsampler
from featsharp.upsamplers.base import enlarge
from featsharp.upsamplers.carafe import CarafeLevel, reassemble
from featsharp.upsamplers.sapa import SapaLevel, affiliate
from teachers.seeding import seeded, torch_rng

CASES = [(5, 6, 2, 5), (1, 5, 2, 5), (4, 3, 3, 3), (2, 3, 7, 5), (6, 9, 1, 5), (9, 2, 5, 1)]  # h, w, factor, taps


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch_rng("reassembly", seed), dtype=torch.float64)


def around(x: torch.Tensor, factor: int, k: int) -> torch.Tensor:
    """B×C×h×w → B×C×k²×H×W: the coarse cells around that of each fine cell, border cells repeated outwards."""
    h, w = x.shape[-2:]
    large = F.pad(x, 4 * [k // 2], mode="replicate")
    taps = torch.stack([large[..., i : i + h, j : j + w] for i in range(k) for j in range(k)], 2)
    return taps.repeat_interleave(factor, 3).repeat_interleave(factor, 4)


def compare(mine: torch.Tensor, definition: torch.Tensor, inputs: list[torch.Tensor]) -> None:
    """Forward and backward."""
    torch.testing.assert_close(mine, definition)
    upstream = normal(*mine.shape, seed=9)
    for one, other in zip(*(torch.autograd.grad(out, inputs, upstream) for out in (mine, definition))):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("h, w, factor, k", CASES)
def test_reassembly_is_each_fine_cells_own_sum_of_coarse_cells(h, w, factor, k):
    source, weights = normal(2, 3, h, w).requires_grad_(), normal(2, factor**2, k**2, h, w, seed=1).requires_grad_()
    fine = torch.stack([F.pixel_shuffle(weights[:, :, tap], factor)[:, 0] for tap in range(k**2)], 1)
    compare(reassemble(source, weights, factor), (around(source, factor, k) * fine[:, None]).sum(2), [source, weights])


@pytest.mark.parametrize("h, w, factor, k", CASES)
def test_affiliation_is_a_softmax_over_the_coarse_cells_around(h, w, factor, k):
    queries, keys = normal(2, 4, h * factor, w * factor).requires_grad_(), normal(2, 4, h, w, seed=1).requires_grad_()
    values = normal(2, 3, h, w, seed=2).requires_grad_()
    weights = ((around(keys, factor, k) * queries[:, :, None]).sum(1) / 2).softmax(1)
    definition = (around(values, factor, k) * weights[:, None]).sum(2)
    compare(affiliate(queries, keys, values, factor, k // 2), definition, [queries, keys, values])


def test_carafe_begins_near_bilinear_and_far_from_a_blur():
    with seeded("start"):
        level = CarafeLevel(8, 2, CarafeConfig())
        blur = CarafeLevel(8, 2, CarafeConfig(sigma=1e6))
    x = normal(1, 8, 6, 7).float()
    with torch.no_grad():
        bilinear = enlarge(x, 2)
        assert (level(x) - bilinear).square().mean() < 0.05 * bilinear.square().mean()
        assert (blur(x) - bilinear).square().mean() > 0.5 * bilinear.square().mean()
        torch.testing.assert_close(blur(x), around(x, 2, 5).mean(2), atol=0.05, rtol=0)


def test_every_level_of_carafe_reads_what_the_one_before_made():
    """The published stack gives each level the first map, so that 4× is 2×."""
    with seeded("levels"):
        made = build_upsampler(SharpenerConfig(upsampler="carafe", factor=4), 8)
    low = normal(1, 8, 3, 4).float()
    expected = made.levels[1](made.levels[0](low))
    assert expected.shape == (1, 8, 12, 16)
    assert torch.equal(made(low, None, torch.zeros(1, 3, 24, 32)), expected)
    assert not torch.allclose(expected, enlarge(made.levels[1](low), 2, "nearest"), atol=1e-2)


def test_sapa_cuts_where_the_image_does():
    """A query that comes from the image and is like one side's cells takes that side's value, not a mean of both."""
    level = SapaLevel(2, 2, SapaConfig(width=2))
    level.look, level.norm = torch.nn.Identity(), torch.nn.Identity()
    with torch.no_grad():
        level.gate.weight.zero_(), level.gate.bias.fill_(20.0)  # trust the image
        level.key.weight.copy_(20 * torch.eye(2)[:, :, None, None])
    side = (torch.arange(12) >= 5).float()  # an edge inside a coarse cell
    guidance = torch.stack([1 - side, side])[None, :, None].expand(-1, -1, 8, -1)
    coarse = F.avg_pool2d(guidance, 2)
    out = level(coarse, guidance)
    assert out.shape == (1, 2, 8, 12)
    off = [(x - guidance).abs().amax() for x in (out, enlarge(coarse, 2))]
    assert off[0] < 0.01 < 0.3 < off[1]


def test_s2_is_the_mean_of_both_scales():
    made = build_upsampler(SharpenerConfig(upsampler="s2", factor=3), 4)
    low, tiles = normal(2, 4, 2, 3), normal(2, 4, 6, 9, seed=1)
    torch.testing.assert_close(made(low, tiles, torch.zeros(2, 3, 24, 36)), (enlarge(low, 3) + tiles) / 2)


def test_featup_begins_as_its_jbu_and_learns_a_residual():
    made = build_upsampler(SharpenerConfig(upsampler="featup", factor=2), 4)
    low, image = normal(1, 4, 3, 4).float(), normal(1, 3, 24, 32).float()
    jbu = made.jbu(low, image)
    assert torch.equal(made(low, None, image), jbu)
    with torch.no_grad():
        made.correction.weight.copy_(torch.eye(4)[:, :, None, None])
    torch.testing.assert_close(made(low, None, image), 1.1 * jbu)


@pytest.mark.parametrize(
    "name, count",
    [
        ("identity", lambda c, primes: 0),
        ("s2", lambda c, primes: 0),
        ("featup", lambda c, primes: 1186 * len(primes) + c * c + c),
        ("carafe", lambda c, primes: sum(64 * (c + 1) + 577 * 25 * s**2 for s in primes)),
        ("sapa", lambda c, primes: len(primes) * (2 * 32 * c + 3 * c + 1 + 29 * 32 + 32**2)),
    ],
)
def test_parameters_are_as_many_as_the_docstrings_say(name, count):
    factor, primes = (1, []) if name == "identity" else (6, [2, 3])
    made = build_upsampler(SharpenerConfig(upsampler=name, factor=factor), 24)
    assert sum(p.numel() for p in made.parameters()) == count(24, primes)


@pytest.mark.parametrize("name", ["s2", "featup", "carafe", "sapa"])
def test_the_structure_runs_on_the_meta_device_and_under_autocast(name):
    config = SharpenerConfig(upsampler=name, factor=6)
    with torch.device("meta"):
        made = build_upsampler(config, 8)
        given = torch.empty(2, 8, 3, 4), torch.empty(2, 8, 18, 24), torch.empty(2, 3, 72, 96)
        assert made(*given).shape == (2, 8, 18, 24)
    with seeded("autocast"):
        made = build_upsampler(config, 8)
    given = [normal(*x.shape, seed=i).float() for i, x in enumerate(given)]
    with torch.no_grad():
        full = made(*given)
        with torch.autocast("cpu", torch.bfloat16):
            half = made(*given)
    assert (half - full).square().mean() < 0.01 * full.square().mean()
