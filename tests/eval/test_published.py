"""Published figures: the file is what the schema says, every Δm% is recomputed, and a row can be a baseline."""

from __future__ import annotations

import copy
import csv
import json
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest

from eval.__main__ import main
from eval.delta_m import Metric, Table, average_rank, compare
from eval.published import Published, add_published, check, check_groups, find, load
from teachers.errors import UserError

SHIPPED = load()
CLAIMED = [(name, model) for name, t in SHIPPED.tables.items() if t.delta for model in t.delta.printed]


def exactly(table: str, model: str) -> Fraction:
    """Δm% in fractions, written anew: groups of equal weight, each the mean of its metrics."""
    entry = SHIPPED.tables[table]
    groups: dict[str, list[Fraction]] = {}
    for column, value, base in zip(entry.columns, entry.models[model], entry.models[entry.delta.baseline]):
        value, base = (Fraction(str(figure)) for figure in (value, base))
        better = value - base if column.direction == "higher" else base - value
        groups.setdefault(column.group, []).append(value if entry.relative else 100 * better / base)
    return sum((sum(own) / len(own) for own in groups.values()), Fraction(0)) / len(groups)


@pytest.mark.parametrize("table, model", CLAIMED)
def test_published_delta_is_recomputed(table, model):
    finding = next(finding for finding in check(SHIPPED, table) if finding.model == model)
    assert finding.computed == pytest.approx(float(exactly(table, model)), abs=1e-9)
    assert finding.low < finding.computed < finding.high
    assert finding.follows == ((table, model) != ("pascal_context_vit_b", "PRISM"))
    assert finding.follows == (abs(finding.computed - finding.printed) < 0.01)  # what the bounds allow is not much


def test_worked_examples_and_the_row_that_does_not_follow():
    pascal = {finding.model: finding for finding in check(SHIPPED, "pascal_context_vit_b")}
    assert round(pascal["SAK"].computed, 3) == 0.833 and pascal["SAK"].printed == 0.83
    assert round(pascal["PRISM"].computed, 2) == 2.52 and pascal["PRISM"].printed == 2.29
    nyud = {finding.model: finding for finding in check(SHIPPED, "nyud_vit_b")}
    assert round(nyud["SAK"].computed, 2) == nyud["SAK"].printed == 11.11
    table_2 = {finding.model: round(finding.computed, 2) for finding in check(SHIPPED, "featsharp_table_2")}
    assert table_2 == {"RADIOv2.5-L": -0.21, "Tile": -0.27, "S2": 0.03, "FeatUp": -0.13, "FeatSharp": 0.39}


def test_bounds_hold_all_that_rounds_to_what_is_printed():
    rng = np.random.default_rng(0)
    entry = SHIPPED.tables["nyud_vit_b"]
    finding = next(finding for finding in check(SHIPPED, "nyud_vit_b") if finding.model == "RADIO")
    half = np.array([0.5 * 10.0**-column.decimals for column in entry.columns])
    signs = np.array([1 if column.direction == "higher" else -1 for column in entry.columns])
    drawn = {name: entry.models[name] + half * rng.choice([-1, 1], (4096, 4)) for name in ("RADIO", "Single-task")}
    deltas = (100 * signs * (drawn["RADIO"] / drawn["Single-task"] - 1)).mean(axis=1)
    assert deltas.min() == pytest.approx(finding.low, abs=1e-9) and deltas.max() == pytest.approx(finding.high)


def test_average_rank_is_the_one_that_phi_s_prints():
    """Its Table 4 prints the mean rank of each group; equal figures share the smaller rank."""
    printed = {
        "phi_s_vit_l": {
            "Classification": (4.0, 2.5, 2.5, 1.0), "Probe3D": (4.0, 2.25, 1.75, 1.75), "SAM": (1.0, 3.0, 2.0, 4.0),
            "Dense": (4.0, 2.5, 2.0, 1.5),
        },
        "phi_s_teachers_vit_l": {"Teacher match": (3.25, 2.75, 2.25, 1.75)},
    }  # fmt: skip
    for name, groups in printed.items():
        entry = SHIPPED.tables[name]
        for group, ranks in groups.items():
            table = Table()
            for model, values in entry.models.items():
                for column, value in zip(entry.columns, values):
                    if column.group == group:
                        table.add(model, column.metric, column.direction, value)
            assert tuple(average_rank(table).values()) == ranks, (name, group)


