"""Stages: their own streams, a frozen trunk, batches accumulated, averaged weights; stopped anywhere, they go on."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from trial import Trial

from radio_distill import journal
from radio_distill.stopping import Stopper

# Low alone with a frozen trunk, then both, then high alone: 2 + 3 + 2 steps.
STAGES = [
    "stages=[{steps: 2, streams: [low], freeze_trunk: 1, statistics: true}, {steps: 3}, "
    "{steps: 2, streams: [high], freeze_trunk: 1, statistics: true, lr: 1e-3, warmup: 0}]",
    "optim.accumulate=2",
    "optim.ema=0.9",
    "output.save=0",
    "heldout=null",
]


def stop_after(monkeypatch, run, step: int) -> None:
    """Ask this run to stop when so many steps are done."""

    def done(stopper: Stopper) -> bool:
        return sum(record["kind"] == "step" for record in journal.read(run)) == step

    monkeypatch.setattr(Stopper, "asked", done)


@pytest.fixture(scope="module")
def whole(tiny_recipe, tmp_path_factory):
    """The run that nobody stopped."""
    folder = tmp_path_factory.mktemp("stages")
    made = Trial(tiny_recipe(folder / "run"), folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("radio_distill.curves.draw", lambda run: None)
        assert made.train(*STAGES, "output.save=1", "output.keep=9") == 0
    return made


def test_each_stage_reads_its_streams_at_its_own_rate(whole):
    steps = whole.journal()
    read = [{key.split("/")[0] for key in record if "/" in key} for record in steps]
    assert read == [{"low"}] * 2 + [{"low", "high"}] * 3 + [{"high"}] * 2
    assert [record["lr"] for record in steps][5] == pytest.approx(1e-3)


def test_samples_are_counted_by_the_streams_that_were_read(whole):
    saved = [json.loads(path.read_text()) for path in sorted(whole.run.glob("checkpoints/*/state.json"))]
    assert [state["samples"] for state in saved] == [2 * n for n in (4, 8, 14, 20, 26, 28, 30)]
    assert [set(state["positions"]) for state in saved] == [{"low"}] * 2 + [{"low", "high"}] * 5


def test_only_heads_move_while_the_trunk_is_frozen_and_the_average_follows_all(whole):
    folders = [whole.run / "checkpoints" / f"step-{step:08d}" for step in range(1, 8)]
    weights = [load_file(folder / "model.safetensors") for folder in folders]
    averages = [load_file(folder / "teachers.safetensors") for folder in folders]
    trainable = [name for name in weights[0] if name.endswith(".weight")]
    for step in range(2, 8):
        before, after = weights[step - 2], weights[step - 1]
        for name in trainable:
            frozen = step == 6 and not name.startswith("heads.")
            assert torch.equal(before[name], after[name]) == frozen, (step, name)
            average = 0.9 * averages[step - 2][f"ema.{name}"] + 0.1 * after[name]
            torch.testing.assert_close(averages[step - 1][f"ema.{name}"], average, rtol=0, atol=1e-6)


@pytest.mark.parametrize("stage", [0, 3])
def test_a_run_stopped_in_every_stage_equals_one_that_was_not(whole, trial, monkeypatch, stage):
    zero = [] if stage == 0 else [f"deepspeed.zero_optimization.stage={stage}"]
    for step in (1, 3):  # in the first and the second stage; the rest goes on from the end of a stage
        with monkeypatch.context() as patch:
            stop_after(patch, trial.run, step)
            assert trial.train(*STAGES, *zero) == 0
        assert trial.checkpoints()[-1] == step + 1
    with monkeypatch.context() as patch:
        stop_after(patch, trial.run, 4)  # asked in the last step of the second stage
        assert trial.train(*STAGES, *zero) == 0
    assert trial.checkpoints()[-1] == 5
    assert trial.train(*STAGES, *zero) == 0
    assert trial.checkpoints() == [5, 7]
    told, wanted = trial.journal(), whole.journal()
    if stage == 0:
        assert told == wanted
        export = [run / "export" / "model.safetensors" for run in (trial.run, whole.run)]
        assert export[0].read_bytes() == export[1].read_bytes()
    for one, other in zip(told, wanted, strict=True):
        assert {**one, "kind": 0} == pytest.approx({**other, "kind": 0}, rel=1e-4)
