"""A trained run → the student as users load it: equal to the one that was trained, with PHI-S folded into its heads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from radio_distill import checkpoint, export
from radio_distill.engine import World
from radio_distill.objectives import build_objective
from radio_distill.recipe import load_recipe
from teachers.radio_encoder import RadioEncoder
from teachers.seeding import torch_rng


@pytest.fixture(scope="module")
def objective(trained):
    """What was trained, from the last checkpoint: a student in PHI-S space, and the teachers with their statistics."""
    made = build_objective(load_recipe(trained.run / "recipe.yaml"), World(0, 0, 1, torch.device("cpu")))
    newest = checkpoint.latest(trained.run)
    made.model.load_state_dict(load_file(newest / checkpoint.MODEL))
    made.load_state(load_file(newest / checkpoint.TEACHERS))
    made.model.eval()
    return made


IMAGES = torch.rand(2, 3, 32, 48, generator=torch_rng("images"))


def test_an_export_answers_as_the_trained_student_with_phi_s_undone(trained, objective):
    student = RadioEncoder.load(trained.run)
    with torch.no_grad():
        raw = objective.model(IMAGES)
    said = student.everything(IMAGES)
    assert list(said) == ["backbone", "a", "b"]
    torch.testing.assert_close(said["backbone"].spatial, raw["backbone"].features, rtol=1e-5, atol=1e-5)
    for name, teacher in objective.teachers.items():
        wanted = teacher.phi_s.inverse(raw[name].features)
        assert not torch.allclose(wanted, raw[name].features, atol=0.05)
        torch.testing.assert_close(said[name].spatial, wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(said[name].summary, raw[name].summary, rtol=1e-5, atol=1e-5)


def test_an_adaptor_speaks_in_its_teachers_space(trained, objective):
    for name, teacher in objective.teachers.items():
        seen = teacher.base(torch.nn.functional.interpolate(IMAGES, scale_factor=teacher.base.patch_size / 8)).spatial
        said = RadioEncoder.load(trained.run).adaptor(name)(IMAGES).spatial
        wrong = (said - seen).square().mean() / (seen - seen.mean((0, 2, 3), keepdim=True)).square().mean()
        assert said.shape == seen.shape and wrong < 1.1  # eight steps learn little, but the scale and the mean


def test_config_says_how_to_build_it_and_who_taught_it(trained, objective):
    config = json.loads((trained.run / "export" / "config.json").read_text())
    assert config["preferred_size"] == [32, 32] and config["spec"]["heads"]["b"]["spatial"] == 16
    assert config["teachers"]["a"]["identity"] == objective.teachers["a"].base.identity
    assert config["teachers"]["a"]["options"]["width"] == 24 and not config["teachers"]["a"]["has_text"]
    assert "Apache-2.0" in config["licence"]


def test_the_model_card_has_the_command_the_teachers_and_the_figures(trained):
    card = (trained.run / "export" / "README.md").read_text()
    assert f'torch.hub.load("PATH/TO/radio-distill", "student", "{trained.run}/export", source="local"' in card
    assert "8 optimiser steps of 6 images" in card and "| a | random |" in card and "low/a/feature_error" in card


def test_radios_own_calling_convention_through_torch_hub(trained, request):
    repo = str(request.config.rootpath)
    plain = torch.hub.load(repo, "student", str(trained.run), source="local")
    summary, features = plain(IMAGES)
    assert summary.shape == (2, 64) and features.shape == (2, 24, 32)
    assert torch.equal(plain(IMAGES, feature_fmt="NCHW").features.flatten(2).mT, features)
    both = torch.hub.load(repo, "student", str(trained.run / "export"), source="local", adaptor_names=["b"])(IMAGES)
    assert list(both) == ["backbone", "b"] and both["b"].features.shape == (2, 24, 16)
    torch.testing.assert_close(both["backbone"].features, features)


def test_the_command_exports_a_run_that_is_not_finished(trial, capsys):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("radio_distill.loop.Stopper.asked", lambda stopper: True)
        assert trial.train() == 0
    assert trial.checkpoints() == [1] and not (trial.run / "export").exists()
    assert export.main([str(trial.run)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{trial.run}/export (step 1)"
    assert RadioEncoder.load(trial.run).native_size == (32, 32)
    assert "1 optimiser steps" in (trial.run / "export" / "README.md").read_text()
    assert export.main([str(trial.run / "nothing")]) == 2
    assert "holds no checkpoint" in capsys.readouterr().err


def test_a_new_export_replaces_the_old_one_whole_and_keeps_what_a_user_put_there(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained.run, run)
    (run / "export" / ".git").mkdir()
    (run / "export" / ".git" / "config").write_text("theirs")
    before = (run / "export" / "model.safetensors").read_bytes()
    place, step = export.export_checkpoint(run, run / "export")
    assert (place, step) == (run / "export", 8)
    assert {path.name for path in place.iterdir()} == {".git", "README.md", "config.json", "model.safetensors"}
    assert (place / ".git" / "config").read_text() == "theirs"
    assert (place / "model.safetensors").read_bytes() == before
    assert not list(run.glob(".export*"))


@pytest.mark.parametrize("kind", ["safetensors", "hf", "hub", "onnx"])
def test_nothing_of_a_users_is_replaced_by_an_export(trained, tmp_path, capsys, monkeypatch, kind):
    theirs = tmp_path / "repository"
    (theirs / ".git").mkdir(parents=True)
    for name in (".git/config", "NOTES.txt", "config.json"):
        (theirs / name).write_text("{}")
    monkeypatch.chdir(theirs)
    folders, here = [trained.run, trained.run.parent, theirs, Path(".")], [Path("NOTES.txt")]
    for out in folders if kind in ("safetensors", "hf") else here:
        before = sorted(str(path) for path in out.resolve().rglob("*"))
        assert export.main([str(trained.run), "--format", kind, "--out", str(out)]) == 2
        said = capsys.readouterr().err
        assert "nothing was written" in said and "Traceback" not in said
        assert sorted(str(path) for path in out.resolve().rglob("*")) == before
