"""`rehearse=true`: a step of every stage in the run's own code, on tensors without values, beside the plan."""

from __future__ import annotations

import re

import pytest
import torch
from trial import Trial

from radio_distill import distill
from radio_distill.dry_run.checks import find_mistakes
from radio_distill.dry_run.fake import fake_tensors
from radio_distill.dry_run.networks import as_fake
from radio_distill.dry_run.plan import make_plan
from radio_distill.dry_run.rehearsal import Step, rehearse
from radio_distill.engine import join_world, leave_world
from radio_distill.loop import Training
from radio_distill.objectives import build_objective
from radio_distill.recipe import Recipe, load_recipe
from radio_distill.stopping import Stopper
from teachers.errors import UserError
from teachers.radio_encoder import RadioEncoder

STAGES = "stages=[{steps: 4, streams: [low], freeze_trunk: 2, statistics: true}, {steps: 3}]"


def rehearsed(recipe: Recipe, export) -> list[Step]:
    steps: list[Step] = []
    rehearse(recipe, find_mistakes(recipe)[1], steps.append, export)
    return steps


def test_every_stage_is_stepped_frozen_and_free_at_every_size(trial, tmp_path):
    steps = rehearsed(load_recipe(trial.file, [STAGES, "optim.ema=0.9"]), tmp_path / "export")
    assert [(step.stage, step.inside, step.frozen) for step in steps] == [
        (0, 0, True), (0, 2, False), (1, 0, False), (1, 0, False)
    ]  # fmt: skip
    assert [step.sizes for step in steps[2:]] == [
        {"low": (32, 32), "high": (48, 64)}, {"low": (32, 32), "high": (32, 48)}
    ]  # fmt: skip
    assert steps[0].all_flops < steps[1].all_flops and steps[0].flops["a"] == steps[1].flops["a"]
    assert "a: target 4×24×4×4, prediction 4×24×4×4, summary 4×24" in steps[0].shapes.values()
    assert not trial.run.exists()
    student = RadioEncoder.load(tmp_path / "export")  # a hollow file: header and length are true, all numbers are 0
    assert student.adaptor_names == ("a", "b") and not any(p.any() for p in student.model.parameters())


OPTIONS = {
    "plain": ["student.spectral_heads=true"],
    "everything": [
        "heldout=null",
        "stages=[{steps: 4, freeze_trunk: 2}]", "streams.high.size=[[48,64]]",
        "optim.ema=0.9", "loss.shift=0.5", "loss.mesa.weight=1", "loss.balance=adaloss",
        "student.spectral=true", "student.activation_checkpointing=true", "student.damp=0.01", "student.depth=4",
        "student.windows=[0,2]", "student.global_blocks=2", "streams.high.letterbox=true", "loss.summary=balanced",
        "statistics.mode=running", "statistics.steps=3", "statistics.refresh=1", "optim.name=lamb", "loss.relational=1",
        "teachers.a.sharpen=tile", "streams.high.sharpen=true", "student.cpe_max=128", "precision=bf16",
    ],
    "others": [
        "heldout=null", "streams.high.size=[[48,64]]", "optim.accumulate=2",
        "loss.balance=uncertainty", "loss.teacher_drop=0.5", "loss.feature=hybrid", "loss.normalise=global",
        "optim.name=nadam", "teachers.b.head={features: attention, up: 2}", "student.width=64", "loss.grid=teacher",
        "student.summary_tokens=one", "student.stem=conv", "student.drop_path=0.1",
    ],
}  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_plan_and_rehearsal_agree(trial, tmp_path, options):
    """Parts on their own, and the whole step: operations to the last one where nothing but networks computes."""
    recipe = load_recipe(trial.file, options)
    plan = make_plan(recipe, find_mistakes(recipe)[1])
    steps = [step for step in rehearsed(recipe, tmp_path / "export") if not step.frozen]
    for step in steps:
        exact = recipe.loss.mesa.weight == 0 and recipe.loss.balance != "uncertainty" and not recipe.loss.relational
        wanted = plan.flops_at(step.sizes, step.windows)
        assert step.all_flops == pytest.approx(wanted, rel=1e-6 if exact else 0.02)
    for stage in {step.stage for step in steps}:
        memory, most = plan.memory(stage), max(s.memory.working for s in steps if s.stage == stage)
        step = next(step for step in steps if step.stage == stage)
        assert (memory.frozen, memory.trained, memory.gradients, memory.average) == (
            step.memory.frozen, step.memory.trained, step.memory.gradients, step.memory.average
        )  # fmt: skip
        assert step.memory.optimizer == pytest.approx(memory.optimizer, rel=0.01)
        # Of these few bytes, shifted windows, masks and MESA's own loss, which the plan leaves out, are a large part.
        assert most == pytest.approx(memory.working, rel=0.25 if recipe.loss.mesa.weight else 0.1)


