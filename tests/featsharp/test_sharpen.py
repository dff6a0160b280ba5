"""The public door `featsharp.sharpen`: what it returns, that no import hides it, and what it says of bad input."""

import importlib
import importlib.util
import json
import runpy
import sys

import pytest
import torch
from PIL import Image

import featsharp
from featsharp import sharpen, sharpen_pictures
from featsharp.config import SharpenerConfig
from featsharp.sharpener import Sharpener
from teachers.errors import UserError
from teachers.features import Encoder
from teachers.seeding import seeded, torch_rng
from tests.featsharp.toys import random_teacher


@pytest.fixture
def adapter(tmp_path):
    """A run folder with an untrained FeatSharp in it."""
    with seeded("adapter"):
        Sharpener(random_teacher(), SharpenerConfig(fusion={"heads": 8})).save(tmp_path / "run" / "export")
    return tmp_path / "run"


def images(height: int = 96, width: int = 128) -> torch.Tensor:
    return torch.rand(2, 3, height, width, generator=torch_rng("images"))


def test_it_returns_an_encoder_of_a_finer_grid_in_the_teachers_space(adapter):
    teacher = random_teacher()
    for spec, factor in [(adapter, 2), (str(adapter / "export"), 2), ("bilinear", 3), ("tile", 1)]:
        sharp = sharpen(teacher, spec, factor)
        assert isinstance(sharp, Encoder) and sharp.dims == teacher.dims and sharp.factor == factor
        assert sharp(images(48 * factor, 64 * factor)).spatial.shape == (2, 32, 6 * factor, 8 * factor)


def test_importing_the_command_does_not_hide_the_function(monkeypatch):
    monkeypatch.delitem(sys.modules, "featsharp.sharpen", raising=False)
    module = importlib.import_module("featsharp.sharpen")
    assert module is featsharp.sharpen is sharpen
    from featsharp.sharpen import __doc__ as text  # what reads a module still finds its way

    assert "finer map" in text
    assert importlib.util.find_spec("featsharp.sharpen").origin.endswith("sharpen.py")


def test_each_picture_has_a_png_of_its_own_and_no_original_is_replaced(tmp_path, capsys):
    sharp = sharpen(random_teacher(), "bilinear", 2)
    files = [tmp_path / name for name in ("p/a.jpg", "p/a.png", "q/a.png", "r/p/a.png")]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48), "red").save(file)
    out = tmp_path / "out"
    for _ in range(2):  # the second time over its own
        assert sharpen_pictures.sharpen_pictures(sharp, files, out) == 0
        assert sorted(path.name for path in out.iterdir()) == ["a.png", "a.png.png", "p_a.png.png", "q_a.png.png"]
    before = files[1].read_bytes()
    (out / "b.png").write_text("notes")
    Image.new("RGB", (64, 48)).save(tmp_path / "b.jpg")
    for pictures, folder in (([files[1]], files[1].parent), ([tmp_path / "b.jpg"], out), ([out / "a.png"], out)):
        with pytest.raises(UserError, match="nothing was written"):
            sharpen_pictures.sharpen_pictures(sharp, pictures, folder)
    assert files[1].read_bytes() == before and (out / "b.png").read_text() == "notes"


def test_python_m_featsharp_sharpen_still_sharpens_pictures(adapter, tmp_path, monkeypatch, capsys):
    picture, out = tmp_path / "red.png", tmp_path / "out"
    Image.new("RGB", (90, 60), "red").save(picture)
    command = ["featsharp.sharpen", str(adapter), str(picture), "--out", str(out), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.delitem(sys.modules, "featsharp.sharpen", raising=False)  # a fresh process has not imported it
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("featsharp.sharpen", run_name="__main__")
    assert stopped.value.code == 2 and "does not say which teacher" in capsys.readouterr().err
    monkeypatch.setattr(sharpen_pictures.sharpener, "build_teacher", lambda *_: random_teacher())
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("featsharp.sharpen", run_name="__main__")
    assert stopped.value.code == 0 and (out / "red.png").is_file()
    assert featsharp.sharpen is sharpen


def test_an_adapter_of_another_teacher_or_width_is_refused(adapter):
    for other in (random_teacher(seed=1), random_teacher(width=16)):
        with pytest.raises(UserError, match="another teacher") as error:
            sharpen(other, adapter)
        assert other.identity in str(error.value) and random_teacher().identity in str(error.value)


@pytest.mark.parametrize("factor", [0, -1, 15])
def test_a_factor_that_cannot_be_is_refused(adapter, factor):
    with pytest.raises(UserError, match=f"cannot be sharpened {factor} times"):
        sharpen(random_teacher(), "bilinear", factor)
    file = adapter / "export" / "config.json"
    about = json.loads(file.read_text())
    about["sharpener"]["factor"] = factor
    file.write_text(json.dumps(about))
    with pytest.raises(UserError, match=r"config\.json: sharpener\.factor"):
        sharpen(random_teacher(), adapter)


def test_features_that_are_not_numbers_are_refused_and_the_image_named(adapter):
    x = images()
    x[1, 0, 5, 5] = torch.nan
    for spec in (adapter, "bilinear"):
        with pytest.raises(UserError, match="NaN or infinite, first for image 1"):
            sharpen(random_teacher(), spec)(x)


@pytest.mark.parametrize("size", [(6, 128), (4, 4), (2, 2)])
def test_an_image_smaller_than_a_patch_is_refused(adapter, size):
    with pytest.raises(UserError, match="positive multiples of its patch size 8"):
        sharpen(random_teacher(), adapter)(torch.rand(1, 3, *size))
