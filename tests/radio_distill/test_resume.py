"""A run that was killed or stopped, and started again by the same command, equals one that never was, bit for bit."""

from __future__ import annotations

import os
import random
import signal
from functools import partial
from pathlib import Path

import pytest
from processes import Ranks, hold, wait_until

from radio_distill import journal

LOADER = ["streams.low.workers=1", "streams.high.min_side=41"]  # a loader process, and samples that are passed over
ZERO = ["deepspeed.zero_optimization.stage=1"]


def story(run: Path) -> list[dict]:
    """All that a run's journal tells, without what only measures time."""
    return [{key: value for key, value in record.items() if key not in journal.TIMES} for record in journal.read(run)]


def steps(run: Path) -> int:
    return sum(record["kind"] == "step" for record in journal.read(run))


def weights(run: Path) -> bytes:
    return (run / "export" / "model.safetensors").read_bytes()


def any_moment(after: int = 0) -> int:
    """After how many steps to kill: another number every time, said by the assertion that it makes fail."""
    return random.SystemRandom().randrange(after + 1, 8)


def assert_same(run: Path, whole: Path, moment: object) -> None:
    assert [r["step"] for r in story(run) if r["kind"] == "step"] == list(range(1, 9)), f"interrupted at {moment}"
    assert story(run) == story(whole), f"interrupted at {moment}"
    assert weights(run) == weights(whole), f"interrupted at {moment}"


def killed_in_the_middle_of_saving(rank: int, at: int) -> None:
    """Die when the checkpoint of step `at` is half written, and leave half a line in the journal."""
    from radio_distill import checkpoint

    write = checkpoint._write_tensors

    def torn(path, tensors):
        if f"{at:08d}" in str(path) and path.name == checkpoint.TEACHERS:
            path.write_bytes(b"half a fi")
            with open(path.parents[2] / journal.NAME, "a") as file:
                file.write('{"kind": "step", "st')
            os.kill(os.getpid(), signal.SIGKILL)
        write(path, tensors)

    checkpoint._write_tensors = torn


def test_one_rank_killed_twice_equals_an_uninterrupted_run(trial, tmp_path):
    whole, run, moment = tmp_path / "whole", trial.run, any_moment()
    assert trial.train(f"run={whole}", *LOADER) == 0

    first = Ranks([str(trial.file), *LOADER], 1, tmp_path / "first.log", partial(hold, step=moment))
    wait_until(lambda: steps(run) >= moment, f"step {moment}", first)
    first.kill()
    assert first.wait() == [-signal.SIGKILL]
    # At once: nothing that the dead trainer left behind, a loader process or a lock, is in the way of the next.
    dying = partial(killed_in_the_middle_of_saving, at=8)
    second = Ranks([str(trial.file), *LOADER], 1, tmp_path / "second.log", dying)
    assert second.wait() == [-signal.SIGKILL], second.said()
    assert 8 not in trial.checkpoints() and (run / "checkpoints" / ".unfinished-step-00000008").exists()
    assert trial.train(*LOADER) == 0
    assert_same(run, whole, moment)
    assert not list((run / "checkpoints").glob(".*")) and trial.checkpoints() == [6, 8]


@pytest.mark.parametrize("options", [[], ZERO], ids=["stage0", "zero1"])
def test_two_ranks_stopped_and_killed_equal_an_uninterrupted_run(trial, tmp_path, options):
    whole, run, moment = tmp_path / "whole", trial.run, any_moment(after=2)
    command = [str(trial.file), *options]
    undisturbed = Ranks([*command, f"run={whole}"], 2, tmp_path / "whole.log")
    assert undisturbed.wait() == [0, 0], undisturbed.said()

    stopped = Ranks(command, 2, tmp_path / "stopped.log", partial(hold, step=1, on=1))
    wait_until(lambda: steps(run) == 1, "step 1", stopped)
    os.kill(stopped.processes[1].pid, signal.SIGTERM)  # one rank is asked, both finish the step and stop
    assert stopped.wait() == [0, 0], stopped.said()
    assert trial.checkpoints() == [2] and "saved at step 2; the same command goes on" in stopped.said()

    killed = Ranks(command, 2, tmp_path / "killed.log", partial(hold, step=moment, on=1))
    wait_until(lambda: steps(run) == moment, f"step {moment}", killed)
    killed.kill()
    assert killed.wait() == [-signal.SIGKILL] * 2

    resumed = Ranks(command, 2, tmp_path / "resumed.log")
    assert resumed.wait() == [0, 0], resumed.said()
    assert "resuming at step" in resumed.said()
    assert_same(run, whole, moment)


def test_a_second_command_says_that_the_run_is_finished_and_changes_nothing(trained, capsys):
    before = {path: path.stat().st_mtime_ns for path in trained.run.rglob("*")}
    assert trained.train("output.pictures=8") == 0
    assert "is finished" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in trained.run.rglob("*")}


def test_a_run_that_was_killed_before_its_export_only_exports(trial, capsys):
    assert trial.train("stages.0.steps=3") == 0
    told, made = story(trial.run), weights(trial.run)
    for file in (trial.run / "export").iterdir():
        file.unlink()
    (trial.run / "export").rmdir()
    assert trial.train("stages.0.steps=3") == 0
    assert story(trial.run) == told and weights(trial.run) == made


def test_a_sharpeners_training_resumes_too(trial, tmp_path, monkeypatch):
    from radio_distill.stopping import Stopper

    recipe = [
        "task=sharpen", "student=null",
        "teachers={a: {encoder: random, options: {patch: 8, width: 16, image_size: 32}}}",
        f"streams={{all: {{shards: '{trial.recipe['streams']['low']['shards']}', size: 32, batch: 2, shuffle: 8}}}}",
        "sharpener={fusion: {heads: 2}, jbu: {width: 4}, views: {jitters: 1}}", "stages.0.steps=3", "heldout=null",
    ]  # fmt: skip
    assert trial.train(*recipe, f"run={tmp_path / 'whole'}") == 0
    with monkeypatch.context() as patch:
        patch.setattr(Stopper, "asked", lambda stopper: steps(trial.run) == 1)
        assert trial.train(*recipe) == 0
    assert trial.checkpoints() == [2] and trial.train(*recipe) == 0
    assert story(trial.run) == story(tmp_path / "whole")
    parts = sorted((trial.run / "export").glob("*.safetensors"))
    assert [part.name for part in parts] == ["adapter.safetensors", "downsampler.safetensors"]
    for part in parts:
        assert part.read_bytes() == (tmp_path / "whole" / "export" / part.name).read_bytes()
