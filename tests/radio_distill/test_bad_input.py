"""What can be wrong → one message (what, where, expected, what to type), exit code 2, and no checkpoint lost."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import resource
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from shard_maker import jpeg, write_tar

from radio_distill import checkpoint, checksums, export, journal, loop, objectives
from radio_distill.distill import DistillObjective


@pytest.fixture
def refused(trial, capsys):
    """Runs the trial with overrides that cannot work → the one message it earns."""

    def run(*overrides: str) -> str:
        assert trial.train(*overrides) == 2
        said = capsys.readouterr().err.strip()
        assert "Traceback" not in said and said
        return said

    return run


# Before the start -----------------------------------------------------------------------------------------------------


def test_a_mistyped_key_stops_everything_before_it_starts(trial, refused):
    said = refused("optim.lrr=1", "streams.low.btach=2")
    assert "2 mistakes" in said and "did you mean 'lr'" in said and "did you mean 'batch'" in said
    assert not trial.run.exists()


def test_everything_that_is_missing_is_named_at_once_with_what_to_type(trial, refused, tmp_path):
    said = refused(
        f"streams.low.shards={tmp_path}/nowhere/t-000.tar", f"heldout.shards={tmp_path}/h-*.tar",
        "teachers.a.sharpen=runs/no", "streams.high.sharpen=true", "teachers.b.weights=/no/file.safetensors",
        "teachers.b.encoder=timm", "teachers.b.options={model: vit_tiny_patch16_224}", "statistics.batches=9",
    )  # fmt: skip
    assert "cannot start" in said and "4 missing" in said and "Nothing was started" in said
    assert f"streams.low.shards: there is no shard '{tmp_path}/nowhere/t-000.tar'" in said
    assert f"heldout.shards: no file matches '{tmp_path}/h-*.tar'" in said
    assert "teachers.a.sharpen" in said and "teachers.b.weights" in said and "/no/file.safetensors" in said
    assert said.count("do this:") >= 4 and not trial.run.exists()


def test_weights_of_another_architecture_are_named_by_their_first_difference(trial, refused, tmp_path):
    file = tmp_path / "other.safetensors"
    save_file({"stem.weight": torch.zeros(3, 3)}, file)
    said = refused("teachers.b.encoder=timm", "teachers.b.options={model: test_vit}", f"teachers.b.weights={file}")
    assert f"{file}: these are not the weights of" in said and "test_vit" in said and "is not in the file" in said
    assert not trial.checkpoints()


def test_an_unknown_teacher_or_option_is_answered_with_those_that_there_are(refused):
    assert "unknown encoder 'dfn_clp'" in refused("teachers.a.encoder=dfn_clp", "teachers.a.options={}")
    said = refused("teachers.a.options.widht=3")
    assert "no option 'widht'" in said and "width" in said


def test_a_resolution_that_a_teacher_cannot_take_is_told_with_stream_and_teacher(refused):
    said = refused("teachers.a.sharpen=tile", "streams.low.sharpen=true", "streams.low.size=40")
    assert "streams.low.size [40, 40]" in said and "cannot take images of 40×40" in said
    assert "change streams.low.size, or teachers.a" in said


# On resume ------------------------------------------------------------------------------------------------------------


def test_a_changed_recipe_is_refused_and_restart_moves_the_old_run_aside(trial, refused, tmp_path):
    assert trial.train("stages.0.steps=3") == 0
    said = refused("stages.0.steps=4", "optim.lr=0.5")
    assert "  optim.lr: 0.002 → 0.5" in said and "  stages.0.steps: 3 → 4" in said and "restart=true" in said
    assert trial.checkpoints() == [3]
    assert trial.train("stages.0.steps=1", "restart=true") == 0
    [aside] = tmp_path.glob("run.before-*")
    assert (aside / "checkpoints" / "step-00000003").is_dir() and trial.checkpoints() == [1]


@pytest.fixture(scope="module")
def two_checkpoints(tiny_recipe, tmp_path_factory):
    """A run that was interrupted after step 4, with checkpoints of steps 3 and 4 (copied by the tests below)."""
    from trial import Trial

    folder = tmp_path_factory.mktemp("interrupted")
    made = Trial(tiny_recipe(folder / "run"), folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("radio_distill.curves.draw", lambda run: None)
        patch.setattr(loop.Stopper, "asked", lambda stopper: len(journal.read(made.run)) >= 4)
        assert made.train() == 0
    assert made.checkpoints() == [3, 4]
    return made


@pytest.mark.parametrize(
    ("file", "size"),
    [
        ("engine/mp_rank_00_model_states.pt", 0),
        ("engine/mp_rank_00_model_states.pt", 30_000),
        ("engine", None),
        (checkpoint.STATE, 5),
        (checkpoint.STATE, None),
        (checkpoint.TEACHERS, 100),
        (checkpoint.MODEL, -5000),  # a turned bit
        (checksums.LIST, -100),
    ],
)
def test_a_damaged_checkpoint_is_named_and_training_goes_on_from_the_one_before(
    trial, capsys, two_checkpoints, file, size
):
    shutil.copytree(two_checkpoints.run, trial.run)
    newest = trial.run / "checkpoints" / "step-00000004"
    damaged = newest / file
    if size is None:
        shutil.rmtree(damaged) if damaged.is_dir() else damaged.unlink()
    elif size < 0:
        turn_a_bit(damaged, -size)
    else:
        with open(damaged, "r+b") as handle:
            handle.truncate(size)
    assert trial.train() == 0
    said = capsys.readouterr().out
    before = newest.with_name("step-00000003")
    assert f"the checkpoint {newest} is damaged, " in said and f"going on from {before}" in said
    assert [r["step"] for r in trial.journal()] == list(range(1, 9))
    assert newest.with_name("step-00000004.damaged").is_dir()  # nothing is deleted


def turn_a_bit(file: Path, place: int) -> None:
    contents = bytearray(file.read_bytes())
    contents[place % len(contents)] ^= 4
    file.write_bytes(contents)


def test_any_turned_bit_of_a_checkpoint_is_found(two_checkpoints, tmp_path):
    place = tmp_path / "step-00000004"
    shutil.copytree(two_checkpoints.run / "checkpoints" / place.name, place)
    files = [file for file in place.rglob("*") if file.is_file()]
    assert checksums.damage(place) is None and len(files) >= 5
    rng = random.Random(0)
    for file in files:
        sound = file.read_bytes()
        for _ in range(5):
            turn_a_bit(file, rng.randrange(len(sound)))
            assert file.name in checksums.damage(place)
            file.write_bytes(sound)
    assert checksums.damage(place) is None


def test_where_all_checkpoints_are_damaged_nothing_begins_anew_by_itself(trial, refused, two_checkpoints, capsys):
    shutil.copytree(two_checkpoints.run, trial.run)
    for place in (trial.run / "checkpoints").iterdir():
        turn_a_bit(place / checkpoint.MODEL, 5000)
    said = refused()
    assert "step-00000003 is damaged, model.safetensors is not as" in said and "restart=true" in said
    assert trial.checkpoints() == [3, 4]
    assert export.main([str(trial.run)]) == 2
    assert "is damaged" in capsys.readouterr().err


def test_a_run_is_exported_from_its_newest_sound_checkpoint(trial, two_checkpoints, capsys):
    shutil.copytree(two_checkpoints.run, trial.run)
    turn_a_bit(trial.run / "checkpoints" / "step-00000004" / checkpoint.MODEL, 5000)
    assert export.main([str(trial.run)]) == 0
    said = capsys.readouterr()
    assert "(step 3)" in said.out and "step-00000004 is damaged, model.safetensors" in said.err
    assert trial.checkpoints() == [3, 4]  # it may be training


class Trap:
    """Unpickled without reserve, it makes a folder."""

    def __reduce__(self):
        return os.mkdir, (os.environ["TRAP"],)


class Launcher:
    """A function of DeepSpeed's that starts programs."""

    def __reduce__(self):
        from deepspeed.launcher.runner import main

        return main, (["--no_local_rank", "touch", os.environ["TRAP"]],)


