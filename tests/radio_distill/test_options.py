"""The trainer with its options on: the large recipes' twins for a few steps, and whole runs of what they leave out."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from radio_distill import checkpoint, train
from radio_distill.recipe import load_recipe
from teachers.radio_encoder import RadioEncoder

TWINS = ["tabletop_radio_b", "tabletop_radio_l", "tabletop_radio_h", "tabletop_am_radio_h", "tabletop_c_radio_v4_h"]


@pytest.fixture
def quick(shards, tmp_path, monkeypatch):
    """What makes any recipe's run short: few steps, small batches, pictures of the tests, no curves."""
    monkeypatch.setattr("radio_distill.curves.draw", lambda run: None)

    def overrides(name: str) -> list[str]:
        recipe = load_recipe(name)
        changes = [f"run={tmp_path / name}", f"statistics.cache={tmp_path}/statistics", "statistics.batches=2"]
        changes += [f"heldout.shards={shards}/heldout-000.tar", "heldout.samples=4", "threads=1"]
        changes.append("output.tensorboard=false")
        for stream in recipe.streams:
            changes += [f"streams.{stream}.{key}" for key in (f"shards={shards}/train-*.tar", "min_side=0", "batch=3")]
        for teacher, config in recipe.teachers.items():
            if config.sharpen.startswith("runs/"):  # a trained sharpener, which tests do not have
                changes.append(f"teachers.{teacher}.sharpen=tile")
        for number, stage in enumerate(recipe.stages):
            changes += [f"stages.{number}.steps=2", f"stages.{number}.freeze_trunk={min(stage.freeze_trunk, 1)}"]
        changes += ["statistics.steps=2", "statistics.refresh=1"] if recipe.statistics.mode == "running" else []
        return changes + (["loss.mesa.start=1"] if recipe.loss.mesa.weight else [])

    return overrides


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_runs_through_all_its_stages_and_gives_a_student(name, quick, tmp_path):
    assert train.main([name, *quick(name)]) == 0
    recipe = load_recipe(name, quick(name))
    run = tmp_path / name
    steps = [r for r in map(json.loads, (run / "journal.jsonl").read_text().splitlines()) if r["kind"] == "step"]
    assert len(steps) == recipe.steps
    for step, record in enumerate(steps):  # every stream of the stage, every teacher of the stream, and no other
        told = {tuple(key.split("/")[:2]) for key in record if key.endswith(("/feature", "/feature_teacher"))}
        assert told == {(s, t) for s in recipe.streams_at(step) for t in recipe.teachers_of(s)}
        assert any(key.endswith("/mesa") for key in record) == (
            recipe.loss.mesa.weight > 0 and step >= recipe.loss.mesa.start and not recipe.trunk_frozen(step)
        )
    student = RadioEncoder.load(run)
    assert student.adaptor_names == tuple(recipe.teachers)
    spec = student.model.spec
    assert not (spec.spectral or spec.damp)  # folded into plain weights


def test_a_frozen_trunk_keeps_every_bit_while_the_heads_learn(trial):
    assert trial.train("stages=[{steps: 4, freeze_trunk: 3}]", "output.save=1", "output.keep=9") == 0
    weights = [
        load_file(trial.run / "checkpoints" / f"step-{step:08d}" / checkpoint.MODEL) for step in trial.checkpoints()
    ]
    assert len(weights) == 4
    for before, after in ((0, 1), (1, 2), (2, 3)):
        moved = {key for key in weights[0] if not torch.equal(weights[before][key], weights[after][key])}
        assert any(key.startswith("heads.a.spatial") for key in moved)
        trunk = {key for key in moved if not key.startswith("heads.")}
        assert bool(trunk) == (after == 3)


def test_a_student_begins_from_another_and_keeps_its_trunk_while_that_is_frozen(trial, trained, capsys):
    assert trial.train(f"student.init={trained.run}", "stages=[{steps: 2, freeze_trunk: 2}]") == 0
    assert f"{trained.run}: " in capsys.readouterr().out
    before, after = (load_file(run / "export" / "model.safetensors") for run in (trained.run, trial.run))
    trunk = [key for key in before if not key.startswith("heads.")]
    assert trunk and all(torch.equal(before[key], after[key]) for key in trunk)
    assert trial.journal("heldout")[0]["low/a/summary_error"] < 0.5  # a fresh student begins at 0.62


