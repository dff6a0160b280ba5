"""Δm%: the worked examples exactly, and every way in which a table can be incomplete or wrong."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest

from eval.__main__ import main
from eval.delta_m import Metric, Table, Undefined, average_rank, check, compare, mean, relative
from eval.delta_table import read_csv
from eval.estimate import Estimate
from teachers.errors import UserError

PASCAL = [
    ("semseg mIoU", "higher"),
    ("parsing mIoU", "higher"),
    ("saliency maxF", "higher"),
    ("normals mErr", "lower"),
    ("boundary odsF", "higher"),
]
NYUD = [("semseg mIoU", "higher"), ("depth RMSE", "lower"), ("normals mErr", "lower"), ("boundary odsF", "higher")]
FEATSHARP_TABLE_2 = {  # group figures → the published last column
    "RADIOv2.5-L": ((-0.47, -0.09, -1.05, -0.45, 0.62, -2.26, 2.24), -0.21),
    "Tile": ((-0.03, 0.30, -0.08, -0.23, -0.02, 1.33, -3.17), -0.27),
    "S2": ((-0.05, 0.15, -0.03, -0.44, 0.13, 1.33, -0.89), 0.03),
    "FeatUp": ((-0.07, 0.14, 0.23, -0.07, 0.14, 0.32, -1.58), -0.13),
    "FeatSharp": ((0.06, 0.16, 0.83, 0.13, 0.17, 0.93, 0.43), 0.39),
}


def table_of(columns, **rows) -> Table:
    table = Table()
    for model, values in rows.items():
        for (name, direction), value in zip(columns, values):
            table.add(model, Metric("all", name), direction, value)
    return table


def write(tmp_path, text: str):
    path = tmp_path / "table.csv"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("row", FEATSHARP_TABLE_2)
def test_overall_of_published_group_figures(row):
    groups, published = FEATSHARP_TABLE_2[row]
    assert round(mean(groups), 2) == published


def test_pascal_context_worked_example():
    table = table_of(PASCAL, base=(80.25, 70.54, 84.54, 13.57, 74.22), SAK=(81.88, 74.30, 84.79, 14.02, 74.09))
    row = compare(table, "base")[1]
    assert [round(estimate.mean, 3) for estimate in row.metrics.values()] == [2.031, 5.330, 0.296, -3.316, -0.175]
    assert round(row.overall.mean, 3) == 0.833
    assert compare(table, "base")[0].overall.mean == 0.0


def test_nyud_worked_example():
    table = table_of(NYUD, base=(51.15, 0.5792, 19.77, 77.35), SAK=(59.93, 0.4942, 17.60, 78.60))
    assert round(compare(table, "base")[1].overall.mean, 2) == 11.11


def test_published_row_that_does_not_follow_from_itself_is_flagged():
    rows = {
        "base": (80.25, 70.54, 84.54, 13.57, 74.22),
        "SAK": (81.88, 74.30, 84.79, 14.02, 74.09),
        "PRISM": (82.20, 75.34, 84.81, 13.47, 75.92),
    }
    computed = {row.model: row.overall.mean for row in compare(table_of(PASCAL, **rows), "base")}
    sak, prism = check({"SAK": 0.83, "PRISM": 2.29}, computed)
    assert sak.follows and not prism.follows
    assert round(prism.computed, 2) == 2.52
    assert "printed 2.29, computed 2.5" in str(prism) and "NOT" in str(prism)


def test_groups_count_once_whatever_their_size():
    table = Table()
    for group, name, value in [("A", "1", 110), ("A", "2", 110), ("A", "3", 110), ("B", "1", 100)]:
        table.add("base", Metric(group, name), "higher", 100)
        table.add("new", Metric(group, name), "higher", value)
    row = compare(table, "base")[1]
    assert row.groups["A"].mean == pytest.approx(10) and row.groups["B"].mean == 0
    assert row.overall.mean == pytest.approx(5)  # not 7.5, the mean of all metrics


def test_missing_cell_reads_na_and_common_names_it():
    table = table_of([("a", "higher"), ("b", "higher")], base=(100, 100), new=(110,))
    table.add("base", Metric("other", "c"), "higher", 10)
    table.add("new", Metric("other", "c"), "higher", 12)
    row = compare(table, "base")[1]
    assert row.overall is None and row.groups["all"] is None
    assert row.groups["other"].mean == pytest.approx(20)  # a complete group stands
    assert row.coverage == "2 of 3; missing: all / b"
    common = compare(table, "base", common=True)[1]
    assert common.overall.mean == pytest.approx((10 + 20) / 2)
    assert common.coverage == row.coverage


UNDEFINED = [(1, 0, "higher"), (math.nan, 1, "higher"), (1, math.inf, "lower"), (1, 1, "up")]


@pytest.mark.parametrize("value, base, direction", UNDEFINED)
def test_undefined_delta_names_model_group_and_metric(value, base, direction):
    with pytest.raises(Undefined, match="ours, Dense / mIoU"):
        relative(value, base, direction, "ours, Dense / mIoU")


def test_zero_baseline_raises_or_is_a_named_missing_cell():
    table = table_of([("a", "higher"), ("b", "higher")], base=(0, 100), new=(5, 110))
    with pytest.raises(Undefined, match="new against base, all / a: the baseline is 0|base against base"):
        compare(table, "base")
    row = compare(table, "base", undefined="missing", common=True)[1]
    assert row.overall.mean == pytest.approx(10) and "the baseline is 0" in row.missing[Metric("all", "a")]


def test_table_refuses_contradictions():
    table = table_of([("a", "higher")], base=(1,))
    for direction, value, complaint in [("lower", 1, "direction"), ("higher", 2, "twice"), ("higher", math.nan, "nan")]:
        with pytest.raises(UserError, match=complaint):
            table.add("base", Metric("all", "a"), direction, value)
    with pytest.raises(UserError, match="twice"):
        table.add("base", Metric("all", "a"), "higher", 2, seed="1")  # with and without a seed
    with pytest.raises(UserError, match="no model is named 'bsae'"):
        compare(table, "bsae")


def seeded(**rows) -> Table:
    table = Table()
    for model, metrics in rows.items():
        for name, values in metrics.items():
            for seed, value in values.items():
                table.add(model, Metric("all", name), "higher", value, seed)
    return table


def test_seeds_give_mean_standard_error_and_a_t_interval():
    from scipy import stats

    table = seeded(base={"a": {"0": 50, "1": 52, "2": 51}}, new={"a": {"0": 53, "1": 53, "2": 54}})
    estimate = compare(table, "base")[1].overall
    ratio = 160 / 153  # of the means, not the mean of the seeds' ratios
    assert estimate.mean == pytest.approx(100 * (ratio - 1))
    shifts = [100 * (n - ratio * b) / 51 for n, b in [(53, 50), (53, 52), (54, 51)]]  # paired by seed
    assert np.mean(shifts) == pytest.approx(0, abs=1e-9)
    assert estimate.error == pytest.approx(stats.sem(shifts))
    low, high = stats.t.interval(0.95, 2, estimate.mean, stats.sem(shifts))
    assert estimate.interval == pytest.approx((low, high))
    assert estimate.verdict == "not resolved"


def test_not_resolved_means_that_the_interval_contains_zero():
    assert Estimate(0.4, 0.5, 2).verdict == "not resolved"
    assert Estimate(4.0, 0.5, 2).verdict == "resolved"
    assert Estimate(0.0, 0.0).verdict == "not resolved"  # the baseline against itself
    assert Estimate(4.0).verdict == "untested" and str(Estimate(4.0)) == "+4.00"


def test_a_value_without_seed_stands_for_every_seed():
    table = seeded(base={"a": {None: 50}, "b": {None: 10}}, new={"a": {"0": 51, "1": 52}, "b": {None: 11}})
    row = compare(table, "base")[1]
    assert row.seeds == ("0", "1")
    assert row.overall.mean == pytest.approx((3 + 10) / 2)
    assert row.overall.error == pytest.approx(0.5)  # overall is 6.0 and 7.0 over the two seeds
    assert row.metrics[Metric("all", "b")].error is None


def test_seeds_that_not_every_cell_has_are_left_out_by_name():
    table = seeded(base={"a": {"0": 50, "1": 50}}, new={"a": {"0": 51, "1": 52, "2": 99}})
    row = compare(table, "base")[1]
    assert row.seeds == ("0", "1") and row.left_out == ("2",) and row.paired
    assert row.overall.mean == pytest.approx(3)


def test_resamples_of_a_small_test_set_widen_the_interval():
    rng = np.random.default_rng(0)
    right = rng.random((2, 200)) < np.array([[0.5], [0.6]])  # two models on the same 200 images
    picks = rng.integers(0, 200, (2000, 200))
    table = Table()
    for model, hits in zip(["base", "new"], right):
        table.add(model, Metric("all", "a"), "higher", hits.mean())
        table.resamples[model, Metric("all", "a")] = hits[picks].mean(axis=1)
    estimate = compare(table, "base")[1].overall
    ratio = 100 * (right[1][picks].mean(axis=1) / right[0][picks].mean(axis=1) - 1)  # the bootstrap itself
    assert estimate.error == pytest.approx(ratio.std(), rel=0.1)


def test_an_error_that_is_known_without_resamples_counts():
    """Figures of others' harnesses bring a standard error each: nothing is known of one draw of pictures for both."""
    table = table_of([("a", "higher")], base=(50.0,), new=(55.0,))
    metric = Metric("all", "a")
    table.errors |= {("base", metric): 2.0, ("new", metric): 3.0}
    zero, new = compare(table, "base")
    assert new.overall.error == pytest.approx(100 * math.hypot(3 / 50, 55 * 2 / 50**2))
    assert zero.overall.error == 0  # the baseline against itself
    del table.errors["base", metric]
    assert compare(table, "base")[1].overall.error is None  # of one side only


