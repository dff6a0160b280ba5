"""Δm%: what must hold for every table, whatever its figures."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from eval.delta_m import Metric, Table, Undefined, average_rank, compare, relative
from eval.estimate import Estimate

FIGURE = st.floats(0.01, 1000).map(lambda value: round(value, 4))
FLIPPED = {"higher": "lower", "lower": "higher"}
SEEDED = settings(deadline=None, max_examples=60, derandomize=True)


@st.composite
def tables(draw, seeds: bool = False) -> Table:
    """Two to four models over one to three groups of one to three metrics, in one or (`seeds`) several repetitions."""
    groups = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    models = ["base", "b", "c", "d"][: draw(st.integers(2, 4))]
    names = [str(seed) for seed in range(draw(st.integers(2, 4)))] if seeds else [None]
    table = Table()
    for number, size in enumerate(groups):
        for index in range(size):
            direction = draw(st.sampled_from(["higher", "lower"]))
            for model in models:
                for seed in names:
                    table.add(model, Metric(f"g{number}", f"m{index}"), direction, draw(FIGURE), seed)
    return table


def rebuilt(table: Table, change) -> Table:
    """The table with every entry (model, metric, direction, value, seed) as `change` makes it; None leaves it out."""
    new = Table()
    for (model, metric), cell in table.values.items():
        for seed, value in cell.items():
            entry = change(model, metric, table.directions[metric], value, seed)
            if entry is not None:
                new.add(*entry)
    return new


def overall(table: Table, **options) -> dict[str, float | None]:
    rows = compare(table, "base", **options)
    return {row.model: None if row.overall is None else row.overall.mean for row in rows}


def by_hand(table: Table, model: str) -> float:
    """The definition, written out: groups once each, the mean of their metrics inside."""
    groups: dict[str, list[float]] = {}
    for metric, direction in table.directions.items():
        new, old = table.values[model, metric][None], table.values["base", metric][None]
        groups.setdefault(metric.group, []).append(((new / old) - 1) * (100 if direction == "higher" else -100))
    return float(np.mean([np.mean(own) for own in groups.values()]))


@SEEDED
@given(tables())
def test_it_is_the_definition(table):
    found = overall(table)
    for model in table.models:
        assert found[model] == pytest.approx(by_hand(table, model), rel=1e-9, abs=1e-9)


@SEEDED
@given(tables())
def test_the_baselines_own_row_is_zero(table):
    row = compare(table, "base")[0]
    every = [row.overall, *row.groups.values(), *row.metrics.values()]
    assert all(estimate.mean == 0 and math.copysign(1, estimate.mean) == 1 for estimate in every)  # and not −0
    assert str(row.overall) == "+0.00"


@SEEDED
@given(tables())
def test_turning_every_direction_round_turns_every_sign(table):
    turned = rebuilt(table, lambda model, metric, way, value, seed: (model, metric, FLIPPED[way], value, seed))
    for model, value in overall(table).items():
        assert overall(turned)[model] == pytest.approx(-value, rel=1e-9, abs=1e-9)


@SEEDED
@given(tables(), st.floats(0.001, 1000))
def test_the_unit_of_a_metric_does_not_matter(table, factor):
    chosen = table.metrics[0]

    def scaled(model, metric, way, value, seed):
        return model, metric, way, value * factor if metric == chosen else value, seed

    for model, value in overall(table).items():
        assert overall(rebuilt(table, scaled))[model] == pytest.approx(value, rel=1e-6, abs=1e-6)


@SEEDED
@given(tables(seeds=True), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(table, random):
    entries = [(*key, seed, value) for key, cell in table.values.items() for seed, value in cell.items()]
    random.shuffle(entries)
    shuffled = Table()
    for model, metric, seed, value in entries:
        shuffled.add(model, metric, table.directions[metric], value, seed)
    first, second = ({row.model: row for row in compare(own, "base")} for own in (table, shuffled))
    for model, row in first.items():
        assert second[model].overall.mean == pytest.approx(row.overall.mean, rel=1e-9, abs=1e-9)
        assert second[model].overall.error == pytest.approx(row.overall.error, rel=1e-6, abs=1e-9)
        assert set(second[model].groups) == set(row.groups) and second[model].seeds == row.seeds
    assert average_rank(shuffled) == pytest.approx(average_rank(table))


@SEEDED
@given(tables(), st.integers(2, 5))
def test_a_metric_told_twice_weighs_inside_its_group_only(table, copies):
    """Copies of every metric of one group change nothing: a group counts once."""
    group = table.metrics[0].group
    more = rebuilt(table, lambda *entry: entry)
    for copy in range(copies):
        for (model, metric), cell in table.values.items():
            if metric.group == group:
                again = Metric(group, f"{metric.name} again {copy}")
                more.add(model, again, table.directions[metric], cell[None])
    for model, value in overall(table).items():
        assert overall(more)[model] == pytest.approx(value, rel=1e-9, abs=1e-9)
    assert average_rank(more) == pytest.approx(average_rank(table))


@SEEDED
@given(tables(), st.data())
def test_a_missing_cell_is_never_averaged_over_silently(table, data):
    lost = data.draw(st.sampled_from(sorted(key for key in table.values if key[0] != "base")))
    holed = rebuilt(table, lambda model, metric, *rest: None if (model, metric) == lost else (model, metric, *rest))
    assume(lost[0] in holed.models and len(holed.metrics) == len(table.metrics))
    row = next(row for row in compare(holed, "base") if row.model == lost[0])
    count = len(table.metrics)
    assert row.overall is None and row.groups[lost[1].group] is None and row.metrics[lost[1]] is None
    assert row.coverage == f"{count - 1} of {count}; missing: {lost[1]}"
    assert average_rank(holed)[lost[0]] is None
    for model, value in overall(table).items():  # no other row changes
        if model != lost[0]:
            assert overall(holed)[model] == pytest.approx(value, rel=1e-9, abs=1e-9)
    shared = rebuilt(table, lambda model, metric, *rest: None if metric == lost[1] else (model, metric, *rest))
    common = next(row for row in compare(holed, "base", common=True) if row.model == lost[0])
    assert common.coverage == row.coverage
    assert common.overall.mean == pytest.approx(overall(shared)[lost[0]], rel=1e-9, abs=1e-9)


@SEEDED
@given(tables(seeds=True))
def test_over_seeds_it_is_that_of_the_means(table):
    """The Δ% of the figures that a report prints beside it, whichever way round the seeds stand."""
    means = Table()
    for (model, metric), cell in table.values.items():
        means.add(model, metric, table.directions[metric], float(np.mean(list(cell.values()))))
    for row in compare(table, "base"):
        assert row.overall.mean == pytest.approx(overall(means)[row.model], rel=1e-9, abs=1e-9)
        assert row.overall.freedom == pytest.approx(len(row.seeds) - 1) or row.overall.error == 0


def test_the_error_over_seeds_is_the_jackknifes():
    """An independent way to the same: leave one seed out, of all cells at once. They agree to first order."""
    rng = np.random.default_rng(3)
    names = [str(seed) for seed in range(8)]
    both = rng.normal(0, 1, 8)  # what a seed does to all models and metrics
    rows = {
        model: {key: dict(zip(names, level + both + rng.normal(0, 1, 8))) for key, level in ((A, 100), (B, 60))}
        for model, level in (("base", 0), ("new", 5))
    }
    rows["new"] = {key: {seed: value + 5 for seed, value in cell.items()} for key, cell in rows["new"].items()}
    row = compare(seeded(**rows), "base")[1]
    left = []
    for name in names:
        some = {m: {k: {s: v for s, v in c.items() if s != name} for k, c in own.items()} for m, own in rows.items()}
        left.append(compare(seeded(**some), "base")[1].overall.mean)
    jackknife = np.sqrt(7 / 8 * np.sum((np.array(left) - np.mean(left)) ** 2))
    assert row.overall.error == pytest.approx(jackknife, rel=0.02)


def test_equal_models_that_vary_much_do_not_look_better():
    """Five seeds of 20 % spread: a mean of the seeds' quotients would say +4 %, and resolve it too often."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(1500):
        draw = {model: {A: dict(zip("01234", rng.normal(30, 6, 5)))} for model in ("base", "new")}
        found.append(compare(seeded(**draw), "base")[1].overall)
    assert abs(np.mean([one.mean for one in found])) < 1.5  # what is left: the spread of a mean of five, squared
    assert np.mean([one.resolved for one in found]) == pytest.approx(0.05, abs=0.02)