def test_running_statistics_are_renewed_as_often_as_the_recipe_says_and_then_stand(trial):
    running = ["statistics.mode=running", "statistics.steps=5", "statistics.refresh=2", "statistics.batches=1"]
    assert trial.train(*running, "output.save=1", "output.keep=9") == 0
    states = [
        load_file(trial.run / "checkpoints" / f"step-{step:08d}" / checkpoint.TEACHERS) for step in trial.checkpoints()
    ]
    alphas = [state["phi_s.a.alpha"].item() for state in states]
    changed = [step for step in range(1, 8) if alphas[step] != alphas[step - 1]]
    assert changed == [1, 3, 4]  # after the second, the fourth, and the fifth and last step
    assert "running.a.mean" in states[3] and not any(key.startswith("running") for key in states[4])


ADAPTIVE = {
    "adaloss": ["loss.balance=adaloss", "loss.relational=0.5", "loss.teacher_drop=0.5"],
    "uncertainty": ["loss.balance=uncertainty", "loss.feature=cosine", "loss.normalise=global", "loss.summary=angle"],
    "letterboxed": ["streams.low.letterbox=true", "streams.high.letterbox=true", "loss.feature=smooth_l1"],
}  # fmt: skip


@pytest.mark.parametrize("options", ADAPTIVE.values(), ids=ADAPTIVE)
def test_a_run_goes_on_bit_for_bit_with_its_averages_balances_and_statistics(options, trial, monkeypatch):
    running = ["statistics.mode=running", "statistics.steps=6", "statistics.refresh=2", "optim.ema=0.9"]
    options = [*options, *running, "loss.mesa={weight: 0.5, start: 2}", "optim.accumulate=2"]
    assert trial.train(*options) == 0
    whole = trial.journal("step"), trial.journal("heldout"), load_file(trial.run / "export" / "model.safetensors")
    with monkeypatch.context() as patch:  # asked to stop in the middle of the running statistics
        patch.setattr("radio_distill.loop.Stopper.asked", lambda stopper: True)
        assert trial.train(*options, "restart=true") == 0
        for _ in range(2):
            assert trial.train(*options) == 0
    assert trial.checkpoints()[-1] == 3 and trial.train(*options) == 0
    assert trial.journal("step") == whole[0] and trial.journal("heldout")[-1] == whole[1][-1]
    again = load_file(trial.run / "export" / "model.safetensors")
    assert all(torch.equal(tensor, again[key]) for key, tensor in whole[2].items())
    assert not any(key.startswith("balance") for key in again)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("options", ADAPTIVE.values(), ids=ADAPTIVE)
def test_every_option_runs_on_a_gpu_and_resumes_there(options, trial, monkeypatch):
    options = [*options, "statistics.mode=running", "statistics.steps=6", "statistics.refresh=2", "optim.ema=0.9"]
    options += ["loss.mesa={weight: 0.5, start: 0}", "student.spectral=true", "student.damp=0.01", "precision=auto"]
    with monkeypatch.context() as patch:
        patch.setattr("radio_distill.loop.Stopper.asked", lambda stopper: True)
        assert trial.train(*options) == 0
    assert trial.train(*options) == 0 and trial.checkpoints()[-1] == 8


def test_the_cache_of_teachers_changes_no_more_than_bf16_does_and_tells_of_its_hits(trial, tmp_path):
    once = [f"streams.low.{key}" for key in ("letterbox=true", "scale=[1,1]", "ratio=[1,1]", "flip=false")]
    stages = "stages=[{steps: 12, streams: [low]}, {steps: 1}]"
    assert trial.train(*once, stages, f"cache.folder={tmp_path}/cache") == 0
    hits = [record["low/cache_hits"] for record in trial.journal("step")]
    assert min(hits[8:12]) == 1  # the second epoch of thirty whole pictures, four a step
    losses = [record["low/loss"] for record in trial.journal("step")]
    assert trial.train(*once, stages, "restart=true") == 0
    assert losses == pytest.approx([record["low/loss"] for record in trial.journal("step")], rel=2e-2)
