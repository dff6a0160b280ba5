"""PCA colours shared between maps, and labelled panels."""

import numpy as np
import pytest
import torch
from PIL import Image

from teachers.pictures import MARGIN, PcaBasis, panel
from teachers.seeding import torch_rng


def maps(channels: int = 12) -> list[torch.Tensor]:
    rng = torch_rng("maps", channels)
    scale = torch.linspace(3, 0.1, channels).view(-1, 1, 1)
    return [torch.randn(channels, 5, 9, generator=rng) * scale, torch.randn(2, channels, 4, 4, generator=rng) * scale]


def test_axes_are_those_of_scikit_learn():
    from sklearn.decomposition import PCA

    cells = torch.cat([one.movedim(-3, -1).flatten(0, -2) for one in maps()]).double().numpy()
    oracle, basis = PCA(3, svd_solver="full").fit(cells), PcaBasis.fit(maps())
    signs = np.sign((oracle.components_ * basis.axes.numpy()).sum(1, keepdims=True))
    np.testing.assert_allclose(basis.axes.numpy(), signs * oracle.components_, atol=1e-4)
    np.testing.assert_allclose(basis.mean.numpy(), oracle.mean_, atol=1e-5)
    projected = signs.T * oracle.transform(cells)
    np.testing.assert_allclose(basis.low.numpy(), np.percentile(projected, 1, axis=0), atol=1e-4)
    np.testing.assert_allclose(basis.high.numpy(), np.percentile(projected, 99, axis=0), atol=1e-4)


def test_signs_do_not_depend_on_the_order_of_the_cells():
    first, second = maps()
    a, b = PcaBasis.fit([first, second]), PcaBasis.fit([second.flip(0), first.flip(1)])
    torch.testing.assert_close(a.axes, b.axes, rtol=0, atol=1e-4)
    largest = a.axes.gather(1, a.axes.abs().argmax(1, keepdim=True))
    assert (largest > 0).all()


def test_equal_features_have_equal_colours_on_every_map_and_use_the_whole_range():
    first, second = maps()
    basis = PcaBasis.fit([first, second])
    rgb = basis.to_rgb(first)
    assert rgb.shape == (5, 9, 3) and rgb.dtype == np.uint8
    np.testing.assert_array_equal(basis.to_rgb(first[:, 1:3, 2:6]), rgb[1:3, 2:6])
    assert rgb.min() == 0 and rgb.max() == 255


@pytest.mark.parametrize("channels", [1, 2])
def test_fewer_than_three_channels_and_constant_maps_have_a_picture_too(channels):
    basis = PcaBasis.fit([torch.randn(channels, 4, 4, generator=torch_rng("few"))])
    assert (basis.to_rgb(torch.zeros(channels, 4, 4))[..., channels:] == 0).all()
    assert PcaBasis.fit([torch.ones(6, 4, 4)]).to_rgb(torch.ones(6, 4, 4)).shape == (4, 4, 3)


def test_a_saved_basis_paints_the_same(tmp_path):
    first, second = maps()
    basis = PcaBasis.fit([first])
    basis.save(tmp_path / "pictures" / "basis.safetensors")
    again = PcaBasis.load(tmp_path / "pictures" / "basis.safetensors")
    np.testing.assert_array_equal(again.to_rgb(second[0]), basis.to_rgb(second[0]))
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["basis.safetensors"]


def test_a_panel_holds_every_picture_enlarged_in_squares_below_its_title():
    checker = np.zeros((2, 4, 3), np.uint8)
    checker[0, 0] = (255, 0, 0)
    sheet = panel([[("map 2×4", checker), ("photo", Image.new("RGB", (300, 150), "blue"))], [("empty", None)]], cell=80)
    pixels = np.asarray(sheet)
    red = (pixels == (255, 0, 0)).all(-1)
    assert red.sum() == 20 * 20  # one of 2×4 cells of an 80×40 picture, with sharp edges
    rows, columns = np.where(red)
    assert columns.min() == MARGIN and (pixels[: rows.min()] < 128).any()  # the title's letters are above it
    assert (pixels == (0, 0, 255)).all(-1).sum() == 80 * 40
    assert sheet.width == 3 * MARGIN + 2 * 80


def test_a_panel_takes_tensors_and_shortens_titles_that_do_not_fit():
    image = torch.zeros(3, 6, 6)
    image[1] = 1.0
    narrow = np.asarray(panel([[("a title that is much too long for its cell", image)]], cell=48))
    assert (narrow == (0, 255, 0)).all(-1).sum() == 48 * 48
    assert (narrow[:, -MARGIN:] == 255).all()  # nothing runs over the margin