def test_every_figure_has_a_source_and_says_how_sure_it_is():
    assert {"featsharp_table_2", "featsharp_coco_radio", "pascal_context_vit_b", "c_radio_v4"} <= set(SHIPPED.tables)
    for name, entry in SHIPPED.tables.items():
        assert f"arXiv {SHIPPED.sources[entry.source].arxiv}" in SHIPPED.source(name) and entry.where and entry.protocol
        for values in entry.models.values():
            for column, value in zip(entry.columns, values):
                assert value is None or round(value, column.decimals) == value, (name, column.name, value)
                assert value is None or column.unit != "%" or 0 < value < 100
    assert SHIPPED.tables["c_radio_v4"].uncertain == {"RADIOv2.5-H": {"instance mIoU (coco)": "secondary"}}


def changed(**change) -> dict:
    document = json.loads(SHIPPED.model_dump_json())
    document["tables"]["nyud_vit_b"] |= change
    return document


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"sauce": "x"}, "sauce"),
        ({"source": "nowhere"}, "no source is named nowhere"),
        ({"models": {"Single-task": [1.0]}}, "Single-task has 1 figures, the table 4 columns"),
        ({"delta": {"baseline": "Single", "decimals": 2, "printed": {}}}, "neither a row nor a column.*Single"),
        ({"certainty": "rumour"}, "certainty"),
        ({"relative": True, "delta": None}, "no delta that names their baseline"),
        ({"uncertain": {"SAK": {"mIoU": "paper"}}}, "neither a row nor a column of the table: mIoU"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(tmp_path, change, complaint):
    file = tmp_path / "baselines.json"
    file.write_text(json.dumps(changed(**change)))
    with pytest.raises(UserError, match=f"(?s){complaint}"):
        load(file)
    file.write_text(json.dumps(changed()))
    assert isinstance(load(file), Published)
    document = changed()
    document["certainty"].pop("released")
    file.write_text(json.dumps(document))
    with pytest.raises(UserError, match="the legend does not say what released means"):
        load(file)
    file.write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        load(file)


def test_names_mean_tables_models_or_one_row():
    assert find(SHIPPED, "C-RADIOv4-H") == [("c_radio_v4", "C-RADIOv4-H")]
    assert len(find(SHIPPED, "SAK")) == 3 and len(find(SHIPPED, "nyud_vit_b")) == 15
    with pytest.raises(UserError, match="(?s)named 'C-RADIOv4-L'.*such as .*C-RADIOv4-H"):
        find(SHIPPED, "C-RADIOv4-L")


# --- as a baseline ---------------------------------------------------------------------------------------------------

NYUD = [("semseg mIoU", "higher", 60.22), ("depth RMSE", "lower", 0.4883), ("normals mErr", "lower", 17.81)]


def ours(metrics=NYUD, group="NYUDv2") -> Table:
    table = Table()
    for name, direction, value in metrics:
        table.add("ours", Metric(group, name), direction, value)
    return table


def test_a_published_row_is_a_baseline_and_what_only_one_has_is_named():
    table = ours([*NYUD, ("extra", "higher", 1.0)])
    name = add_published(table, "published:nyud_vit_b/SAK")
    row = next(row for row in compare(table, name, common=True) if row.model == "ours")
    deltas = [100 * (60.22 / 59.93 - 1), -100 * (0.4883 / 0.4942 - 1), -100 * (17.81 / 17.60 - 1)]
    assert row.overall.mean == pytest.approx(np.mean(deltas))
    assert row.coverage == "3 of 5; missing: NYUDv2 / extra, NYUDv2 / boundary odsF"
    assert row.missing[Metric("NYUDv2", "extra")] == "the baseline has none (not published)"
    assert compare(table, name)[0].overall is None  # and without --common there is no figure


def test_the_error_against_a_published_row_is_the_models_own():
    table, metric = ours(NYUD[:1]), Metric("NYUDv2", "semseg mIoU")
    resamples = 60.22 + np.random.default_rng(0).normal(0, 0.5, 200)
    table.resamples["ours", metric] = resamples
    name = add_published(table, "nyud_vit_b/SAK")
    estimate = compare(table, name, common=True)[0].metrics[metric]
    assert estimate.error == pytest.approx(100 * resamples.std(ddof=1) / 59.93)


@pytest.mark.parametrize(
    "table, name, units, complaint",
    [
        (ours([("depth RMSE", "higher", 0.5)]), "nyud_vit_b/SAK", None, "direction 'lower', but 'higher'"),
        (Table(models=["ours"]), "nyud_vit_b/SAK", None, "shares no metric with the table, which has none"),
        (ours([NYUD[0], ("depth RMSE", "higher", 0.5)]), "nyud_vit_b/SAK", None, "direction 'lower', but 'higher'"),
        (ours(group="NYUD"), "nyud_vit_b/SAK", None, "(?s)shares no metric.*NYUD / .*NYUDv2 / depth RMSE"),
        (ours(), "SAK", None, "(?s)is not one row.*published:nyud_vit_b/SAK"),
        (ours(), "featsharp_table_2/Tile", None, "holds Δ% against Baseline"),
        (ours(), "nyud_vit_b/SAK", {Metric("NYUDv2", "semseg mIoU"): ""}, "semseg mIoU: is in %, the table's in ''"),
    ],
)
def test_rows_that_cannot_be_compared_are_refused_and_change_nothing(table, name, units, complaint):
    before = copy.deepcopy(table)
    with pytest.raises(UserError, match=complaint):
        add_published(table, name, units)
    assert table == before


def test_rows_without_a_common_group_are_known_before_there_are_figures():
    check_groups("published:nyud_vit_b/SAK", ["Classification", "NYUDv2"])
    with pytest.raises(UserError, match="(?s)nyud_vit_b/SAK shares no group .* has Dense, VQA.*the groups NYUDv2"):
        check_groups("nyud_vit_b/SAK", ["Dense", "VQA"])
    with pytest.raises(UserError, match="of which nothing counts"):
        check_groups("nyud_vit_b/SAK", [])
    with pytest.raises(UserError, match="holds Δ% against Baseline"):
        check_groups("featsharp_table_2/Tile", ["Classification"])


# --- the commands ----------------------------------------------------------------------------------------------------


def test_command_lists_sources_and_flags_what_does_not_follow(capsys):
    assert main(["published"]) == 0
    text = capsys.readouterr().out
    assert "arXiv 2606.03444" in text and "80.25  70.54  84.54  13.57  74.22" in text
    assert "PRISM: printed 2.29, computed 2.516 (2.491 to 2.541 before rounding): does NOT follow" in text
    assert f"published Δm%: {len(CLAIMED) - 1} of {len(CLAIMED)} follow" in text
    assert main(["published", "--strict"]) == 1
    assert main(["published", "--strict", "SAK", "featsharp_table_2"]) == 0
    assert "published Δm%: 8 of 8 follow" in capsys.readouterr().out
    assert main(["published", "PRIZM"]) == 2 and "such as" in capsys.readouterr().err


def test_command_prints_json(capsys):
    assert main(["published", "pascal_context_vit_b/PRISM", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    table = answer["tables"]["pascal_context_vit_b"]
    assert table["source"]["arxiv"] == "2606.03444" and table["models"] == {"PRISM": [82.2, 75.34, 84.81, 13.47, 75.92]}
    assert [(f["model"], f["follows"]) for f in answer["check"]] == [("PRISM", False)]


def test_delta_command_takes_a_published_baseline(tmp_path, capsys):
    path = tmp_path / "table.csv"
    with path.open("w", newline="") as file:
        rows = [["model", "group", "metric", "direction", "value"]]
        csv.writer(file).writerows(rows + [["ours", "NYUDv2", *row] for row in NYUD])
    assert main(["delta", str(path), "--baseline", "published:nyud_vit_b/Single-task", "--common"]) == 0
    text = capsys.readouterr().out
    assert "against published:nyud_vit_b/Single-task" in text and "3 of 4; missing: NYUDv2 / boundary odsF" in text
    assert "published:nyud_vit_b/Single-task is from PRISM: Synergizing" in text and "448×576" in text
    assert main(["delta", str(path), "--baseline", "published:nyud_vit_b/Single-task", "--common", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["baseline"] == "published:nyud_vit_b/Single-task" and "arXiv 2606.03444" in answer["source"]
    assert answer["models"]["ours"]["metrics"][0]["delta"] == pytest.approx(100 * (60.22 / 51.15 - 1))
    assert main(["delta", str(path), "--baseline", "published:nobody"]) == 2
    assert "nothing published is named 'nobody'" in capsys.readouterr().err


def test_commands_need_no_torch():
    code = "import sys; from eval.__main__ import main; main(['published']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_a_reader_that_has_seen_enough_is_no_error():
    """`python -m eval published | head -1`: a reader that closes at once."""
    command = [sys.executable, "-m", "eval", "published"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as listing:
        listing.stdout.close()
        assert (listing.stderr.read(), listing.wait()) == (b"", 0)
