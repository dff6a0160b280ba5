"""Cropped position embedding against its formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from teachers.errors import UserError
from teachers.radio_positions import PositionTable, random_position_crop, resample_table
from teachers.seeding import seeded, torch_rng


def test_crops_are_distributed_as_the_formulas_say():
    n = 20_000
    crops = random_position_crop(n, "cpu", torch_rng("crops")).numpy()
    # The formulas again, in numpy: s ~ U[√0.1, 1], log a ~ U[log 3/4, log 4/3], s_x = min(s·a, 1), s_y = min(s/a, 1)
    rng = np.random.default_rng(1)
    s, a = rng.uniform(math.sqrt(0.1), 1, n), np.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3), n))
    width, height = np.minimum(s * a, 1), np.minimum(s / a, 1)
    left, top = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
    for got, wanted in zip(crops.T, (left, top, width, height)):
        assert _distance(got, wanted) < 1.95 * math.sqrt(2 / n)  # Kolmogorov-Smirnov at p = 0.001
    assert _distance(crops[:, 2] / crops[:, 3], width / height) < 1.95 * math.sqrt(2 / n)  # and jointly
    assert _distance(crops[:, 2] * crops[:, 3], width * height) < 1.95 * math.sqrt(2 / n)
    assert (crops[:, :2] >= 0).all() and (crops[:, :2] + crops[:, 2:] <= 1 + 1e-6).all()


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """The largest gap between two empirical distribution functions."""
    points = np.concatenate([a, b])
    share = [np.searchsorted(np.sort(x), points, side="right") / len(x) for x in (a, b)]
    return float(np.abs(share[0] - share[1]).max())


def _bilinear(table: np.ndarray, y: float, x: float) -> np.ndarray:
    """One point of a G×G×D table at cell coordinates, edges repeated."""
    last = len(table) - 1
    y, x = min(max(y, 0), last), min(max(x, 0), last)
    top, left = min(int(y), last - 1), min(int(x), last - 1)
    fy, fx = y - top, x - left
    upper = (1 - fx) * table[top, left] + fx * table[top, left + 1]
    lower = (1 - fx) * table[top + 1, left] + fx * table[top + 1, left + 1]
    return (1 - fy) * upper + fy * lower


def positions(cells: int = 6, dropout: float = 0.0) -> tuple[PositionTable, np.ndarray]:
    with seeded("positions"):
        table = PositionTable(cells, 5, dropout)
    return table, table.pos_embed.detach().double().numpy().reshape(cells, cells, 5)


@pytest.mark.parametrize("grid", [(3, 5), (7, 4), (1, 6), (6, 6)])
def test_a_crop_is_read_point_by_point_with_corners_on_corners(grid):
    table, values = positions()
    crops = torch.cat([random_position_crop(3, "cpu", torch_rng("read")), torch.tensor([[0.0, 0.0, 1.0, 1.0]])])
    got = table.read(crops, grid).detach().numpy()
    h, w = grid
    for one, (x, y, width, height) in zip(got, crops.tolist()):
        for i in range(h):
            for j in range(w):
                u, v = j / max(w - 1, 1), i / max(h - 1, 1)
                wanted = _bilinear(values, (y + v * height) * 5, (x + u * width) * 5)
                np.testing.assert_allclose(one[i * w + j], wanted, atol=1e-5)


@pytest.mark.parametrize("grid", [(3, 5), (9, 4), (2, 2), (6, 4), (6, 6)])
def test_outside_training_the_table_is_resized_to_the_longer_side_and_its_top_left_kept(grid):
    table, values = positions()
    table.eval()
    got = table(2, grid).detach().numpy()
    h, w = grid
    side = max(grid)
    assert got.shape == (1, h * w, 5)
    for i in range(h):
        for j in range(w):  # pixel centres on pixel centres, without antialiasing
            wanted = _bilinear(values, (i + 0.5) * 6 / side - 0.5, (j + 0.5) * 6 / side - 0.5)
            np.testing.assert_allclose(got[0, i * w + j], wanted, atol=1e-5)


def test_at_its_own_grid_the_table_is_read_as_it_is_in_training_too():
    table, values = positions()
    for mode in (True, False):
        assert np.allclose(table.train(mode)(2, (6, 6)).detach().numpy(), values.reshape(1, 36, 5))
    assert not torch.equal(*table.train()(2, (6, 5)))  # elsewhere every image has a crop of its own


def test_position_dropout_takes_all_positions_of_an_image_or_none_and_only_in_training():
    table, _ = positions(dropout=0.3)
    with seeded("dropout"):
        empty = (table.train()(4000, (2, 3)) == 0).flatten(1)
    assert (empty.all(1) | ~empty.any(1)).all()
    assert abs(empty.all(1).float().mean().item() - 0.3) < 0.03
    assert (table.eval()(1, (2, 3)) != 0).all()


def test_positions_are_fp32_also_under_autocast():
    table, _ = positions()
    crops = random_position_crop(2, "cpu", torch_rng("read"))
    with torch.autocast("cpu", torch.bfloat16):
        low = table.read(crops, (3, 4))
    assert low.dtype == torch.float32 and torch.equal(low, table.read(crops, (3, 4)))


def test_frames_of_a_clip_share_one_crop_and_one_dropout():
    table, _ = positions(dropout=0.3)
    with seeded("clips"):
        read = table.train()(12, (3, 5), frames=3).detach().unflatten(0, (4, 3))
    assert torch.equal(read, read[:, :1].expand_as(read))
    assert len({tuple(one.flatten()[:9].tolist()) for one in read[:, 0]}) > 1
    with seeded("clips"):
        alone = table(4, (3, 5)).detach()
    assert torch.equal(alone, read[:, 0])
    with pytest.raises(UserError, match="no clips of 5 frames"):
        table(12, (3, 5), frames=5)
    assert table.eval()(12, (3, 5), frames=5).shape == (1, 15, 5)  # nothing is drawn, so nothing is shared


@pytest.mark.parametrize("cells", [4, 6, 9])
def test_a_table_of_another_size_keeps_its_corners(cells):
    table, values = positions()
    read = resample_table(table.pos_embed.detach(), cells).unflatten(1, (cells, cells))[0]
    for i, j in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        np.testing.assert_allclose(read[i, j].numpy(), values[i, j], atol=1e-6)
    ramp = torch.arange(6.0).expand(6, 6)[None, :, :, None].flatten(1, 2)
    inner = resample_table(ramp, 11).unflatten(1, (11, 11))[0, 0, 2:-2, 0]  # a cubic reads a ramp as it is
    np.testing.assert_allclose(inner.numpy(), np.linspace(0, 5, 11)[2:-2], atol=1e-5)