@pytest.mark.parametrize("trap", [Trap, Launcher])
@pytest.mark.parametrize("file", ["mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"])
def test_a_checkpoint_from_elsewhere_runs_no_code(trial, refused, two_checkpoints, tmp_path, monkeypatch, trap, file):
    monkeypatch.setenv("TRAP", str(tmp_path / "trap"))
    shutil.copytree(two_checkpoints.run, trial.run)
    place = trial.run / "checkpoints" / "step-00000004" / "engine" / file
    held = torch.load(place, weights_only=True) if place.exists() else {}
    torch.save(held | {"more": trap()}, place)
    checksums.write(place.parents[1])
    said = refused()
    assert "cannot be read" in said and not (tmp_path / "trap").exists()
    assert re.search(r"asks for (posix\.mkdir|deepspeed\.launcher\.runner\.main), which is in no checkpoint", said)


def test_a_split_checkpoint_that_lacks_a_ranks_part_is_refused(trial, refused):
    zero = "deepspeed.zero_optimization.stage=1"
    assert trial.train("stages.0.steps=3", zero) == 0
    shutil.rmtree(trial.run / "export")
    state = trial.run / "checkpoints" / "step-00000003" / checkpoint.STATE
    state.write_text(json.dumps(json.loads(state.read_text()) | {"world": 4}))
    checksums.write(state.parent)
    said = refused("stages.0.steps=3", zero)
    assert "cannot be read" in said and "the optim_states of 1 rank, not of 4" in said


