"""One decode, one crop, many sizes: every kind of picture file, every orientation, every fault."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from shard_maker import encoded, jpeg

from radio_distill import views
from radio_distill.views import BadPicture, Batch, Crop, TooSmall, centre_crop, check_sizes, random_crop, render
from teachers.errors import UserError
from teachers.seeding import numpy_rng


def whole(size):
    return Crop(0, 0, *size)


def rendered(data, size=(8, 8), choose=whole, **options):
    """The view of an encoded picture at one size, 3×H×W."""
    out = {size: torch.zeros(1, 3, *size, dtype=torch.uint8)}
    render(data, choose, out, 0, **options)
    return out[size][0]


def halves(left="red", right="blue", mode="RGB"):
    """16×8, two colours."""
    picture = Image.new("RGB", (16, 8), left)
    picture.paste(right, (8, 0, 16, 8))
    return picture.convert(mode)


def colour(view):
    return view.float().mean((1, 2)).round().int().tolist()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(orientation):
    upright = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8))
    turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that a viewer undoes
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(turn[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    view = rendered(encoded(stored, "PNG", exif=exif), size=(6, 4))
    assert torch.equal(view.permute(1, 2, 0), torch.from_numpy(np.array(upright)))


@pytest.mark.parametrize(
    "kind, mode",
    [("PNG", "L"), ("PNG", "P"), ("PNG", "1"), ("JPEG", "CMYK"), ("JPEG", "L"), ("GIF", "P"), ("TIFF", "LAB")],
)
def test_every_mode_becomes_rgb(kind, mode):
    grey = halves("white", "black")
    view = rendered(encoded(grey.convert(mode) if mode != "LAB" else grey, kind), (8, 16))
    assert view[:, :, :6].min() > 240 and view[:, :, 10:].max() < 15


def test_sixteen_bit_greys_are_scaled_not_clipped():
    ramp = Image.fromarray(np.linspace(0, 65535, 64).astype(np.uint16).reshape(1, 64).repeat(8, 0))
    view = rendered(encoded(ramp, "PNG"), (8, 64))
    assert view[0, 0].tolist() == pytest.approx((np.linspace(0, 65535, 64) // 256).tolist(), abs=1)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_on_white(mode):
    if mode == "P":
        data = encoded(Image.new("P", (8, 8), 0), "PNG", transparency=0)
    else:
        data = encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 0)).convert(mode), "PNG")
    assert colour(rendered(data)) == [255, 255, 255]


@pytest.mark.parametrize(
    "data, words",
    [
        (b"", "is not a picture"),
        (b"\xff\xd8junk", "is not a picture"),
        (jpeg(0)[:400], "(?i)truncated"),
        (encoded(Image.new("F", (8, 8)), "TIFF"), "floating-point"),
    ],
)
def test_damaged_files_are_bad_pictures(data, words):
    with pytest.raises(BadPicture, match=words):
        rendered(data)


def test_a_decompression_bomb_is_refused_by_its_header(monkeypatch):
    monkeypatch.setattr(views, "MAX_PIXELS", 10_000)
    with pytest.raises(BadPicture, match="200×100 pixels"):
        rendered(encoded(Image.new("L", (200, 100)), "PNG"))
    huge = io.BytesIO(encoded(Image.new("1", (20000, 20000)), "PNG"))  # Pillow's own limit
    with pytest.raises(BadPicture):
        rendered(huge.getvalue())


def test_damaged_metadata_alone_does_not_lose_a_picture():
    data = encoded(halves(), "JPEG", exif=b"Exif\0\0II*\0garbage" + bytes(40))
    assert rendered(data).float().std() > 50


def test_min_side_looks_at_the_upright_header():
    with pytest.raises(TooSmall, match="48×40"):
        rendered(jpeg(0, 48, 40), min_side=41)
    assert rendered(jpeg(0, 48, 40), min_side=40).shape == (3, 8, 8)


def test_a_crop_is_the_box_and_its_mirror_is_flipped():
    data = encoded(halves(), "PNG")
    left = rendered(data, choose=lambda size: Crop(0, 0, 8, 8))
    assert colour(left) == [255, 0, 0]
    mirrored = rendered(data, (8, 16), choose=lambda size: Crop(0, 0, 8, 16, True))
    assert torch.equal(mirrored.flip(2), rendered(data, (8, 16)))


def test_shrinking_is_antialiased():
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    view = rendered(encoded(Image.fromarray(stripes), "PNG"))
    assert (view.float() - 127.5).abs().max() < 12


def test_large_jpegs_decoded_at_a_fraction_give_the_same_view(monkeypatch):
    data = jpeg(3, 900, 700)
    crop = Crop(101, 203, 512, 601, True)
    quick = rendered(data, (64, 75), choose=lambda size: crop)
    monkeypatch.setattr(views, "_shrink_on_load", lambda picture, excess: None)
    exact = rendered(data, (64, 75), choose=lambda size: crop)
    assert (quick.float() - exact.float()).abs().mean() < 1.5


@pytest.mark.parametrize("size", [(300, 400), (400, 300), (64, 64), (20, 640), (1, 1)])
@pytest.mark.parametrize("aspect", [1.0, 1.5, 0.5])
def test_random_crops_fit_and_have_the_wanted_area_and_aspect(size, aspect):
    for draw in range(50):
        crop = random_crop(size, aspect, (0.4, 0.9), (0.8, 1.25), True, numpy_rng(draw))
        assert 0 <= crop.top <= size[0] - crop.height and 0 <= crop.left <= size[1] - crop.width
        if size in ((300, 400), (64, 64)) and aspect == 1.0:
            share = crop.height * crop.width / (size[0] * size[1])
            assert 0.37 < share < 0.93 and abs(math.log(crop.width / crop.height / aspect)) < math.log(1.25) + 0.05


def test_random_crops_cover_the_picture_and_both_mirrors():
    crops = [random_crop((100, 100), 1.0, (0.2, 0.3), (1.0, 1.0), True, numpy_rng(draw)) for draw in range(200)]
    assert min(crop.left for crop in crops) < 5 and max(crop.left + crop.width for crop in crops) > 95
    assert 60 < sum(crop.flip for crop in crops) < 140
    assert not any(random_crop((9, 9), 1.0, (1, 1), (1, 1), False, numpy_rng(draw)).flip for draw in range(20))


def test_a_centre_crop_is_the_largest_of_its_aspect():
    assert centre_crop((20, 60), 1.0) == Crop(0, 20, 20, 20)
    assert centre_crop((60, 20), 2.0) == Crop(25, 0, 10, 20)


@pytest.mark.parametrize("picture", [(20, 60), (60, 20), (7, 5), (300, 200), (1, 90)])
@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_a_letterboxed_picture_is_whole_keeps_its_aspect_and_leaves_the_rest_black(picture, size):
    data = encoded(Image.new("RGB", picture[::-1], "white"), "PNG")
    out = {size: torch.full((2, 3, *size), 7, dtype=torch.uint8)}
    _, (high, wide) = render(data, whole, out, 1, letterbox=True)
    height, width = (max(1, round(share * side)) for share, side in zip((high, wide), size))
    assert max(high, wide) == 1.0
    assert abs(high * size[0] / (wide * size[1]) - picture[0] / picture[1]) < 1e-6 * picture[0]
    assert (out[size][1, :, :height, :width] == 255).all() and out[size][1].sum() == 255 * 3 * height * width
    assert (out[size][0] == 7).all()


def test_a_letterbox_shrinks_as_a_plain_view_of_the_fitted_size_does():
    picture = np.random.default_rng(0).integers(0, 256, (30, 60, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(picture), "PNG")
    boxed = rendered(data, (24, 24), letterbox=True, choose=lambda size: Crop(0, 0, 30, 60, True))
    assert torch.equal(boxed[:, :12], rendered(data, (12, 24), choose=lambda size: Crop(0, 0, 30, 60, True)))


def test_equal_texts_mean_equal_pixels_and_any_difference_shows():
    sizes = {"a": [(8, 8)], "b": [(8, 8), (64, 64)]}

    def seen(data, crop, which="a", **options):
        out = {size: torch.zeros(1, 3, *size, dtype=torch.uint8) for size in sizes[which]}
        return render(data, lambda size: crop, out, 0, **options).text, out[8, 8]

    one, other = jpeg(0, 300, 200), jpeg(1, 300, 200)
    cases = [
        seen(one, Crop(0, 0, 200, 200)),
        seen(other, Crop(0, 0, 200, 200)),
        seen(one, Crop(0, 100, 200, 200)),
        seen(one, Crop(0, 0, 200, 200, True)),
        seen(one, Crop(0, 0, 200, 300)),
        seen(one, Crop(0, 0, 200, 300), letterbox=True),
        seen(one, Crop(0, 0, 200, 200), "b"),  # decoded finer, since the second size needs it
    ]
    assert len({text for text, _ in cases}) == len(cases)
    assert all(not torch.equal(a, b) for i, (_, a) in enumerate(cases) for _, b in cases[:i])
    assert seen(one, Crop(0, 0, 200, 200))[0] == cases[0][0]


def test_sizes_that_one_crop_suits():
    check_sizes([(432, 288), (378, 252), (224, 149)], "stream 'low'")
    with pytest.raises(UserError, match="stream 'low'"):
        check_sizes([(64, 64), (64, 96)], "stream 'low'")


def test_a_batch_gives_floats_between_zero_and_one():
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(2, 3, 16, 16)
    floats = Batch({(16, 16): images}, ["a", "b"], "low", 0).float((16, 16))
    assert floats.dtype == torch.float32 and floats.min() == 0 and floats.max() == 1
    assert torch.equal((floats * 255).round().to(torch.uint8), images)
