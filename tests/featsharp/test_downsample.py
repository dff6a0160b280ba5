"""Downsamplers: the tiled sum is the plain one, borders are renormalised, weights follow the content."""

import pytest
import torch

from featsharp.config import DownsamplerConfig
from featsharp.downsample import build_downsampler, draw_keep, weighted_cells
from teachers.seeding import torch_rng


def plain_sum(x, weights, factor):
    """Every tap of every cell, one after the other."""
    b, c, height, width = x.shape
    k = int(weights.shape[1] ** 0.5)
    out = torch.zeros(b, c, *weights.shape[-2:], dtype=x.dtype)
    for row in range(weights.shape[-2]):
        for column in range(weights.shape[-1]):
            for tap in range(k * k):
                y = row * factor + tap // k - (k - factor) // 2
                z = column * factor + tap % k - (k - factor) // 2
                if 0 <= y < height and 0 <= z < width:
                    out[:, :, row, column] += weights[:, tap, row, column, None] * x[:, :, y, z]
    return out


@pytest.mark.parametrize("h, w, factor, k", [(5, 3, 2, 8), (4, 6, 3, 9), (1, 4, 2, 4), (2, 2, 4, 10), (3, 5, 1, 3)])
def test_tiled_sum_equals_the_plain_one(h, w, factor, k):
    rng = torch_rng("cells", h, w)
    x = torch.randn(2, 3, h * factor, w * factor, generator=rng, dtype=torch.float64)
    weights = torch.rand(2, k * k, h, w, generator=rng, dtype=torch.float64)
    config = DownsamplerConfig(kind="simple", reach=(k - factor) // 2)
    inside = build_downsampler(config, 3, factor).taps_inside(h, w)
    torch.testing.assert_close(weighted_cells(x, weights * inside, factor), plain_sum(x, weights, factor))


@pytest.mark.parametrize("kind", ["attention", "simple"])
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_a_constant_stays_constant_up_to_the_borders(kind, factor):
    down = build_downsampler(DownsamplerConfig(kind=kind), 4, factor)
    out = down(torch.full((2, 4, 5 * factor, 3 * factor), 1.5))
    torch.testing.assert_close(out, torch.full((2, 4, 5, 3), 1.5))


def test_dropped_taps_carry_nothing():
    config = DownsamplerConfig(drop=0.5)
    down, rng = build_downsampler(config, 3, 2), torch_rng("drop")
    keep = draw_keep(config, (2, 4, 4), 2, rng)
    assert 0.4 < keep.float().mean() < 0.6
    x = torch.randn(2, 3, 8, 8, generator=rng)
    weights = down.weights(x, keep)
    assert (weights[~keep] == 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(2, 4, 4))


def test_attention_weights_depend_on_the_content():
    down, rng = build_downsampler(DownsamplerConfig(), 8, 2), torch_rng("content")
    one, other = (down.weights(torch.randn(1, 8, 8, 8, generator=rng)) for _ in range(2))
    assert (one - other).abs().max() > 1e-4
