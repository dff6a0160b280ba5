"""`dry_run=true`: what will be run, what it costs and what is missing, without weights; and a start that lacks them."""

from __future__ import annotations

import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from radio_distill import train
from radio_distill.dry_run import plan
from radio_distill.dry_run.checks import find_missing, find_mistakes
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


def planned(recipe) -> plan.Plan:
    mistakes, teachers = find_mistakes(recipe)
    assert not mistakes
    return plan.make_plan(recipe, teachers)


def test_the_plan_of_a_run_that_could_start(trial, console, capsys):
    assert trial.train("dry_run=true", "streams.high.sharpen=true", "teachers.b.sharpen=tile") == 0
    said = capsys.readouterr().out
    assert "nothing is started" in said and "nothing is missing" in said and not trial.run.exists()
    assert "5 passes + fusion" in said and "steps        8 in 1 stage(s); images a rank: low 32, high 16" in said
    recipe = load_recipe(trial.file)
    made = planned(recipe)
    base = load_teacher("a", recipe.teachers["a"], "cpu").base
    assert made.parameters["a"] == sum(parameter.numel() for parameter in base.parameters())
    student = [row for row in made.costs if row.name == "student"]
    assert [(row.stream, row.size, row.grid, row.share) for row in student] == [
        ("low", (32, 32), (4, 4), 1), ("high", (32, 48), (4, 6), 0.5), ("high", (48, 64), (6, 8), 0.5)
    ]  # fmt: skip
    total = sum(row.flops * row.share for row in made.costs)
    assert made.flops_a_step(0) == pytest.approx(total) and made.flops == pytest.approx(8 * total)
    small = sum(row.flops for row in made.costs if row.student_size in ((32, 32), (32, 48)))
    windows = dict.fromkeys(("low", "high"))
    assert made.flops_at({"low": (32, 32), "high": (32, 48)}, windows) == pytest.approx(small)


def test_the_plan_follows_stages_streams_mosaics_and_accumulation(trial):
    canvas = "{encoder: random, options: {patch: 8, image_size: 96, depth: 1}, summary_weight: 0, fit: mosaic}"
    recipe = load_recipe(trial.file, [
        "stages=[{steps: 3, streams: [low]}, {steps: 2}]", "optim.accumulate=2", "streams.low.teachers=[a]",
        f"teachers.c={canvas}", "optim.ema=0.9", "loss.mesa.weight=1", "streams.high.batch=3",
    ])  # fmt: skip
    made = planned(recipe)
    rows = {(row.name, row.stream, row.size): row for row in made.costs}
    low, high = (sum(c.flops * c.share for c in made.costs if c.stream == n) for n in ("low", "high"))
    assert made.flops == pytest.approx(2 * (3 * low + 2 * (low + high)))
    assert (made.images("low"), made.images("high")) == (2 * 5 * 4, 2 * 2 * 3)
    assert ("b", "low", (16, 16)) not in rows and ("b", "high", (16, 24)) in rows
    mosaic = rows["c", "high", (48, 64)]  # 6×8 cells of 12×12: two pictures a canvas
    assert mosaic.passes == "1 pass for 2"
    c = load_teacher("c", recipe.teachers["c"], "cpu").base
    rotation = 3 * 48 * 2 * 64 * 64  # PHI-S, of every cell of 3 pictures
    assert mosaic.flops == 2 * counted(lambda: c(torch.rand(1, 3, 96, 96))) + rotation  # on 2 canvases
    assert rows["student", "high", (48, 64)].flops > 3 * rows["its average", "high", (48, 64)].flops > 0


def test_a_beginning_that_is_not_there_is_missed(trial, tmp_path):
    found = find_missing(load_recipe(trial.file, [f"student.init={tmp_path}/nothing"]))
    assert len(found) == 1 and found[0].startswith("student.init: no such") and "nothing" in found[0]
    found = find_missing(load_recipe(trial.file, ["student.init=timm:vit_tiny_patch16_224"]))
    assert len(found) == 1 and "hf download" in found[0]
    assert not find_missing(load_recipe(trial.file, ["student.init=timm:vit_tiny_patch16_224:random"]))