@SEEDED
@given(tables())
def test_average_rank_is_counted_by_hand_and_between_first_and_last(table):
    ranks: dict[str, list[list[float]]] = {model: [] for model in table.models}
    for group in dict.fromkeys(metric.group for metric in table.metrics):
        own = [metric for metric in table.metrics if metric.group == group]
        for model in table.models:
            places = []
            for metric in own:
                best_first = sorted(
                    (table.values[other, metric][None] for other in table.models),
                    reverse=table.directions[metric] == "higher",
                )
                places.append(1 + best_first.index(table.values[model, metric][None]))  # ties: the smaller
            ranks[model].append(places)
    found = average_rank(table)
    for model, groups in ranks.items():
        assert found[model] == pytest.approx(np.mean([np.mean(places) for places in groups]))
        assert 1 <= found[model] <= len(table.models)


@SEEDED
@given(st.floats(-1e6, 0), FIGURE, st.sampled_from(["higher", "lower"]))
def test_a_baseline_that_is_not_positive_has_no_relative_difference(base, value, direction):
    with pytest.raises(Undefined, match="ours, A / b: the baseline is"):
        relative(value, base, direction, "ours, A / b")


@SEEDED
@given(FIGURE, FIGURE, st.sampled_from(["higher", "lower"]))
def test_positive_is_always_better(value, base, direction):
    better = value > base if direction == "higher" else value < base
    assert (relative(value, base, direction) > 0) == better