def test_a_mean_over_figures_of_unknown_error_has_none():
    """One metric with resamples, one that came without any: not half of an error, but none, and no verdict."""
    table = table_of([("a", "higher"), ("b", "higher")], base=(50.0, 30.0), new=(50.0, 36.0))
    known, bare = Metric("all", "a"), Metric("all", "b")
    for model in ("base", "new"):
        table.resamples[model, known] = np.array([49.0, 50.0, 51.0])
    row = compare(table, "base")[1]
    assert row.metrics[known].error == 0 and row.metrics[bare].error is None
    assert row.overall.mean == pytest.approx(10) and row.overall.verdict == "untested"
    table.errors |= {("base", bare): 3.0, ("new", bare): 3.0}
    assert compare(table, "base")[1].overall.error == pytest.approx(50 * math.hypot(3 / 30, 36 * 3 / 30**2))


def test_average_rank_gives_ties_the_smaller_rank():
    columns = [("a", "higher"), ("b", "lower")]
    table = table_of(columns, x=(90, 1.0), y=(90, 2.0), z=(80, 3.0))
    assert average_rank(table) == {"x": 1.0, "y": 1.5, "z": 3.0}
    assert average_rank(table_of(columns, x=(90.0, 1), y=(90.1, 2)), tolerance=0.15) == {"x": 1.0, "y": 1.5}
    assert average_rank(table_of(columns, x=(90, 1.0), y=(80,)))["y"] is None


