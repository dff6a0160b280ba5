"""Views by homographies: one matrix for every grid, exact for the cases that can be worked out by hand."""

import math

import pytest
import torch

from featsharp.config import ViewsConfig
from featsharp.multiview import (
    cell_centres,
    draw_views,
    from_corners,
    fully_inside,
    look_up,
    sample_view,
    warp,
)
from teachers.seeding import torch_rng

IDENTITY = torch.eye(3)[None]


def shifted(x: float, y: float = 0.0) -> torch.Tensor:
    matrix = IDENTITY.clone()
    matrix[0, 0, 2], matrix[0, 1, 2] = x, y
    return matrix


@pytest.mark.parametrize("size", [(6, 10), (12, 20), (1, 5)])
def test_identity_leaves_a_map_as_it_is(size):
    maps = torch.randn(1, 3, *size, generator=torch_rng("maps"))
    torch.testing.assert_close(look_up(IDENTITY, size), cell_centres(size)[None, ..., :2])
    torch.testing.assert_close(warp(maps, look_up(IDENTITY, size)), maps)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_a_move_by_one_coarse_cell_is_one_cell_on_the_coarse_grid_and_f_on_the_fine_one(factor):
    h, w = 4, 8
    move = shifted(2 / w, 2 / h)  # one coarse cell, in units where the whole side is 2
    maps = torch.randn(1, 2, h * factor, w * factor, generator=torch_rng("maps"))
    moved = warp(maps, look_up(move, (h * factor, w * factor)))
    torch.testing.assert_close(moved[..., :-factor, :-factor], maps[..., factor:, factor:])


def test_what_moves_by_a_cell_fills_exactly_the_inside_mask():
    inside = fully_inside(shifted(2 / 8, 2 / 4), (4, 8))
    expected = torch.zeros(1, 1, 4, 8, dtype=torch.bool)
    expected[..., :3, :7] = True
    assert torch.equal(inside, expected)
    assert fully_inside(IDENTITY, (4, 8)).all()


def test_homographies_take_four_corners_to_four_corners():
    rng = torch_rng("corners")
    corners = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]).expand(5, -1, -1)
    target = corners + 0.2 * torch.randn(5, 4, 2, generator=rng)
    matrix = from_corners(corners, target)
    moved = torch.cat([corners, torch.ones(5, 4, 1)], -1) @ matrix.transpose(1, 2)
    torch.testing.assert_close(moved[..., :2] / moved[..., 2:], target, rtol=0, atol=1e-4)


def test_turns_keep_distances_in_pixels_on_a_wide_image():
    config = ViewsConfig(jitters=2, rotation=40, jitter_zoom=1, shift=0, perspective=(0, 0))
    matrix = draw_views(config, 3, (100, 300), torch_rng(0)).jitters.flatten(0, 1).double()
    pixels = torch.diag(torch.tensor([150.0, 50.0, 1.0], dtype=torch.float64))
    in_pixels = pixels @ matrix @ torch.linalg.inv(pixels)
    turn = in_pixels[:, :2, :2]
    torch.testing.assert_close(turn @ turn.transpose(1, 2), torch.eye(2).double().expand(6, -1, -1), rtol=0, atol=1e-5)
    assert (turn[:, 0, 0].acos() <= math.radians(40)).all() and turn[:, 0, 0].acos().max() > math.radians(5)


def test_views_follow_the_generator_and_the_base_view_stays_in_the_image():
    config = ViewsConfig()
    views, again = (draw_views(config, 64, (32, 48), torch_rng("views")) for _ in range(2))
    assert torch.equal(views.base, again.base) and torch.equal(views.jitters, again.jitters)
    assert not torch.equal(views.base, draw_views(config, 64, (32, 48), torch_rng("others")).base)
    assert (look_up(views.base, (32, 48)).abs() <= 1).all()
    assert not torch.equal(views.jitters[0], views.jitters[1])


def test_features_of_a_view_are_the_warped_features_of_the_base():
    """An encoder that is a plain average of pixels commutes with small homographies: the geometry closes."""
    y, x = torch.meshgrid(torch.linspace(0, 3, 96), torch.linspace(0, 4, 128), indexing="ij")
    image = 0.5 + 0.4 * torch.stack([x.sin(), y.cos(), (x + y).sin()])[None]
    config = ViewsConfig(jitters=1, perspective=(0.02, 0.02))
    views = draw_views(config, 1, (48, 64), torch_rng("closes"))
    pool = torch.nn.AvgPool2d(4)
    base = pool(sample_view(image, views.base, (48, 64)))
    view = pool(sample_view(image, views.base @ views.jitters[0], (48, 64)))
    size = (12, 16)
    predicted, valid = warp(base, look_up(views.jitters[0], size)), fully_inside(views.jitters[0], size)
    assert valid.float().mean() > 0.6
    error = ((predicted - view) * valid).abs().max()
    assert error < 0.01 < 0.05 < ((base - view) * valid).abs().max()
