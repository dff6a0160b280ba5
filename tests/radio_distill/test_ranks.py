"""A run on two ranks is the run on one with the doubled batch, and either goes on from the other's checkpoint."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from processes import Ranks
from toy_engine import PLAN, toy_engine, train_engine, train_plain, weights_of

from radio_distill import checkpoint, journal
from radio_distill.engine import World, join_world, leave_world
from radio_distill.stopping import Stopper

KINDS = [("adamw", 0), ("nadam", 1), ("adamw", 2), ("nadam", 3), ("lamb", 0)]
HALF = 3  # steps before the number of ranks changes; the trunk is frozen in the first of them
SAME = {"rtol": 0, "atol": 1e-6}  # sums in another order, over five steps
NOISE = 0.04  # between held-out errors of two seeds: three deviations; without training they are 1


def save(folder: Path, engine: object, world: World) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"step": HALF, "samples": 0, "world": world.size, "positions": {}}
    checkpoint.save(folder, engine, HALF, {"none": torch.zeros(1)}, facts, keep=1, world=world)


def begin(folder: Path, world: World) -> dict[str, dict]:
    """Take the first steps with everything that can train, and save; returns the weights by kind."""
    made = {}
    for optimiser, stage in KINDS:
        engine = toy_engine(optimiser, stage, world)
        train_engine(engine, world, range(HALF))
        save(folder / f"{optimiser}{stage}", engine, world)
        made[f"{optimiser}{stage}"] = weights_of(engine)
    return made


def go_on(folder: Path, world: World) -> dict[str, dict]:
    """Take the other steps from those checkpoints."""
    made = {}
    for optimiser, stage in KINDS:
        engine = toy_engine(optimiser, stage, world)
        checkpoint.load(checkpoint.latest(folder / f"{optimiser}{stage}"), engine, world)
        train_engine(engine, world, range(HALF, len(PLAN)))
        made[f"{optimiser}{stage}"] = weights_of(engine)
    return made


def as_one_of_two(rank: int, folder: Path) -> None:
    world = join_world(threads=1)
    made = {"begun": begin(folder / "two", world), "went on": go_on(folder / "one", world)}
    torch.save(made, folder / f"rank{rank}.pt")
    leave_world()
    sys.exit(0)


def test_two_ranks_train_as_one_and_each_goes_on_from_the_others_checkpoint_at_every_stage(tmp_path, monkeypatch):
    """Also: a frozen trunk's missing moments survive, and counters that DeepSpeed's own conversion forgets (NAdam)."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    world = join_world(threads=1)
    try:
        begin(tmp_path / "one", world)
        ranks = Ranks([], 2, tmp_path / "log", partial(as_one_of_two, folder=tmp_path))
        assert ranks.wait() == [0, 0], ranks.said()
        alone = go_on(tmp_path / "two", world)
    finally:
        leave_world()
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    for optimiser, stage in KINDS:
        half, whole = (dict(train_plain(optimiser, steps).state_dict()) for steps in (HALF, len(PLAN)))
        name = f"{optimiser}{stage}"
        for rank in (first, second):
            torch.testing.assert_close(rank["begun"][name], half, **SAME, msg=lambda m, n=name: f"{n} on two: {m}")
            torch.testing.assert_close(rank["went on"][name], whole, **SAME, msg=lambda m, n=name: f"{n} 1 → 2: {m}")
        torch.testing.assert_close(alone[name], whole, **SAME, msg=lambda m, n=name: f"{n} 2 → 1: {m}")


def ask_to_stop(rank: int, run: Path, steps: int) -> None:
    """Ask the first rank to stop in the step after so many."""
    if rank == 0:
        Stopper.asked = lambda stopper: sum(record["kind"] == "step" for record in journal.read(run)) == steps


def test_a_run_goes_on_from_two_ranks_on_one_and_back_and_learns_as_ever(trial, trained, tmp_path, monkeypatch):
    """Other numbers of ranks read other samples, and other batches: the curves agree as those of two seeds do."""
    options = ["deepspeed.zero_optimization.stage=3", "optim.ema=0.5", "output.save=0", "output.pictures=6"]
    command = [str(trial.file), *options]
    first = Ranks(command, 2, tmp_path / "first.log", partial(ask_to_stop, run=trial.run, steps=1))
    assert first.wait() == [0, 0] and trial.checkpoints() == [2], first.said()
    with monkeypatch.context() as patch:
        patch.setattr(Stopper, "asked", lambda stopper: len(trial.journal()) == 4)
        assert trial.train(*options) == 0
    assert trial.checkpoints() == [2, 5]
    last = Ranks(command, 2, tmp_path / "last.log")
    assert last.wait() == [0, 0], last.said()
    assert "resuming at step 5, sample 42 " in last.said()  # 2 steps of 12, 3 of 6
    assert [record["step"] for record in trial.journal()] == list(range(1, 9))
    assert len(list((trial.run / "pictures").glob("step-00000006-*.png"))) == 2
    one, other = (run.journal("heldout")[-1] for run in (trial, trained))
    errors = [key for key in one if key.endswith("/feature_error")]
    assert len(errors) == 4
    for key in errors:
        assert one[key] == pytest.approx(other[key], abs=NOISE), key