def counted(call) -> float:
    """Operations by torch's own counter, on numbers; attention as products, which it can count on a CPU."""
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def test_the_students_row_is_what_torchs_own_counter_finds_in_the_whole_student(trial):
    recipe = load_recipe(trial.file, ["student.depth=5", "streams.low.batch=3"])
    made = planned(recipe)
    with torch.random.fork_rng():
        student = RadioModel(student_spec(recipe, {"a": Dims(24, 24), "b": Dims(16, 16)})).train()

    def step() -> None:
        out = student(torch.rand(3, 3, 32, 32))
        sum(out[name].features.square().mean() + out[name].summary.square().mean() for name in "ab").backward()

    row = next(row for row in made.costs if (row.name, row.stream) == ("student", "low"))
    # Attention's backward is counted as a fused kernel does it, which multiplies once more: 20 tokens of 32 channels.
    attention = 2 * 20 * 20 * 32 * 3 * 5
    assert row.flops == pytest.approx(counted(step) + attention, rel=1e-6)


def test_of_many_sizes_most_are_drawn_as_a_parabola_that_the_networks_follow(trial):
    options, streams = ["optim.ema=0.9", "loss.mesa.weight=1"], "streams={low: {shards: x, batch: 2, size: %s}}"
    made = planned(load_recipe(trial.file, [*options, streams % [16, 24, 32, 64]]))
    for row in planned(load_recipe(trial.file, [*options, streams % 24])).costs:  # which was not run there
        drawn = next(r for r in made.costs if (r.name, r.student_size) == (row.name, (24, 24)))
        assert drawn.flops == pytest.approx(row.flops, rel=1e-6) and drawn.share == 0.25


def test_weights_gradients_and_moments_are_those_of_the_networks(trial):
    recipe = load_recipe(trial.file, ["optim.ema=0.9", "optim.accumulate=2"])
    made = planned(recipe)
    memory, parameters = made.memory(0), 4 * made.parameters["student"]
    assert (memory.gradients, memory.optimizer) == (parameters, 2 * parameters)
    assert memory.trained == memory.average >= parameters and memory.working > memory.gradients
    halved = planned(load_recipe(trial.file, ["deepspeed.zero_optimization.stage=2"])).memory(0, ranks=2)
    assert (halved.gradients, halved.optimizer) == (parameters / 2, parameters)


def test_a_large_teacher_is_planned_without_weights_and_missed(console, capsys, monkeypatch, tmp_path):
    """The other recipes are planned by their rehearsal (`python -m radio_distill.dry_run`, in CI)."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SHARDS", raising=False)
    assert train.main(["featsharp/dinov2", "stages.0.steps=7", "streams.train.batch=1", "dry_run=true"]) == 0
    said = capsys.readouterr().out
    sizes = dict(re.findall(r"([\w-]+) ([\d.]+) M", said.split("parameters")[1].splitlines()[0]))
    assert 300 < float(sizes["dinov2"]) < 310
    assert "missing: 3 " in said and "hf download" in said and "python -m radio_distill.shards pack" in said
    assert not list(tmp_path.iterdir())


def test_all_that_a_large_recipe_lacks_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SHARDS", raising=False)
    recipe = load_recipe("am_radio_h")
    sharpened = [key for key, teacher in recipe.teachers.items() if teacher.sharpen != "none"]
    missing = find_missing(recipe)
    assert len(missing) == len(recipe.teachers) + len(sharpened) + 2
    assert all(any(f"teachers.{key}.sharpen" in text for text in missing) for key in sharpened)
    assert any("1000 of the 1000 shards" in text for text in missing)


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
    teacher = next(row for row in planned(recipe).costs if row.name != "sharpener")
    assert teacher.passes == f"{passes} passes"