def test_average_rank_is_over_groups_not_metrics():
    table = Table()
    for group, name, x, y in [("A", "1", 2, 1), ("A", "2", 2, 1), ("A", "3", 2, 1), ("B", "1", 1, 2)]:
        table.add("x", Metric(group, name), "higher", x)
        table.add("y", Metric(group, name), "higher", y)
    assert average_rank(table) == {"x": 1.5, "y": 1.5}


# --- the command -----------------------------------------------------------------------------------------------------

SAK_CSV = "model,group,metric,direction,value\n" + "".join(
    f"{model},PASCAL,{name},{direction},{value}\n"
    for model, values in {
        "base": (80.25, 70.54, 84.54, 13.57, 74.22),
        "SAK": (81.88, 74.30, 84.79, 14.02, 74.09),
        "PRISM": (82.20, 75.34, 84.81, 13.47, 75.92),
    }.items()
    for (name, direction), value in zip(PASCAL, values)
)


def test_command_prints_json(tmp_path, capsys):
    assert main(["delta", str(write(tmp_path, SAK_CSV)), "--baseline", "base", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["baseline"] == "base"
    assert answer["models"]["SAK"]["overall"]["delta"] == pytest.approx(0.833, abs=5e-4)
    assert answer["models"]["SAK"]["coverage"] == "5 of 5"
    assert answer["models"]["SAK"]["metrics"][3] == {
        "group": "PASCAL",
        "metric": "normals mErr",
        "delta": pytest.approx(-3.316, abs=5e-4),
        "standard_error": None,
        "interval": None,
        "verdict": "untested",
    }


def test_command_needs_no_torch(tmp_path):
    import subprocess
    import sys

    code = "import sys; from eval.__main__ import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    arguments = ["delta", str(write(tmp_path, SAK_CSV)), "--baseline", "base"]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, timeout=60)


def test_command_flags_a_published_figure(tmp_path, capsys):
    path = str(write(tmp_path, SAK_CSV))
    assert main(["delta", path, "--baseline", "base", "--check", "SAK=0.83"]) == 0
    assert main(["delta", path, "--baseline", "base", "--check", "SAK=0.83", "--check", "PRISM=2.29"]) == 1
    assert "PRISM: printed 2.29, computed 2.516" in capsys.readouterr().out


def test_command_takes_group_figures(tmp_path, capsys):
    rows = [(model, i, delta) for model, (deltas, _) in FEATSHARP_TABLE_2.items() for i, delta in enumerate(deltas)]
    lines = [f"{model},g{group},{delta}" for model, group, delta in rows]
    path = str(write(tmp_path, "model,group,delta\n" + "\n".join(lines)))
    claims = [part for model, (_, claim) in FEATSHARP_TABLE_2.items() for part in ("--check", f"{model}={claim}")]
    assert main(["delta", path, *claims]) == 0
    assert "FeatSharp" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("", "is empty"),
        ("model,group,metric,value\na,b,c,1\n", "line 1: column 'direction' is missing"),
        ("model,group,metric,direction,value,note\na,b,c,higher,1,x\n", "column 'note' is unknown"),
        ("model,group,metric,direction,value\n", "no rows"),
        ("model,group,metric,direction,value\na,b,c,higher,1\na,b,d,upper,1\n", "line 3, column direction: .*'upper'"),
        ("model,group,metric,direction,value\na,b,c,higher,fast\n", "line 2, column value: 'fast'"),
        ("model,group,metric,direction,value\na,b,c,higher,nan\n", "line 2, column value: 'nan' is not a fin"),
        ("model,group,delta\na,x,1\nb,x,-inf\n", "1 mistake\n  line 3, column delta: '-inf' is not a fin"),
        ("model,group,metric,direction,value\na,b,c,higher,\n", "line 2, column value: is empty"),
        ("model,group,metric,direction,value\na,b,c,higher\n", "line 2: 4 cells, expected 5"),
        ("model,group,metric,direction,value\na,b,c,higher,1\n\na,b,c,higher,1\n", "line 4, a, b / c: given twice"),
        ("model,group,delta\na,x,1\na,y,1\nb,x,2\n", "b has no figure for y"),
    ],
)
def test_bad_csv_is_refused_with_line_and_column(tmp_path, text, complaint):
    with pytest.raises(UserError, match=complaint):
        read_csv(write(tmp_path, text))


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["--baseline", "nonsense"], "--baseline nonsense: .*table.csv has no such model(.|\n)*one of a, b"),
        (["--baseline", "published:nyud_vit_b/SAK"], "no such model, and its figures are Δ% already"),
        (["--tolerance", "-5"], "--tolerance -5"),
        (["--tolerance", "nan"], "--tolerance nan"),
        (["--check", "a=nan"], "cannot read --check 'a=nan'"),
    ],
)
def test_options_that_mean_nothing_are_refused(tmp_path, capsys, words, complaint):
    path = str(write(tmp_path, "model,group,delta\na,x,0\nb,x,2\n"))
    assert main(["delta", path, *words]) == 2
    assert re.search(complaint, capsys.readouterr().err)
    assert main(["delta", path, "--baseline", "a"]) == 0


def test_all_csv_mistakes_are_reported_at_once(tmp_path, capsys):
    path = write(tmp_path, "model,group,metric,direction,value\na,b,c,higher,x\na,b,d,sideways,1\n")
    assert main(["delta", str(path), "--baseline", "a"]) == 2
    message = capsys.readouterr().err
    assert "2 mistakes" in message and "line 2" in message and "line 3" in message


def test_missing_file_and_missing_baseline_are_user_mistakes(tmp_path, capsys):
    assert main(["delta", str(tmp_path / "none.csv"), "--baseline", "a"]) == 2
    assert main(["delta", str(write(tmp_path, SAK_CSV))]) == 2
    assert main(["delta", str(write(tmp_path, SAK_CSV)), "--baseline", "bas"]) == 2
    message = capsys.readouterr().err
    assert "none.csv" in message and "--baseline NAME, one of base, SAK, PRISM" in message and "'bas'" in message