# While training -------------------------------------------------------------------------------------------------------


def sabotage(monkeypatch, at: int, how) -> None:
    """Change the loss of step `at`, counted from 0."""
    losses = DistillObjective.losses

    def changed(self, model, batch, step, generator):
        total, logs = losses(self, model, batch, step, generator)
        return (how(self, total) if step == at else total), logs

    monkeypatch.setattr(DistillObjective, "losses", changed)


@pytest.mark.parametrize(
    ("how", "what"),
    [
        (lambda objective, total: total * float("nan"), "low/loss, high/loss, norm"),
        # A finite loss with a gradient that is not: the root of nought.
        (lambda objective, total: total + (0 * objective.model.patch_generator.tokens.sum()).abs().sqrt(), "norm"),
    ],
    ids=["loss", "gradient"],
)
@pytest.mark.parametrize("stage", [0, 1])
def test_a_loss_or_gradient_that_is_not_finite_stops_the_run_before_it_is_saved(trial, refused, how, what, stage):
    with pytest.MonkeyPatch.context() as patch:
        sabotage(patch, 5, how)  # after step 6 a checkpoint is due
        said = refused(f"deepspeed.zero_optimization.stage={stage}")
    assert f"step 5: {what} is not finite; the last checkpoint is untouched" in said
    assert "lower optim.lr" in said and trial.checkpoints() == [3]
    assert [r["step"] for r in trial.journal()] == [1, 2, 3, 4, 5]
    if stage == 0:
        assert trial.train(f"deepspeed.zero_optimization.stage={stage}") == 0


