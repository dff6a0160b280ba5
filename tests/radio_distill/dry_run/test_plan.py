"""`dry_run=true`: what will be run, what it costs and what is missing, without weights; and a start that lacks them."""

from __future__ import annotations

import re

import pytest
import torch

from radio_distill import train
from radio_distill.dry_run import cost, plan
from radio_distill.recipe import load_recipe
from radio_distill.student import student_spec
from radio_distill.targets import load_teacher
from teachers.features import Dims
from teachers.radio import RadioModel
from tests.conftest import ROOT


@pytest.fixture
def console(monkeypatch):
    """A wide console, and a machine whose speed is known."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(plan, "measured_speed", lambda: 100e9)


def test_the_plan_of_a_run_that_could_start(trial, console, capsys):
    assert trial.train("dry_run=true", "streams.high.sharpen=true", "teachers.b.sharpen=tile") == 0
    said = capsys.readouterr().out
    assert "nothing is started" in said and "nothing is missing" in said and not trial.run.exists()
    assert "5 passes + fusion" in said and "steps        8 in 1 stage(s); images a rank: low 32, high 16" in said
    recipe = load_recipe(trial.file)
    made = plan.make_plan(recipe)
    base = load_teacher("a", recipe.teachers["a"], "cpu").base
    assert made.parameters["a"] == sum(parameter.numel() for parameter in base.parameters())
    student = [row for row in made.costs if row.name == "student"]
    assert [(row.stream, row.size, row.grid) for row in student] == [
        ("low", (32, 32), (4, 4)), ("high", (32, 48), (4, 6)), ("high", (48, 64), (6, 8))
    ]  # fmt: skip
    total = sum(row.flops * recipe.streams[row.stream].batch for row in made.costs)
    assert made.flops_a_step(0) == pytest.approx(total) and made.flops == pytest.approx(8 * total)


def test_the_plan_follows_stages_streams_mosaics_and_accumulation(trial):
    canvas = "{encoder: random, options: {patch: 8, image_size: 96, depth: 1}, summary_weight: 0, fit: mosaic}"
    recipe = load_recipe(trial.file, [
        "stages=[{steps: 3, streams: [low]}, {steps: 2}]", "optim.accumulate=2", "streams.low.teachers=[a]",
        f"teachers.c={canvas}", "optim.ema=0.9", "loss.mesa.weight=1",
    ])  # fmt: skip
    made = plan.make_plan(recipe)
    rows = {(row.name, row.stream, row.size): row for row in made.costs}
    low, high = (sum(c.flops * recipe.streams[n].batch for c in made.costs if c.stream == n) for n in ("low", "high"))
    assert made.flops == pytest.approx(2 * (3 * low + 2 * (low + high)))
    assert (made.images("low"), made.images("high")) == (2 * 5 * 4, 2 * 2 * 2)
    assert ("b", "low", (16, 16)) not in rows and ("b", "high", (16, 24)) in rows
    mosaic = rows["c", "high", (48, 64)]  # 6×8 cells of 12×12: two pictures a canvas
    assert mosaic.passes == "1 pass for 2"
    c = load_teacher("c", recipe.teachers["c"], "meta", meta=True).base
    assert mosaic.flops == pytest.approx(cost.flops(c, (96, 96)) / 2 / 2)  # and drawn for half of the batches
    student = rows["student", "high", (48, 64)].flops, rows["its average", "high", (48, 64)].flops
    assert student[0] > 3 * student[1] > 0
    assert rows["student", "low", (32, 32)].flops < 3 * cost.flops(_student(recipe), (32, 32))  # one head of three


def test_a_beginning_that_is_not_there_is_missed(trial, tmp_path):
    found = plan.find_missing(load_recipe(trial.file, [f"student.init={tmp_path}/nothing"]))
    assert len(found) == 1 and found[0].startswith("student.init: no such") and "nothing" in found[0]
    found = plan.find_missing(load_recipe(trial.file, ["student.init=timm:vit_tiny_patch16_224"]))
    assert len(found) == 1 and "hf download" in found[0]
    assert not plan.find_missing(load_recipe(trial.file, ["student.init=timm:vit_tiny_patch16_224:random"]))


def _student(recipe) -> RadioModel:
    with torch.device("meta"):
        return RadioModel(student_spec(recipe, dict.fromkeys(recipe.teachers, Dims(24, 24)))).eval()


def test_flops_are_those_of_the_matrix_products(trial):
    recipe = load_recipe(trial.file)
    with torch.device("meta"):
        student = RadioModel(student_spec(recipe, {"a": Dims(24, 24)}))
    tokens, patches, width, hidden = 3 + 16, 16, 32, 24  # one summary token, two registers
    block = tokens * width * width * (3 + 1 + 4 + 4) + 2 * tokens * tokens * width
    heads = (1 + patches) * (width * hidden + hidden * 24)
    wanted = 2 * (patches * 3 * 8 * 8 * width + 2 * block + heads)
    assert cost.flops(student.eval(), (32, 32)) == pytest.approx(wanted, rel=0.01)


@pytest.mark.parametrize("name", ["radio_b", "radio_l", "radio_h", "c_radio_v4_h", "am_radio_h"])
def test_radios_own_recipes_plan_without_weights_and_say_what_is_missing(name, console, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SHARDS", raising=False)
    assert train.main([name, "dry_run=true"]) == 0
    said = capsys.readouterr().out
    sizes = dict(re.findall(r"([\w-]+) ([\d.]+) M", said.split("parameters")[1].splitlines()[0]))
    recipe = load_recipe(name)
    assert list(sizes) == [*recipe.teachers, "student"]
    trunk = {"radio_b": 85, "radio_l": 303, "radio_h": 630, "c_radio_v4_h": 630, "am_radio_h": 630}[name]
    assert trunk < float(sizes["student"]) < 1.7 * trunk
    sharpened = [key for key, teacher in recipe.teachers.items() if teacher.sharpen != "none"]
    assert f"missing: {len(recipe.teachers) + len(sharpened) + 2} " in said and "hf download" in said
    assert all(f"teachers.{key}.sharpen" in said for key in sharpened)
    assert "streams.high.shards: 1000 of the 1000 shards" in said and "python -m radio_distill.shards pack" in said
    assert not list(tmp_path.iterdir())


def test_a_start_without_weights_says_what_is_missing_and_how_to_get_it(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert train.main(["radio_l"]) == 2
    said = capsys.readouterr().err
    assert "cannot start runs/radio_l: 8 missing" in said and "Nothing was started." in said
    for key in ("teachers.dfn_clip.weights", "teachers.siglip.weights", "teachers.dfn_clip.sharpen", "heldout.shards"):
        assert key in said
    assert "hf download" in said and "recipes/featsharp" in said and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ("{upsampler: jafar, factor: 2}", 1 + 1),
        ("{factor: 2}", 1 + 1 + 4),
        ("{factor: 4, progressive: true}", 1 + 1 + 4 + 16),
    ],
)
def test_a_sharpeners_plan_counts_the_passes_its_upsampler_asks_for(options, passes):
    settings = options.replace("}", ", views: {jitters: 1}}")
    recipe = load_recipe(ROOT / "recipes/featsharp/tabletop_clip.yaml", [f"sharpener={settings}"])
    teacher = next(row for row in plan.make_plan(recipe).costs if row.name != "sharpener")
    assert teacher.passes == f"{passes} passes"