def test_a_rehearsed_step_is_the_step_that_training_takes(trial, tmp_path, monkeypatch):
    """The same predictions and targets, of the same shapes and in the same order."""
    shapes: list[list] = []
    compare = distill.compare

    def spy(teacher, said, wanted, windows, *rest):
        shapes[-1].append((teacher.name, *(tuple(x.shape) for x in (*said, *wanted) if x is not None)))
        return compare(teacher, said, wanted, windows, *rest)

    monkeypatch.setattr("radio_distill.comparing.compare", spy)  # as the rehearsal calls it
    monkeypatch.setattr(distill, "compare", spy)  # as training does
    recipe = load_recipe(trial.file, ["streams.high.size=[[32,48]]", "heldout=null"])
    shapes.append([])
    [step] = rehearsed(recipe, tmp_path / "export")
    shapes.append([])
    world = join_world(1)
    try:
        training = Training(recipe, build_objective(recipe, world), world, loud=False)
        training.begin_stage(Stopper())
        training.one_step(training.streams({}), Stopper())
    finally:
        leave_world()
    assert shapes[0] == shapes[1] and len(shapes[0]) == 4


def test_a_sharpeners_recipe_is_rehearsed_and_its_adapter_taken_by_a_student(shards, trial, tmp_path):
    export = tmp_path / "sharpener" / "export"
    recipe = Recipe.model_validate({
        "task": "sharpen", "run": str(tmp_path / "sharpener"), "teachers": {"a": trial.recipe["teachers"]["a"]},
        "streams": {"train": {"shards": str(shards / "train-000.tar"), "size": 64, "batch": 2}},
        "sharpener": {"factor": 2, "fusion": {"heads": 2}}, "stages": [{"steps": 3}], "optim": {"name": "nadam"},
    })  # fmt: skip
    plan = make_plan(recipe, find_mistakes(recipe)[1])
    [step] = rehearsed(recipe, export)
    assert step.all_flops == pytest.approx(plan.flops_at(step.sizes, {}), rel=1e-6)
    assert step.memory.total == pytest.approx(plan.memory(0).total, rel=0.1)
    student = load_recipe(trial.file, [f"teachers.a.sharpen={export.parent}", "streams.high.sharpen=true"])
    mistakes, teachers = find_mistakes(student)
    with fake_tensors():
        taken = as_fake(teachers["a"], "cpu").sharp(torch.empty(2, 3, 32, 48))
    assert not mistakes and taken.spatial.shape == (2, 24, 4, 6)


def test_the_console_says_what_was_done_and_what_was_not_real(trial, capsys):
    assert trial.train("rehearse=true", "teachers.a.sharpen=nowhere", "streams.high.sharpen=true") == 0
    said = capsys.readouterr().out
    assert "sharpener of a: not trained yet and no recipe for it, featsharp 2×" in said
    assert "plain autocast, backward" in said and "every stage can take its step; a start lacks 1 " in said
    assert re.search(r"memory of stage 0, .*plan [\d.e-]+ \([+-]\d", said)
    assert re.search(r"export: [\d.]+ GiB, written and read back", said)


def test_what_cannot_be_stepped_is_one_sentence_with_its_place(trial, tmp_path, monkeypatch, capsys):
    def torn(*args, **options):
        return torch.empty(3, 4) @ torch.empty(5, 6)

    recipe, export = load_recipe(trial.file, [STAGES]), tmp_path / "export"
    for place, where in {
        "radio_distill.comparing.cosine_distance": "stage 0, step 0",
        "teachers.phi_s.hadamard": "stage 0: statistics",
        "radio_distill.distill.cosine_distance": "held-out pictures",
        "radio_distill.card.card_of": "the export",
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(place, torn)
            with pytest.raises(UserError, match=f"{where} cannot be taken: RuntimeError: a and b must have"):
                rehearsed(recipe, export)
    monkeypatch.setattr("radio_distill.comparing.cosine_distance", torn)
    assert trial.train("rehearse=true") == 2
    assert "a step of the plan cannot be taken: RuntimeError" in capsys.readouterr().err


def test_a_rehearsal_leaves_no_trace_in_what_is_trained_afterwards(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("radio_distill.curves.draw", lambda run: None)
    losses = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        made = Trial(tiny_recipe(tmp_path / name / "run"), tmp_path / name)
        if losses:
            assert made.train("rehearse=true", "run=" + str(tmp_path / "other")) == 0
        assert made.train("stages.0.steps=2") == 0
        losses.append([record["loss"] for record in made.journal()])
    assert losses[0] == losses[1] and not (tmp_path / "other").exists()
    held = {path: path.stat().st_mtime_ns for path in made.run.rglob("*")}
    assert made.train("stages.0.steps=2", "rehearse=true") == 0  # beside its own checkpoints, which are not read
    assert {path: path.stat().st_mtime_ns for path in made.run.rglob("*")} == held
