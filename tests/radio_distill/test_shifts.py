"""Windows of one crop: what they cut, what two of them have in common, and a loss that only equivariance makes 0."""

from __future__ import annotations

import pytest
import torch

from radio_distill.losses import image_means, squared_error
from radio_distill.shifts import Window, common, largest_shift, margin, offset
from teachers.seeding import torch_rng

WHITE = torch.ones(1, 2)


def moved(size, patch: int, around: float, by) -> Window:
    """A window that lies `by` patches from the middle."""
    middle = Window.of(size, patch, around)
    shift = (by[0] * patch / size[0], by[1] * patch / size[1])
    return Window(middle.base, size, middle.top + by[0] * patch, middle.left + by[1] * patch, shift)


def test_shifts_are_rounded_normals_cut_off_within_the_margin():
    around = margin(0.5, [(8, 8)])
    drawn = []
    for n in range(4000):
        window = Window.of((64, 128), 8, around, 0.5, torch_rng("shift", n))
        assert 0 <= window.top <= window.base[0] - 64 and 0 <= window.left <= window.base[1] - 128
        down, right = window.shift[0] * 8, window.shift[1] * 16
        assert (window.top, window.left) == (8 + 8 * down, 16 + 8 * right)
        drawn += [down, right]
    shares = [drawn.count(k) / len(drawn) for k in (-1, 0, 1)]
    assert shares[1] == pytest.approx(0.683, abs=0.02)  # P(|N(0, 0.5)| < 0.5); past 1.5, where it is cut off, lie 0.003
    assert shares[0] == pytest.approx(shares[2], abs=0.02) and sum(shares) == 1
    assert largest_shift(0.5) == 1 and largest_shift(1.0) == 2 and margin(0.0, [(8, 8)]) == 0


def test_without_a_deviation_a_window_is_the_whole_crop():
    window = Window.of((24, 32), 8, margin(0.0, [(3, 4)]), 0.0, torch_rng("none"))
    assert window == Window((24, 32), (24, 32), 0, 0)
    images = torch.rand(2, 3, 24, 32)
    assert torch.equal(window.cut(images), images)


def colours(images: torch.Tensor, patch: int) -> torch.Tensor:
    """A shift-equivariant network: the mean colour of every patch."""
    return torch.nn.functional.avg_pool2d(images, patch)


def places(images: torch.Tensor, patch: int) -> torch.Tensor:
    """A network that only knows where a cell lies in its own window."""
    h, w = images.shape[-2] // patch, images.shape[-1] // patch
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    return torch.stack([y, x]).float().expand(len(images), -1, -1, -1)


@pytest.mark.parametrize("student", [(0, 0), (1, -2), (-1, 2)])
@pytest.mark.parametrize("teacher", [(0, 0), (2, 1), (-2, -1)])
@pytest.mark.parametrize("patches", [(8, 8), (8, 4), (4, 8)], ids=str)
def test_equivariant_networks_agree_exactly_wherever_both_looked_and_others_do_not(student, teacher, patches):
    grid = (5, 7)
    around = 2 / 5
    windows = [
        moved((grid[0] * p, grid[1] * p), p, around, by) for p, by in zip(patches, (student, teacher))
    ]
    # The same picture at both networks' resolutions: constant 8-pixel blocks, at any offset of whole cells.
    blocks = torch.rand(2, 3, 9, 13, generator=torch_rng("blocks"))
    losses = {}
    for network in (colours, places):
        said = []
        for window, patch in zip(windows, patches):
            # margins of another width than the blocks': cut the picture so that cells lie on blocks
            picture = blocks.repeat_interleave(patch, -2).repeat_interleave(patch, -1)
            border = ((window.base[0] - grid[0] * patch) // 2, (window.base[1] - grid[1] * patch) // 2)
            picture = torch.nn.functional.pad(
                picture, (border[1] - 3 * patch, border[1] - 3 * patch, border[0] - 2 * patch, border[0] - 2 * patch)
            )
            assert tuple(picture.shape[-2:]) == window.base
            said.append(network(window.cut(picture), patch))
        by = offset(*windows, grid)
        assert by == (teacher[0] - student[0], teacher[1] - student[1])
        a, b, (rows, columns) = common(*said, by)
        assert a.shape == b.shape and a.shape[-2:] == (grid[0] - abs(by[0]), grid[1] - abs(by[1]))
        assert (rows.stop - rows.start, columns.stop - columns.start) == tuple(a.shape[-2:])
        losses[network] = image_means(squared_error(a, b)).mean().item()
    assert losses[colours] < 1e-12
    assert (losses[places] > 0.4) == (student != teacher)


def test_between_cells_a_map_is_read_linearly():
    ramp = torch.arange(7.0).view(1, 1, 1, 7).expand(1, 1, 5, 7)
    a, b, (rows, columns) = common(ramp, ramp, (0.0, 1.25))
    assert (rows, columns) == (slice(0, 5), slice(0, 5))  # 4 + 1.25 is the last place between the map's own cells
    torch.testing.assert_close(a - b, torch.full_like(a, 1.25))
    a, b, (_, columns) = common(ramp, ramp, (0.0, -0.5))
    assert columns == slice(1, 7)
    torch.testing.assert_close(a - b, torch.full_like(a, -0.5))


def test_windows_of_grids_that_do_not_divide_each_other_are_offset_by_parts_of_cells():
    around = margin(0.5, [(8, 8), (6, 6)])
    student, teacher = moved((64, 64), 8, around, (1, 0)), moved((72, 72), 12, around, (0, 1))
    assert offset(student, teacher, (6, 6)) == (pytest.approx(-0.75), pytest.approx(1.0))


def test_cells_that_reach_into_the_padding_are_not_valid():
    window = moved((32, 32), 8, 0.25, (1, -1))  # of a 48×48 crop, at (16, 0)
    assert (window.base, window.top, window.left) == ((48, 48), 16, 0)
    extents = torch.tensor([[1.0, 1.0], [32 / 48, 17 / 48], [16 / 48, 1.0]])
    valid = window.valid(extents, (4, 4))
    assert valid[0].all() and not valid[2].any()
    wanted = torch.zeros(4, 4, dtype=torch.bool)
    wanted[:2, :2] = True  # rows end at 24, 32, 40, 48; columns at 8, 16, 24, 32
    assert torch.equal(valid[1], wanted)
    assert window.valid(WHITE, (2, 2)).all()
