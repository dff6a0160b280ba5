"""Pictures side by side in a teacher's canvas: each gets back its own cells, and nothing of its neighbours."""

from __future__ import annotations

import pytest
import torch

from radio_distill.mosaic import fits, seen_in_canvases
from radio_distill.recipe import TeacherConfig
from radio_distill.targets import Teacher
from teachers.errors import UserError
from teachers.features import Dims, Encoder, Features


class Blocks(Encoder):
    """A teacher of a fixed canvas whose features are the mean colours of 4-pixel patches; it counts its canvases."""

    def __init__(self, canvas=(24, 32)):
        super().__init__()
        self.name, self.patch_size, self.native_size, self.resolution_flexible = "blocks", 4, canvas, False
        self.dims, self.licence, self.identity = Dims(None, 3), "none", "blocks"
        self.canvases = 0

    def forward(self, images):
        self.check(images)
        self.canvases += len(images)
        return Features(None, torch.nn.functional.avg_pool2d(images, 4))


def tiles(count: int, h: int, w: int) -> torch.Tensor:
    """Pictures of one colour each."""
    return torch.rand(count, 3, 1, 1, generator=torch.Generator().manual_seed(0)).expand(-1, -1, 4 * h, 4 * w)


@pytest.mark.parametrize(("grid", "several", "canvases"), [
    ((2, 2), True, 1), ((3, 2), True, 1), ((2, 3), True, 2), ((6, 8), True, 7), ((5, 5), True, 7), ((2, 2), False, 7),
])  # fmt: skip
def test_every_picture_gets_its_own_cells_back(grid, several, canvases):
    encoder, images = Blocks(), tiles(7, *grid)
    assert fits(encoder, grid)
    maps = seen_in_canvases(encoder, images, several)
    assert maps.shape == (7, 3, *grid) and encoder.canvases == canvases
    torch.testing.assert_close(maps, images[..., :1, :1].expand(-1, -1, *grid))
    detailed = torch.rand(7, 3, 4 * grid[0], 4 * grid[1])
    wanted = torch.nn.functional.avg_pool2d(detailed, 4)
    torch.testing.assert_close(seen_in_canvases(encoder, detailed, several), wanted)


def teacher(fit: str, encoder: Encoder | None = None, **changes) -> Teacher:
    return Teacher("sam", TeacherConfig(encoder="x", fit=fit, **changes), encoder or Blocks(), None, "cpu")


def test_a_teacher_follows_the_students_grid_while_it_fits_and_has_its_own_size_beyond():
    assert teacher("mosaic").size((2, 3), False) == (8, 12)
    assert teacher("mosaic").grid((6, 8), False) == (6, 8)
    assert teacher("mosaic").size((7, 3), False) == (24, 32)  # too tall: enlarged or shrunk to the canvas, as ever
    assert teacher("resize").size((2, 3), False) == (24, 32)
    assert not fits(Blocks(), (7, 3))


def test_targets_come_through_the_canvas_and_are_normalised():
    made = teacher("mosaic")
    made.phi_s.alpha.fill_(2.0)
    images = tiles(5, 3, 2)
    seen = made.targets(images, sharpen=False)
    assert seen.summary is None and made.base.canvases == 1
    torch.testing.assert_close(seen.spatial, 2 * images[..., :1, :1].expand(-1, -1, 3, 2))
    padded = teacher("pad")
    padded.targets(images, sharpen=False)
    assert padded.base.canvases == 5


def test_a_summary_of_a_whole_canvas_is_no_target():
    encoder = Blocks()
    encoder.dims = Dims(8, 3)
    with pytest.raises(UserError, match="teachers.sam.fit: mosaic gives no summary") as caught:
        teacher("mosaic", encoder)
    assert "teachers.sam.summary_weight: 0" in caught.value.expected
    assert not teacher("mosaic", encoder, summary_weight=0).has_summary_loss
