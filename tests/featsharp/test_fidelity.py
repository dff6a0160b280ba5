"""The fidelity command: intervals by hand, the same answer twice, runs side by side, the report, and its errors."""

import io
import json
import tarfile

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from featsharp import cost, looks, reading
from featsharp.adapter import DOWNSAMPLER, save
from featsharp.config import SharpenerConfig, ViewsConfig
from featsharp.fidelity import figures, fixed_views, ratio, resamples
from featsharp.fidelity_command import main, measure, shared_views
from featsharp.remembering import Remembering
from featsharp.runs import open_run, open_runs, restore, trainings
from featsharp.task import SharpenObjective
from teachers.catalogue import build
from teachers.errors import UserError
from teachers.features import Encoder
from teachers.seeding import numpy_rng, torch_rng
from tests.featsharp.toys import Pictures

SMALL = {"fusion": {"heads": 4, "hidden": 16, "layer_scale": 0.1}, "losses": {"uncertainty": False}}
SMALL["views"] = {"jitters": 2, "zoom": [1.0, 1.0], "source_scale": 1.0}


def teacher_options(seed: int) -> dict:
    return {"patch": 8, "width": 16, "depth": 1, "image_size": [32, 48], "seed": seed}


def write_run(folder, heldout: str | None = None, seed: int = 0, steps: int = 2, **config):
    """A run folder as training leaves it, of a sharpener that has seen a few batches."""
    options = teacher_options(seed)
    built_from = {"encoder": "random", "weights": None, "options": options}
    objective = SharpenObjective(
        build("random", **options),
        SharpenerConfig.model_validate(SMALL | config),
        cache=folder.parent / "cache",
        statistics_batches=2,
        say=lambda text: None,
        built_from=built_from,
    )
    objective.begin_stage(0, lambda: (Pictures(objective.image_size, 4, n) for n in range(2)), "toys")
    optimizer = torch.optim.NAdam(objective.param_groups(3e-3, 0.0))
    for step in range(steps):
        total, _ = objective.losses(
            objective.model, Pictures(objective.image_size, 4, 50 + step), step, torch_rng("step", step)
        )
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    objective.artefact(folder / "export")
    recipe = {"task": "sharpen"} | ({"heldout": {"shards": heldout, "samples": 5}} if heldout else {})
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return objective


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Seven pictures in two tar shards, one of which is none."""
    folder = tmp_path_factory.mktemp("shards")
    for shard, numbers in enumerate([range(4), range(4, 7)]):
        with tarfile.open(folder / f"heldout-{shard}.tar", "w") as tar:
            for number in numbers:
                add(tar, f"{number:04}.jpg", b"no picture" if number == 1 else picture(number))
                add(tar, f"{number:04}.txt", b"a caption")
    return str(folder / "heldout-*.tar")


def picture(number: int) -> bytes:
    pixels = Pictures((80, 100), 1, 200 + number).images[80, 100][0]
    buffer = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(buffer, "JPEG")
    return buffer.getvalue()


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


@pytest.fixture(scope="module")
def runs(tmp_path_factory, shards):
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "sharp", shards)
    write_run(folder / "plain", shards, upsampler="bilinear", factor=3, bias=False)
    write_run(folder / "other", shards, seed=1, upsampler="tile")
    return folder


def test_intervals_of_two_pictures_are_those_of_all_their_resamples():
    # Two pictures of 10 cells with errors 2 and 5: a resample is (a, a), (a, b) or (b, b) with odds 1 : 2 : 1.
    cells, errors = np.array([10.0, 10.0]), np.array([2.0, 5.0])
    assert ratio(cells, errors, resamples(2)).estimate() == pytest.approx((20 / 7, 2.0, 5.0))
    found = (resamples(2) @ cells) / (resamples(2) @ errors)
    shares = [np.isclose(found, value).mean() for value in (5.0, 20 / 7, 2.0)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.04)


def test_the_ratio_is_of_sums_not_a_mean_of_ratios_and_one_picture_has_no_interval():
    cells, errors = np.array([1.0, 9.0]), np.array([1.0, 1.0])
    assert ratio(cells, errors).value == 5.0
    alone = figures([{"cells": cells[1:], "fidelity": errors[1:], "bilinear": 3 * errors[1:]}])
    assert alone["gain"].value == 3.0 and np.isnan(alone["fidelity"].estimate().low)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    covered = 0
    for trial in range(150):
        errors = numpy_rng("coverage", trial).gamma(4.0, 0.25, size=60)  # mean 1
        _, low, high = ratio(np.ones(60), errors, resamples(60)).estimate()
        covered += low <= 1.0 <= high
    assert 0.89 <= covered / 150 <= 0.99


def test_gain_is_paired_so_it_is_surer_than_either_figure():
    hard = numpy_rng("hard").gamma(1.0, 1.0, size=40)  # pictures differ much, the two methods by a constant factor
    found = figures([{"cells": np.ones(40), "fidelity": hard, "bilinear": 1.25 * hard}])
    assert found["gain"].estimate() == pytest.approx((1.25, 1.25, 1.25))
    assert found["fidelity"].estimate().high > 1.3 * found["fidelity"].estimate().low


def test_several_trainings_are_averaged_and_their_differences_widen_the_interval():
    errors = numpy_rng("errors").gamma(4.0, 0.25, size=80)
    one = {"cells": np.ones(80), "fidelity": errors, "bilinear": 2 * errors}
    better = {**one, "fidelity": errors / 1.5}
    alone, alike, unlike = (figures(runs)["fidelity"].estimate() for runs in ([one], [one, one], [one, better]))
    assert alike == pytest.approx(alone)
    assert unlike.value == pytest.approx(1.25 * alone.value)
    assert unlike.high - unlike.low > 1.5 * (alone.high - alone.low)
    assert figures([one, better])["gain"].value == pytest.approx(2.5)


def test_views_belong_to_a_picture_however_it_is_batched():
    config = ViewsConfig()
    together, alone = fixed_views(config, 0, 5, (32, 48)), fixed_views(config, 3, 1, (64, 96))
    assert torch.equal(together.base[3], alone.base[0])
    assert torch.equal(together.jitters[:, 3], alone.jitters[:, 0])
    assert not torch.equal(together.jitters[:, 2], alone.jitters[:, 0])


def test_a_restored_run_judges_as_the_training_did(tmp_path):
    trained = write_run(tmp_path / "run")
    heldout = [Pictures(trained.image_size, 3, 900), Pictures(trained.image_size, 2, 901)]
    found = trained.judge(heldout).sums()
    run = open_run(tmp_path / "run")
    again = restore(run, build("random", **teacher_options(0)), run.config.views, "cpu").judge(heldout).sums()
    assert found.keys() == again.keys() == {"cells", "fidelity", "fidelity_raw", "bilinear", "bilinear_raw"}
    for name, values in found.items():
        assert len(values) == 5
        np.testing.assert_allclose(values, again[name], rtol=1e-5)


def test_the_command_reports_every_run_beside_bilinear_a_teacher_at_a_time(runs, tmp_path, capsys):
    folders = [str(runs / name) for name in ("sharp", "plain", "other")]
    assert main([*folders, "--out", str(tmp_path), "--device", "cpu"]) == 0
    said = capsys.readouterr()
    assert "0001: left out, it cannot be read" in said.err and "sharp" in said.out
    first, second = json.loads((tmp_path / "fidelity.json").read_text())
    assert {row["run"] for row in first["rows"]} == {"sharp", "plain"} and second["rows"][0]["run"] == "other"
    assert [row["factor"] for row in first["bilinear"]] == [2, 3]
    values = [row["fidelity"]["value"] for row in first["rows"]]
    assert values == sorted(values, reverse=True) and first["pictures"] == 5
    for row in first["rows"] + second["rows"]:
        for key in ("fidelity", "fidelity_raw", "bilinear", "gain", "share"):
            assert row[key]["low"] <= row[key]["value"] <= row[key]["high"]
        assert row["gain"]["value"] == pytest.approx(row["fidelity"]["value"] / row["bilinear"]["value"])
    best, other = (row["share"] for row in first["rows"])
    assert best == {"value": 1.0, "low": 1.0, "high": 1.0} and other["value"] < 1
    plain = next(row for row in first["rows"] if row["run"] == "plain")
    assert plain["fidelity"] == plain["fidelity_raw"]  # it has learned no bias
    page = (tmp_path / "fidelity.md").read_text()
    assert page.count("## random (") == 2 and all(f"| {name} |" in page for name in ("sharp", "plain", "other"))
    for name in ("fidelity.png", "panel_1_random.png", "bias_1_random.png", "panel_2_random.png"):
        assert f"({name})" in page
        with Image.open(tmp_path / name) as opened:
            opened.load()


def test_seeds_of_one_recipe_make_one_row_and_others_do_not(tmp_path, shards, capsys):
    folders = [tmp_path / name for name in ("sharp-seed0", "sharp-seed1", "other-seed1")]
    for seed, folder in enumerate(folders):
        write_run(folder, shards, steps=1 + seed, upsampler="bilinear")
    assert list(trainings(open_runs(folders))) == ["sharp", "other-seed1"]
    assert main([*map(str, folders), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    [teacher] = json.loads((tmp_path / "out" / "fidelity.json").read_text())
    row = next(row for row in teacher["rows"] if row["run"] == "sharp")
    assert len(row["paths"]) == len(row["by_seed"]) == 2
    assert row["fidelity"]["value"] == pytest.approx(sum(row["by_seed"]) / 2)
    assert f"| 2: {min(row['by_seed']):.2f} to " in (tmp_path / "out" / "fidelity.md").read_text()
    (folders[1] / "recipe.yaml").write_text("task: sharpen\noptim: {lr: 1}\n")
    assert list(trainings(open_runs(folders[:2]))) == ["sharp-seed0", "sharp-seed1"]  # not the same recipe


def test_it_says_the_same_twice_and_a_run_scores_the_same_in_company(runs, tmp_path):
    for number, names in enumerate([["sharp"], ["sharp"], ["sharp", "plain"]]):
        out = str(tmp_path / str(number))
        assert main([*(str(runs / name) for name in names), "--out", out, "--device", "cpu"]) == 0
    alone, again, company = (json.loads((tmp_path / n / "fidelity.json").read_text()) for n in "012")
    assert alone == again
    assert alone[0]["rows"][0] in company[0]["rows"]
    assert (tmp_path / "0" / "panel.png").read_bytes() == (tmp_path / "1" / "panel.png").read_bytes()


def test_the_teacher_looks_once_for_all_runs_and_forgets_what_it_has_no_room_for(runs):
    counted, calls = build("random", **teacher_options(0)), []
    counted.register_forward_hook(lambda *_: calls.append(1))
    images = torch.rand(3, 3, 32, 48, generator=torch_rng("images"))
    truth = build("random", **teacher_options(0))(images).spatial
    for room, looks_taken in ((2**20, 1), (10, 3)):
        calls.clear()
        teacher = Remembering(counted, room)
        assert all(torch.equal(teacher(images.clone()).spatial, truth) for _ in range(3))
        assert len(calls) == looks_taken
    assert not torch.equal(teacher(1 - images).spatial, truth) and teacher.identity == counted.identity
    found = open_runs([runs / "sharp", runs / "plain"])
    calls.clear()
    source = lambda: iter([("0", lambda: picture(0)), ("2", lambda: picture(2))])  # noqa: E731
    measure(found[:1] * 2, counted, source, 2, "cpu")
    assert len(calls) == 1


def test_runs_of_other_views_are_judged_by_the_defaults(runs):
    sharp, plain, _ = open_runs([runs / name for name in ("sharp", "plain", "other")])
    views, common = shared_views([sharp, plain])
    assert common and views.jitters == 5 and views.zoom == (1.0, 1.0)
    turned = plain.config.model_copy(update={"views": ViewsConfig(rotation=10)})
    assert shared_views([sharp, type(plain)(**{**vars(plain), "config": turned})]) == (ViewsConfig(), False)


def test_pictures_come_from_folders_too_and_samples_counts_them(runs, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.jpg").write_bytes(picture(number))
    out = tmp_path / "out"
    command = [str(runs / "sharp" / "export"), "--pictures", str(folder), "--samples", "3", "--out", str(out)]
    assert main([*command, "--device", "cpu"]) == 0
    [teacher] = json.loads((out / "fidelity.json").read_text())
    assert teacher["pictures"] == 3 and teacher["rows"][0]["run"] == "sharp"


def test_the_cost_figure_measures_native_passes_and_each_upsampler(runs, monkeypatch):
    monkeypatch.setattr(cost, "FACTORS", (1, 2))
    monkeypatch.setattr(cost, "SECONDS", 0.0)
    teacher = build("random", **teacher_options(0))
    found = cost.measure(open_runs([runs / "sharp", runs / "plain"]), teacher, "cpu")
    assert set(found["series"]) == {"native", "1 + f² passes", "featsharp", "bilinear"} and "torch" in found["machine"]
    for points in found["series"].values():
        assert [(point["height"], point["width"], point["cells"]) for point in points] == [(32, 48, 24), (64, 96, 96)]
        assert all(point["ms_image"] * 1e3 == pytest.approx(point["us_cell"] * point["cells"]) for point in points)
    assert cost.draw(found).width > 500


def test_the_cost_figure_leaves_out_factors_that_an_upsampler_cannot_have(tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "FACTORS", (1, 2))
    monkeypatch.setattr(cost, "SECONDS", 0.0)
    write_run(tmp_path / "same", steps=0, upsampler="identity", factor=1)
    found = cost.measure(open_runs([tmp_path / "same"]), build("random", **teacher_options(0)), "cpu")["series"]
    assert [point["factor"] for point in found["identity"]] == [1] and len(found["native"]) == 2


def test_the_panel_names_each_map_and_shows_native_detail_where_the_teacher_can(runs):
    teacher, pictures = build("random", **teacher_options(0)), Pictures((96, 144), 2, 7).float((96, 144))
    opened = open_runs([runs / "sharp", runs / "plain"])
    columns = dict(looks._columns(opened, teacher, pictures, "cpu"))
    assert [(title, tuple(maps.shape[-2:])) for title, maps in columns.items()] == [
        ("random, 32×48 px", (4, 6)),
        ("random, 96×144 px", (12, 18)),
        ("bilinear 2x", (8, 12)),
        ("bilinear 3x", (12, 18)),
        ("featsharp 2x", (8, 12)),
        ("bilinear 3x, trained", (12, 18)),
    ]
    teacher.resolution_flexible = False
    assert "random, 96×144 px" not in dict(looks._columns(opened, teacher, pictures, "cpu"))
    assert looks.bias_picture(opened[1:], teacher) is None


def test_what_is_no_finished_sharpener_is_explained(runs, tmp_path, capsys):
    student = tmp_path / "student"
    student.mkdir()
    (student / "recipe.yaml").write_text("task: distill\n")
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "recipe.yaml").write_text("task: sharpen\n")
    without = tmp_path / "without"
    write_run(without, steps=0)
    (without / "export" / DOWNSAMPLER).unlink()
    told = {
        tmp_path / "nothing": "there is no run folder",
        student: "is a run of `task: distill`",
        begun: "has no export yet",
        tmp_path: "no trained sharpener",
        without: "can be used but not judged",
    }
    for folder, text in told.items():
        assert main([str(runs / "sharp"), str(folder), "--out", str(tmp_path / "out")]) == 2
        assert text in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_teacher_whose_weights_are_missing_is_explained_with_its_run(runs, tmp_path, shards, capsys):
    write_run(tmp_path / "run", shards, steps=0)
    file = tmp_path / "run" / "export" / "config.json"
    about = json.loads(file.read_text())
    about["teacher"]["built_from"] = {"encoder": "timm", "weights": "/no/such.safetensors", "options": {"model": "x"}}
    file.write_text(json.dumps(about))
    assert main([str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "its teacher 'random' cannot be built" in said and str(tmp_path / "run") in said


def test_held_out_pictures_must_be_named_and_the_same_for_all(runs, tmp_path, shards, capsys):
    write_run(tmp_path / "one", steps=0)
    assert main([str(tmp_path / "one"), str(runs / "sharp"), "--out", str(tmp_path / "out")]) == 2
    assert "do not name the same held-out shards" in capsys.readouterr().err
    command = [str(runs / "sharp"), "--out", str(tmp_path / "out")]
    assert main([*command, "--shards", str(tmp_path / "none-*.tar")]) == 2
    assert "no shard matches" in capsys.readouterr().err
    assert main([*command, "--samples", "0"]) == 2
    assert "at least 1 picture" in capsys.readouterr().err
    (tmp_path / "broken.tar").write_bytes(b"no tar" * 1000)
    assert main([*command, "--shards", str(tmp_path / "broken.tar"), "--device", "cpu"]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_features_that_are_not_numbers_are_no_fidelity(runs):
    class Broken(Encoder):
        name, patch_size, resolution_flexible, licence = "broken", 8, True, "none"

        def __init__(self, inner: Encoder):
            super().__init__()
            self.inner, self.dims, self.native_size = inner, inner.dims, inner.native_size
            self.identity = inner.identity

        def forward(self, images):
            seen = self.inner(images)
            return seen._replace(spatial=seen.spatial.masked_fill(seen.spatial > 0, torch.nan))

    run = open_run(runs / "sharp")
    objective = restore(run, Broken(build("random", **teacher_options(0))), run.config.views, "cpu")
    with pytest.raises(UserError, match="NaN or infinite"):
        objective.judge([Pictures(objective.image_size, 2, 0)]).result()


def test_an_export_without_downsampler_drops_an_earlier_one(runs, tmp_path):
    objective = write_run(tmp_path / "run", steps=0)
    assert (tmp_path / "run" / "export" / DOWNSAMPLER).is_file()
    save(objective.model.adapter, objective.config, objective.encoder, tmp_path / "run" / "export")
    assert not (tmp_path / "run" / "export" / DOWNSAMPLER).exists()


def test_reading_crops_upright_pictures_to_the_size(tmp_path):
    tall = Image.new("RGB", (20, 60), "blue")
    tall.paste("red", (0, 20, 20, 40))
    tall.save(tmp_path / "tall.png")
    [batch] = reading.batches(reading.from_folder(tmp_path), (10, 10), 4)
    assert batch.float((10, 10)).shape == (1, 3, 10, 10)
    assert batch.float((10, 10))[0, 0].min() > 0.9  # the middle square alone
