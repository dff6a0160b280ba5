"""Scores as a table: which repetition of a model stands beside which of another, and what is known of their errors."""

from __future__ import annotations

import random

import pytest
from made_up import figure, score

from eval.delta_m import Metric, compare
from eval.tables import delta_table, estimate, run_labels

BASE = {0: 30.0, 1: 36.0, 2: 33.0, 3: 41.0}  # seed of a training → what it scores
OURS = {0: 32.0, 1: 37.5, 2: 36.0, 3: 42.0}
TOP = Metric("Classification", "top-1")


def runs(model: str, values: dict[int, float], known: bool = True, **about):
    """A model's repetitions, in this order on the command line."""
    return [
        score(model, replicate=i, trained=seed if known else None, metrics={"top-1": figure(value, None, **about)})
        for i, (seed, value) in enumerate(values.items())
    ]


def against(ours, base):
    return next(row for row in compare(delta_table([*base, *ours]), "base") if row.model == "ours")


def test_trainings_are_paired_by_seed_wherever_they_stand():
    plain = against(runs("ours", OURS), runs("base", BASE))
    assert plain.paired and plain.seeds == ("run 0", "run 1", "run 2", "run 3")
    mixer = random.Random(0)
    for _ in range(5):
        seeds = mixer.sample(list(OURS), len(OURS))
        mixed = against(runs("ours", {seed: OURS[seed] for seed in seeds}), runs("base", BASE))
        assert mixed.overall.mean == pytest.approx(plain.overall.mean)
        assert mixed.overall.error == pytest.approx(plain.overall.error)


def test_a_training_that_is_missing_moves_no_other():
    some = {seed: value for seed, value in OURS.items() if seed != 0}
    row = against(runs("ours", some), runs("base", BASE))
    assert row.paired and row.seeds == ("run 1", "run 2", "run 3") and row.left_out == ("run 0",)
    assert row.overall.mean == pytest.approx(100 * (sum(some.values()) / (36 + 33 + 41) - 1))


def test_trainings_of_unknown_seed_are_not_paired():
    """Whichever way round they are given, and in spite of equal numbers."""
    row = against(runs("ours", OURS, known=False), runs("base", BASE, known=False))
    turned = against(runs("ours", dict(reversed(OURS.items())), known=False), runs("base", BASE, known=False))
    assert not row.paired and row.overall.mean == pytest.approx(100 * (147.5 / 140 - 1))
    assert turned.overall.mean == pytest.approx(row.overall.mean)
    assert turned.overall.error == pytest.approx(row.overall.error)
    assert row.overall.error > against(runs("ours", OURS), runs("base", BASE)).overall.error  # these move together
    twice = [one.model_copy(update={"trained": 0}) for one in runs("ours", OURS)]  # four recipes, one seed
    assert not against(twice, runs("base", BASE)).paired
    assert set(run_labels(twice).values()) == {f"ours, run {i}" for i in range(4)}


def test_a_figures_own_error_stands_where_resamples_do_not():
    about = {"error": 3.0}
    scores = [
        score(model, metrics={"top-1": figure(value, None, **about)})
        for model, value in (("base", 30.0), ("ours", 36.0))
    ]
    table = delta_table(scores)
    assert table.errors == {("base", TOP): 3.0, ("ours", TOP): 3.0}
    assert estimate(table, "ours", TOP).error == 3.0 and compare(table, "base")[1].overall.error > 10
    bare = delta_table([score("base", metrics={"top-1": figure(30.0, None)})])
    assert bare.errors == {} and estimate(bare, "base", TOP).error is None