# --- seeds that do not match -----------------------------------------------------------------------------------------


def seeded(**rows) -> Table:
    table = Table()
    for model, metrics in rows.items():
        for (group, name), values in metrics.items():
            for seed, value in values.items():
                table.add(model, Metric(group, name), "higher", value, seed)
    return table


A, B = ("A", "a"), ("B", "b")


def test_tasks_with_seeds_of_their_own_keep_them_all():
    """Seed 0 only is common: over that one alone nothing could be said of the error."""
    base = {A: {"0": 50, "1": 50, "2": 50}, B: {"0": 10}}
    table = seeded(base=base, new={A: {"0": 51, "1": 52, "2": 54.5}, B: {"0": 11}})
    row = compare(table, "base")[1]
    assert row.seeds == ("0", "1", "2") and row.left_out == ()
    deltas = np.array([2.0, 4.0, 9.0])
    assert row.groups["A"].mean == pytest.approx(5) and row.overall.mean == pytest.approx((5 + 10) / 2)
    assert row.overall.error == pytest.approx(deltas.std(ddof=1) / 3**0.5 / 2) and row.overall.freedom == pytest.approx(
        2
    )
    assert row.groups["B"].error is None


def test_errors_of_unrelated_seeds_add_as_squares():
    a, b = np.array([50.0, 52, 51]), np.array([10.0, 13])
    base = {A: dict.fromkeys("012", 50), B: dict.fromkeys("34", 10)}
    table = seeded(base=base, new={A: dict(zip("012", a)), B: dict(zip("34", b))})
    row = compare(table, "base")[1]
    variances = [np.var(200 * a / 100, ddof=1) / 3 / 4, np.var(10 * b, ddof=1) / 2 / 4]
    assert row.overall.error == pytest.approx(sum(variances) ** 0.5)
    welch = sum(variances) ** 2 / (variances[0] ** 2 / 2 + variances[1] ** 2 / 1)
    assert row.overall.freedom == pytest.approx(welch)


def test_rows_that_share_no_seed_are_compared_unpaired():
    """Each side varies by itself: the variances of two means add, with Welch's degrees of freedom."""
    base, new = np.array([50.0, 52, 54]), np.array([55.0, 58, 53, 60])
    row = compare(seeded(base={A: dict(zip("012", base))}, new={A: dict(zip("6789", new))}), "base")[1]
    assert not row.paired and row.seeds == ("6", "7", "8", "9") and row.left_out == ()
    ratio = new.mean() / base.mean()
    assert row.overall.mean == pytest.approx(100 * (ratio - 1))
    variances = [np.var(new, ddof=1) / 4, ratio**2 * np.var(base, ddof=1) / 3]
    assert row.overall.error == pytest.approx(100 / base.mean() * sum(variances) ** 0.5)
    assert row.overall.freedom == pytest.approx(sum(variances) ** 2 / (variances[0] ** 2 / 3 + variances[1] ** 2 / 2))


def test_one_shared_seed_is_no_pairing():
    row = compare(seeded(base={A: {"0": 50, "1": 52}}, new={A: {"1": 51, "2": 54}}), "base")[1]
    assert not row.paired and row.overall.mean == pytest.approx(100 * (52.5 / 51 - 1)) and row.left_out == ()
    single = compare(seeded(base={A: {"0": 50}}, new={A: {"1": 51}}), "base")[1]
    assert single.overall.mean == pytest.approx(2) and single.overall.verdict == "untested"


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """A thousand tables of five seeds each, the true difference known: 95 of 100 intervals contain it."""
    rng = np.random.default_rng(0)
    hits, rounds = 0, 1000
    for _ in range(rounds):
        new = {A: dict(zip("01234", rng.normal(103, 2, 5))), B: dict(zip("01234", rng.normal(99, 1, 5)))}
        base = {A: dict.fromkeys("01234", 100.0), B: dict.fromkeys("01234", 100.0)}
        low, high = compare(seeded(base=base, new=new), "base")[1].overall.interval
        hits += low <= 1.0 <= high
    assert hits / rounds == pytest.approx(0.95, abs=0.02)
    assert isinstance(Estimate(1.0, 0.1, 4).interval, tuple)
