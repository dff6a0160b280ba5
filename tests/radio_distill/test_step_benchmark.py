"""The bench of the trainer's step charges time to the part that spends it, and leaves the trainer as it was."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
import torch

from radio_distill import loop
from radio_distill.distill import DistillObjective

SLOW_LOADER, SLOW_LOSS = 0.05, 0.1  # seconds


@pytest.fixture
def step(monkeypatch):
    """The benchmark as a module, with a recipe that takes milliseconds a step."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    threads = torch.get_num_threads()
    import step

    tiny = {"encoder": "random", "options": {"width": 8, "depth": 1, "image_size": 32}}
    monkeypatch.setattr(step, "PICTURES", 8)
    monkeypatch.setitem(step.RECIPE, "teachers", {"lite0": tiny, "vit": tiny})
    monkeypatch.setitem(step.RECIPE, "streams", {"low": {"size": 32, "batch": 2, "shuffle": 4}})
    yield step
    torch.set_num_threads(threads)
    for name in ("step", "loader"):
        sys.modules.pop(name, None)


def slowed(monkeypatch, owner, name, seconds):
    function = getattr(owner, name)

    def slow(*arguments):
        time.sleep(seconds)
        return function(*arguments)

    monkeypatch.setattr(owner, name, slow)


def test_time_is_charged_to_the_part_that_spends_it(step, monkeypatch, capsys):
    slowed(monkeypatch, loop, "_take", SLOW_LOADER)
    slowed(monkeypatch, DistillObjective, "losses", SLOW_LOSS)
    before = loop.Training, loop.backward, torch.Tensor.backward
    step.main(["--json", "--steps", "3", "student.arch=vit_nano", "student.width=32", "student.depth=2"])
    assert (loop.Training, loop.backward, torch.Tensor.backward) == before
    bare, ours = map(json.loads, capsys.readouterr().out.splitlines())
    assert (bare["variant"], ours["variant"]) == ("bare", "default")
    assert ours["parts_ms"]["wait"] > 1000 * SLOW_LOADER and ours["parts_ms"]["losses"] > 1000 * SLOW_LOSS
    assert {"student", "teacher lite0", "teacher vit", "backward"} <= bare["parts_ms"].keys() & ours["parts_ms"].keys()
    assert ours["parts_ms"]["optimiser"] > 0 and "optimiser" not in bare["parts_ms"]
    slow = 1000 * (SLOW_LOADER + SLOW_LOSS)
    assert ours["ms"] > slow and ours["ms"] - slow < sum(ours["parts_ms"].values()) < 2 * ours["ms"]
    assert ours["ratio"] > 1 and SLOW_LOADER / (ours["ms"] / 1000) * 0.5 < ours["wait"] < 1
    assert "waits for the loader" in step.table([bare, ours])


def test_a_part_inside_another_is_charged_once(step, monkeypatch):
    clock, times = step.Clock(), iter([0.0, 2.0, 7.0, 11.0])
    with monkeypatch.context() as patched:
        patched.setattr(step.time, "perf_counter", lambda: next(times))
        clock.begin("outer")
        clock.begin("inner")
        clock.end()
        clock.end()
    assert clock.take() == {"outer": 2 + 4, "inner": 5} and not clock.take()
