"""A recipe → its run folder: what stands in it, and whether a run may go on there."""

from __future__ import annotations

import multiprocessing
import os
import time

import pytest
import yaml

from radio_distill import checkpoint, loop, run_folder
from radio_distill.recipe import Recipe, load_recipe
from teachers.errors import UserError


@pytest.fixture
def recipe(tiny_recipe, tmp_path):
    def make(**changes) -> Recipe:
        return Recipe.model_validate(tiny_recipe(tmp_path / "run") | changes)

    return make


def learn(recipe: Recipe) -> None:
    """Open the run folder and leave a checkpoint there."""
    with run_folder.opened(recipe) as run:
        (run / "checkpoints" / "step-00000003").mkdir(parents=True, exist_ok=True)


def test_a_run_folder_says_what_was_asked_for_and_by_what(trained):
    resolved = load_recipe(trained.run / "recipe.yaml")
    assert resolved.teachers["a"].options["width"] == 24 and resolved.optim.betas == (0.9, 0.999)
    rows = dict(line.split(": ", 1) for line in (trained.run / "environment.txt").read_text().splitlines())
    assert {"date", "command", "commit", "python", "machine", "torch", "deepspeed", "webdataset"} <= set(rows)
    made = {path.name for path in trained.run.iterdir()}
    files = {".lock", "recipe.yaml", "environment.txt", "journal.jsonl", "curves.png"}
    assert made == files | {"checkpoints", "pictures", "export"}


def test_another_recipe_in_the_same_folder_is_refused_with_the_difference(recipe):
    learn(recipe())
    other = recipe(seed=7, optim={"lr": 0.5, "warmup": 2}, stages=[{"steps": 8}, {"steps": 4}])
    for refuse in (lambda: run_folder.finished(other), lambda: run_folder.opened(other).__enter__()):
        with pytest.raises(UserError) as caught:
            refuse()
        rows = caught.value.what.splitlines()[1:]
        assert {"  seed: 0 → 7", "  optim.lr: 0.002 → 0.5", "  stages.1.steps: (not there) → 4"} <= set(rows)
        assert len([row for row in rows if not row.startswith("  stages.1")]) == 2
        assert "restart=true" in caught.value.todo
    assert yaml.safe_load((recipe().folder / "recipe.yaml").read_text())["seed"] == 0


def test_a_run_that_was_begun_before_a_key_existed_goes_on_while_the_key_has_its_default(recipe):
    learn(recipe())
    file = recipe().folder / "recipe.yaml"
    old = yaml.safe_load(file.read_text())
    del old["optim"]["ema"], old["loss"]["mesa"], old["cache"]
    file.write_text(yaml.safe_dump(old))
    learn(recipe())
    file.write_text(yaml.safe_dump(old))
    with pytest.raises(UserError) as caught:
        learn(recipe(optim={"warmup": 2, "lr": 2e-3, "ema": 0.9}))
    assert caught.value.what.splitlines()[1:] == ["  optim.ema: None → 0.9"]


def test_before_anything_is_learnt_and_in_what_is_only_written_a_recipe_may_change(recipe):
    with run_folder.opened(recipe()):
        pass
    learn(recipe(seed=7))  # nothing had been learnt
    learn(recipe(seed=7, output={"log": 1, "save": 100}, threads=2))
    assert not run_folder.finished(recipe(seed=7))


def test_a_folder_that_was_moved_goes_on_under_its_new_name(recipe, tmp_path):
    learn(recipe())
    os.replace(tmp_path / "run", tmp_path / "moved")
    learn(recipe(run=str(tmp_path / "moved")))


def test_restart_moves_the_old_run_aside_and_deletes_nothing(recipe, tmp_path):
    for seed in range(3):  # within a second
        learn(recipe(seed=seed, restart=True))
    aside = sorted(tmp_path.glob("run.before-*"))
    assert len(aside) == 2 and checkpoint.latest(recipe().folder)
    assert sorted(yaml.safe_load((old / "recipe.yaml").read_text())["seed"] for old in aside) == [0, 1]


def _hold(recipe: Recipe, held, leave) -> None:
    with run_folder.opened(recipe):
        held.set()
        leave.wait(60)


def test_a_second_trainer_is_kept_out_until_the_first_has_ended_however_it_ended(recipe, tmp_path):
    context = multiprocessing.get_context("fork")
    held, leave = context.Event(), context.Event()
    trainer = context.Process(target=_hold, args=(recipe(), held, leave), daemon=True)
    trainer.start()
    assert held.wait(60)
    for again in (recipe(), recipe(restart=True)):
        with pytest.raises(UserError, match="another process is training in"):
            run_folder.opened(again).__enter__()
    assert not list(tmp_path.glob("run.before-*"))  # a running trainer's folder is not moved away
    trainer.kill()
    trainer.join()
    learn(recipe())


def _inherit(recipe: Recipe, held) -> None:
    with run_folder.opened(recipe):
        if os.fork() == 0:  # as a loader process, which outlives a killed trainer by some seconds
            time.sleep(5)
            os._exit(0)
        held.set()
        time.sleep(60)


def test_a_loader_process_that_outlives_its_trainer_does_not_keep_the_folder(recipe):
    context = multiprocessing.get_context("fork")
    held = context.Event()
    trainer = context.Process(target=_inherit, args=(recipe(), held), daemon=True)
    trainer.start()
    assert held.wait(60)
    trainer.kill()
    trainer.join()
    learn(recipe())


def test_a_folder_that_cannot_be_made_is_told(recipe, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="the run folder .*/file/run cannot be written: Not a directory") as caught:
        run_folder.opened(recipe(run=str(tmp_path / "file" / "run"))).__enter__()
    assert "run=..." in caught.value.todo


@pytest.mark.parametrize("restart", [False, True])
def test_a_folder_that_is_no_run_is_neither_used_nor_moved(recipe, restart):
    made = recipe(restart=restart)
    made.folder.mkdir(parents=True)
    (made.folder / "thesis.tex").write_text("theirs")
    with pytest.raises(UserError, match="holds other things .thesis.tex. and no run"), run_folder.opened(made):
        pass
    assert [path.name for path in made.folder.parent.iterdir() if path.is_dir()] == [made.folder.name]
    assert [path.name for path in made.folder.iterdir()] == ["thesis.tex"]


def test_a_run_has_a_name(trial):
    assert trial.train("run=") == 2
    assert not list(trial.file.parent.glob("checkpoints"))


def test_a_run_whose_folder_is_renamed_ends_with_a_sentence(trial, monkeypatch, capsys):
    one_step = loop.Training.one_step

    def renamed(training, *arguments):
        if training.step == 3:
            trial.run.rename(trial.run.with_name("elsewhere"))
        return one_step(training, *arguments)

    monkeypatch.setattr(loop.Training, "one_step", renamed)
    assert trial.train("output.save=2") == 2
    said = capsys.readouterr().err
    assert f"the run folder {trial.run} is gone" in said and "Traceback" not in said
    assert not (trial.run / "checkpoints").exists()
