"""Fidelity of sharpened teachers: the command's figures, known teachers, and one yardstick for all sharpeners."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from worlds import Fake, World

from eval.datasets.split import Split
from eval.encoders import open_model
from eval.tasks import TASKS, fidelity
from eval.tasks.task import NotApplicable
from featsharp.adapter import DOWNSAMPLER
from featsharp.config import SharpenerConfig, ViewsConfig
from featsharp.fidelity import SIGMAS, fixed_views
from featsharp.fidelity_command import main
from featsharp.multiview import fully_inside, look_up, warp
from featsharp.sharpener import Sharpener
from teachers.errors import UserError
from teachers.features import Features
from teachers.seeding import torch_rng
from tests.featsharp.test_fidelity import write_run
from tests.featsharp.toys import NoisyColours, Pictures

SIZE = (64, 96)  # of the base views of `write_run`'s teacher, doubled
VIEWS = {"jitters": 5, "zoom": [1.0, 1.0], "source_scale": 1.0}


def split_of(size=SIZE, count: int = 5) -> Split:
    images = Pictures(size, count, 300).images[size]
    return Split(
        data="toys", part="val", count=count, identity=f"toys-{size}-{count}", source="a test", shape=size,
        image=lambda index: images[index],
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "sharp"
    write_run(folder)
    return folder


@pytest.fixture
def world(tmp_path):
    return World(tmp_path, val=split_of())


def sharpened(spec: str):
    teacher = "random&patch=8&width=16&depth=1&image_size=[32,48]&seed=0"
    return open_model(f"sharpened:{spec}?teacher={teacher}").encoder


def said(objective, split: Split) -> torch.Tensor:
    """All that the teacher says of views, where they lie inside their base view: C×n."""
    cells = []
    for index in range(split.count):
        views = fixed_views(objective.config.views, index, 1, objective.view_size)
        sight = objective.show(split.image(index)[None] / 255, views)
        for where, target in zip(sight.to_base, sight.targets):
            cells.append(target[0][:, fully_inside(where, tuple(target.shape[-2:]))[0, 0]])
    return torch.cat(cells, 1).double()


def test_the_commands_figures_come_out(world, run, tmp_path, capsys):
    (tmp_path / "pictures").mkdir()
    for index in range(5):
        pixels = world.val.image(index).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(tmp_path / f"pictures/{index}.png")
    command = [str(run), "--pictures", str(tmp_path / "pictures"), "--samples", "5", "--out", str(tmp_path / "out")]
    assert main([*command, "--device", "cpu"]) == 0
    [teacher] = json.loads((tmp_path / "out/fidelity.json").read_text())
    row = teacher["rows"][0]
    model = sharpened(run)
    result = world.run(model, "fidelity", views=VIEWS)
    own, found = result.facts["fidelity by its own statistics"], result.metrics
    assert own == pytest.approx(row["fidelity"]["value"], rel=1e-5)
    assert found["× bilinear"].value == pytest.approx(row["gain"]["value"], rel=1e-5)
    seen = said(fidelity.judge_of(model, ViewsConfig(**VIEWS)), world.val)
    assert found["fidelity"].value == pytest.approx(own * float(seen.var(1, correction=0).mean()), rel=1e-4)
    raw = found["fidelity raw"].value / found["fidelity"].value
    assert raw == pytest.approx(row["fidelity_raw"]["value"] / row["fidelity"]["value"], rel=1e-5)
    assert all(metric.direction == "higher" and not metric.counts and metric.n == 5 for metric in found.values())
    assert all(len(metric.resamples) == 200 for metric in found.values())


class Colours(NoisyColours):
    """Mean colours of patches, without noise: a finer look says what a coarse one of other cells will say."""

    resolution_flexible = False

    def __init__(self):
        super().__init__((6, 8), noise=0.0)


class Forgetful(Colours):
    """Knows the picture no more the second time: noise at every look."""

    identity = "forgetful"

    def __init__(self):
        super().__init__()
        self.rng = torch_rng("forgetful")

    def forward(self, images):
        seen = super().forward(images).spatial
        return Features(None, torch.randn(seen.shape, generator=self.rng))


def untrained(encoder, upsampler: str) -> Sharpener:
    return Sharpener(encoder, SharpenerConfig(upsampler=upsampler, factor=2, bias=False))


def test_finer_looks_predict_a_true_teacher_and_nothing_predicts_noise(tmp_path):
    world = World(tmp_path, val=split_of((48, 64), 8))
    tile, bilinear, noise = (
        world.run(untrained(encoder, name), "fidelity", views=VIEWS).metrics
        for encoder, name in ((Colours(), "tile"), (Colours(), "bilinear"), (Forgetful(), "tile"))
    )
    assert tile["fidelity"].value > 20 > 5 > bilinear["fidelity"].value > 1.5
    assert bilinear["× bilinear"].value == pytest.approx(1)
    assert tile["× bilinear"].chance == pytest.approx(1 / bilinear["fidelity"].value)
    assert noise["fidelity"].chance == 1 and 0.4 < noise["fidelity"].value < 1.02


@pytest.mark.parametrize("upsampler", ["bilinear", "tile"])
def test_what_is_untrained_is_judged_by_the_best_gaussian_as_brute_force_finds_it(tmp_path, upsampler):
    world, encoder = World(tmp_path, val=split_of((48, 64), 4)), Colours()
    model = untrained(encoder, upsampler)
    objective = fidelity.judge_of(model, ViewsConfig(**VIEWS))
    errors, constant, cells = dict.fromkeys(SIGMAS, 0.0), 0.0, 0
    whole = torch.stack([world.val.image(i) for i in range(4)]) / 255
    seen = said(objective, world.val)
    means = seen.mean(1).view(1, -1, 1, 1)
    for index in range(4):
        sight = objective.show(whole[index : index + 1], fixed_views(ViewsConfig(**VIEWS), index, 1, (48, 64)))
        sharp = F.interpolate(sight.low, (12, 16), mode="bilinear", align_corners=False)
        sharp = sharp if upsampler == "bilinear" else encoder_of_tiles(encoder, sight.image)
        for view, target in zip(sight.to_base, sight.targets):
            inside = fully_inside(view, (6, 8))
            moved = F.pad(warp(sharp, look_up(view, (12, 16))), (2, 2, 2, 2), mode="replicate")
            for sigma in SIGMAS:
                taps = torch.exp(-((torch.arange(6) - 2.5) ** 2) / (2 * (2 * sigma) ** 2))
                kernel = torch.outer(taps, taps) / taps.sum() ** 2
                guess = F.conv2d(moved, kernel.expand(6, 1, 6, 6), stride=2, groups=6)
                errors[sigma] += float(((guess - target).square().mean(1, keepdim=True) * inside).sum())
            constant += float(((means - target).square().mean(1, keepdim=True) * inside).sum())
            cells += int(inside.sum())
    found = world.run(model, "fidelity", views=VIEWS).metrics
    spread = float(seen.var(1, correction=0).mean())
    assert found["fidelity"].value == pytest.approx(spread * cells / min(errors.values()), rel=1e-4)
    assert spread * cells / constant == pytest.approx(found["fidelity"].chance, abs=1e-4)  # the best constant: 1


def encoder_of_tiles(encoder, image):
    """The maps of the four quarters of a picture, side by side."""
    rows = [torch.cat([encoder(part).spatial for part in row.chunk(2, 3)], 3) for row in image.chunk(2, 2)]
    return torch.cat(rows, 2)


def test_so_many_pictures_are_drawn_and_a_larger_box_is_cut_out(tmp_path):
    world = World(tmp_path, val=split_of((70, 80), 8))
    result = world.run(untrained(Colours(), "bilinear"), "fidelity", pictures=3, views=VIEWS)
    assert result.metrics["fidelity"].n == 3 and result.facts["size"] == [48, 64]
    assert result.facts["factor"] == 2 and result.facts["upsampler"] == "bilinear"
    again = world.run(untrained(Colours(), "bilinear"), "fidelity", pictures=3, views=VIEWS)
    assert again.metrics == result.metrics


def test_what_cannot_be_judged_says_why(world, run, tmp_path):
    with pytest.raises(NotApplicable, match="not a sharpened teacher"):
        TASKS["fidelity"].parts(world.context(Fake("student"), "fidelity"))
    model = sharpened(run)
    assert TASKS["fidelity"].parts(world.context(model, "fidelity")) == []
    shutil.copytree(run, tmp_path / "copy")
    (tmp_path / "copy/export" / DOWNSAMPLER).unlink()
    with pytest.raises(UserError, match=f"no {DOWNSAMPLER}, so its sharpener can be used but not judged"):
        world.run(sharpened(tmp_path / "copy"), "fidelity", views=VIEWS)
    blank = Colours()
    blank.identity, blank.mix.weight.data[:] = "blank", 0
    with pytest.raises(UserError, match="says the same of all cells"):
        World(tmp_path, val=split_of((48, 64), 2)).run(untrained(blank, "tile"), "fidelity", views=VIEWS)