@contextmanager
def room_for(size: int):
    """No file can grow past `size` bytes: writing further fails as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def full(monkeypatch, owner, name: str, size: int = 60_000, when=lambda *arguments: True) -> None:
    """Call `owner.name` on a full disk, `when` its arguments say so."""
    call = getattr(owner, name)

    def crowded(*arguments, **more):
        if not when(*arguments):
            return call(*arguments, **more)
        with room_for(size):
            return call(*arguments, **more)

    monkeypatch.setattr(owner, name, crowded)


def test_a_full_disk_while_saving_costs_no_checkpoint_and_the_same_command_goes_on(trial, refused, trained):
    with pytest.MonkeyPatch.context() as patch:
        full(patch, checkpoint, "save", when=lambda run, engine, step, *rest: step == 6)
        said = refused()
    place = trial.run / "checkpoints"
    assert f"the checkpoint {place}/step-00000006 could not be written" in said
    assert f"{place}/step-00000003 is whole and training goes on from it" in said and "make room" in said
    assert [path.name for path in place.iterdir()] == ["step-00000003"]
    assert trial.train() == 0
    assert trial.journal() == trained.journal()  # as if nothing had happened


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error")])
def test_a_disk_that_fills_between_the_files_of_a_checkpoint_leaves_the_earlier_one(trial, refused, monkeypatch, error):
    import safetensors.torch

    save = safetensors.torch.save_file

    def fail(tensors, path, *rest):
        if "step-00000006" in str(path) and path.name == checkpoint.TEACHERS:
            path.write_bytes(b"half")
            raise error
        return save(tensors, path, *rest)

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    said = refused()
    assert "step-00000006 could not be written" in said and str(error).split("] ")[-1] in said
    assert [path.name for path in (trial.run / "checkpoints").iterdir()] == ["step-00000003"]


def test_a_full_disk_at_the_export_or_in_the_journal_is_told_and_the_run_goes_on_afterwards(trial, refused):
    with pytest.MonkeyPatch.context() as patch:
        full(patch, loop.Training, "export", size=20_000)
        said = refused("stages.0.steps=3")
    assert f"the export {trial.run}/export could not be written" in said and "step-00000003 is whole" in said
    assert not (trial.run / "export").exists()
    assert trial.train("stages.0.steps=3") == 0 and (trial.run / "export" / "config.json").exists()

    with pytest.MonkeyPatch.context() as patch:
        written = journal.Journal.write

        def write(self, kind, step, **fields):
            if step == 2:
                raise OSError(errno.ENOSPC, "No space left on device", str(self.path))
            return written(self, kind, step, **fields)

        patch.setattr(journal.Journal, "write", write)
        said = refused("restart=true")
    assert f"{trial.run}/journal.jsonl could not be written: No space left on device" in said


def test_a_mistake_in_the_code_still_shows_its_traceback(trial, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(objectives, "build_objective", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        trial.train()


# Bad samples ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def worn(tmp_path) -> str:
    """Shards with what goes wrong in the wild: a picture that is none, a sample without one, a tar cut short."""
    good = {f"{n:03d}.jpg": jpeg(n) for n in range(12)}
    write_tar(tmp_path / "w-0.tar", good)
    write_tar(tmp_path / "w-1.tar", good | {"100.jpg": b"no picture at all", "101.txt": b"a caption alone"})
    cut = write_tar(tmp_path / "w-2.tar", {f"{n:03d}.jpg": jpeg(n) for n in range(20, 32)})
    with open(cut, "r+b") as file:
        file.truncate(cut.stat().st_size // 2)
    return str(tmp_path / "w-{0..2}.tar")


def test_bad_samples_are_passed_over_and_counted_in_the_journal_by_shard(trial, worn, capsys, tmp_path):
    assert trial.train(f"streams.low.shards={worn}", "streams.low.max_bad=0.5", "heldout=null") == 0
    records = trial.journal("skipped")
    assert {record["shard"] for record in records} == {f"{tmp_path}/w-1.tar", f"{tmp_path}/w-2.tar"}
    assert all(record["count"] == len(record["reasons"]) > 0 for record in records)
    reasons = " | ".join(reason for record in records for reason in record["reasons"])
    assert "100: cannot be decoded: is not a picture" in reasons
    assert "101: no picture among its members (txt)" in reasons and "broke off" in reasons
    assert f"of {tmp_path}/w-1.tar: " in capsys.readouterr().out
    assert [r["step"] for r in trial.journal()] == list(range(1, 9))


def test_too_many_bad_samples_stop_the_run_and_what_was_learnt_is_kept(trial, refused, tmp_path):
    few = {f"{n:03d}.jpg": jpeg(n) if n % 2 else b"no picture" for n in range(40)}
    write_tar(tmp_path / "bad.tar", few)
    bad = f"streams.low.shards={tmp_path}/bad.tar"
    said = refused(bad, "streams.low.max_bad=0.1", "statistics.batches=1", "output.save=1")
    assert "stream 'low':" in said and "samples were bad" in said and f"{tmp_path}/bad.tar" in said
    assert "streams.low.max_bad" in said and "python -m radio_distill.shards look" in said
    assert trial.checkpoints() == [steps := trial.journal()[-1]["step"] - 1, steps + 1]


def test_shards_without_a_picture_end_in_words(refused, tmp_path):
    (tmp_path / "junk.tar").write_bytes(b"junk" * 500)
    said = refused(f"streams.low.shards={tmp_path}/junk.tar")
    assert "gave no picture" in said and "is not a tar archive" in said
