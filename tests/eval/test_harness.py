"""Result files of VLM harnesses, in the formats that they have, → scores on one scale; nothing is guessed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from worlds import Truth

from eval.delta_m import compare
from eval.encoders import Model
from eval.harness import KIND, imported_scores
from eval.harness_files import read
from eval.report.csv_files import scores_csv
from eval.scores import Score, check_protocols, load, save
from eval.tables import delta_table
from teachers.errors import UserError


def models(*names: str) -> list[Model]:
    found = []
    for number, name in enumerate(names):
        found.append(Model(name, name, Truth(f"encoder {number}"), replicate=names[:number].count(name)))
    return found


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def lmms(**changes) -> dict[str, Any]:
    """What lmms-eval writes of three tasks, shortened to the keys that matter and some that do not."""
    return {
        "results": {
            "gqa": {
                "alias": "gqa", "exact_match,none": 0.59961, "exact_match_stderr,none": 0.00436,
                "exact_match_stderr_clt,none": 0.00437, "exact_match_stderr_clustered,none": "N/A",
            },
            "mme": {
                "alias": "mme", "mme_cognition_score,none": 608.92, "mme_cognition_score_stderr,none": "N/A",
                "mme_perception_score,none": 1547.22, "mme_perception_score_stderr,none": "N/A",
            },
            "pope": {
                "alias": "pope", "pope_accuracy,none": 0.87, "pope_f1_score,none": 0.86, "pope_yes_ratio,none": 0.43,
            },
            "mmbench_en_dev": {"alias": "mmbench_en_dev", "gpt_eval_score,none": 71.5, "submission,none": None},
        },
        "group_subtasks": {"gqa": [], "mme": []},
        "configs": {"gqa": {"num_fewshot": 0}},
        "versions": {"gqa": "Yaml", "mme": "Yaml"},
        "n-shot": {"gqa": 0, "mme": 0},
        "higher_is_better": {
            "gqa": {"exact_match": True}, "mme": {"mme_perception_score": True, "mme_cognition_score": True},
        },
        "n-samples": {"gqa": {"original": 12578, "effective": 12578}, "mme": {"original": 2374, "effective": 2374}},
        "config": {"model": "vllm", "limit": None},
        "git_hash": "v0.6-249-g6acf8765", "lmms_eval_version": "main@v0.6-249", "date": "20260925_153533",
        "model_name": "some/model", "total_evaluation_time_seconds": "3875.36",
    } | changes  # fmt: skip


def lm_eval(row: dict[str, Any], **changes) -> dict[str, Any]:
    """What lm-evaluation-harness writes of one task."""
    return {
        "results": {"task": {"alias": "task", **row}}, "versions": {"task": 1.0}, "n-shot": {"task": 0},
        "higher_is_better": {"task": {}}, "n-samples": {"task": {"original": 62, "effective": 62}},
        "git_hash": "abc1234", "date": 1790000000.5, "lm_eval_version": "0.4.12",
    } | changes  # fmt: skip


def one(folder: Path, content: Any, name: str = "results.json") -> Score:
    (score,) = imported_scores([f"a={write(folder / name, content)}"], models("a"))
    return score


# --- lmms-eval and lm-evaluation-harness -----------------------------------------------------------------------------


def test_lmms_eval_is_read_with_direction_scale_n_and_circumstances(tmp_path):
    file = write(tmp_path / "20260925_153533_results.json", lmms())
    (model,) = models("a")
    gqa, mme, pope, mmbench = imported_scores([f"a={file}"], [model])
    figure = gqa.metrics["gqa exact_match"]
    assert figure.value == pytest.approx(59.961) and figure.unit == "%" and figure.direction == "higher"
    assert figure.n == 12578 and figure.chance is None and figure.resamples == [] and figure.counts
    assert (gqa.model, gqa.identity, gqa.kind, gqa.protocol, gqa.group) == ("a", model.identity, KIND, 1, "VQA")
    assert not gqa.seeded and gqa.done and gqa.date == "20260925_153533"
    facts = gqa.facts
    assert facts["file"] == str(file) and facts["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert facts["harness"] == "lmms-eval" and facts["harness version"] == "main@v0.6-249"
    assert facts["n-shot"] == 0 and facts["version"] == "Yaml" and facts["model"] == "some/model"
    assert figure.error == pytest.approx(0.436)  # in the figure's unit
    assert [name for name, metric in mme.metrics.items() if metric.counts] == ["mme mme_perception_score"]
    assert mme.metrics["mme mme_cognition_score"].value == 608.92 and mme.metrics["mme mme_cognition_score"].unit == ""
    assert [metric.error for metric in (*mme.metrics.values(), *pope.metrics.values())] == [None] * 4
    assert [(name, metric.value, metric.counts) for name, metric in pope.metrics.items()] == [
        ("pope pope_f1_score", 86, True), ("pope pope_accuracy", 87, False),
    ]  # fmt: skip
    assert mmbench.metrics["mmbench_en_dev gpt_eval_score"].value == 71.5  # lmms-eval writes this one in %


def test_lm_evaluation_harness_says_its_directions_and_filters(tmp_path):
    row = {
        "word_perplexity,none": 18.25, "word_perplexity_stderr,none": "N/A", "sample_len": 62,
        "exact_match,strict-match": 0.5, "exact_match,flexible-extract": 0.75, "oddity,none": 0.3,
    }  # fmt: skip
    score = one(tmp_path, lm_eval(row, higher_is_better={"task": {"word_perplexity": False, "oddity": False}}))
    figures = {name: (f.value, f.unit, f.direction, f.counts, f.n) for name, f in score.metrics.items()}
    assert figures == {
        "task word_perplexity": (18.25, "", "lower", True, 62),
        "task exact_match (strict-match)": (50, "%", "higher", False, 62),
        "task exact_match (flexible-extract)": (75, "%", "higher", False, 62),
        "task oddity": (0.3, "", "lower", False, 62),  # a scale that no table knows stays as it is
    }
    assert score.facts["harness"] == "lm-evaluation-harness" and score.date == "2026-09-21 14:13:20"


def test_tasks_of_a_group_are_shown_where_the_group_has_a_figure(tmp_path):
    results = {
        "mmmu": {"alias": "mmmu", "mmmu_acc,none": 0.4},
        "mmmu_art": {"alias": " - art", "mmmu_acc,none": 0.5},
        "mmmu_law": {"alias": " - law", "mmmu_acc,none": 0.3},
        "seed": {"alias": "seed"},
        "seed_a": {"alias": " - a", "acc,none": 0.25},
    }
    document = lmms(
        results=results, group_subtasks={"mmmu": ["mmmu_art", "mmmu_law"], "seed": ["seed_a"]},
        **{"n-samples": {"mmmu_art": {"original": 30, "effective": 30}, "mmmu_law": {"original": 9, "effective": 8}}},
    )  # fmt: skip
    scores = imported_scores([f"a={write(tmp_path / 'results.json', document)}"], models("a"))
    assert {s.task: s.counts for s in scores} == {"mmmu": True, "mmmu_art": False, "mmmu_law": False, "seed_a": True}
    assert not any(metric.counts for s in scores for metric in s.metrics.values() if s.task == "mmmu_art")
    assert [next(iter(score.metrics.values())).n for score in scores] == [38, 30, 8, 0]


def test_a_direction_that_nobody_knows_is_asked_for(tmp_path):
    with pytest.raises(UserError, match=r'oddity of task(.|\n)*add "higher_is_better": {"task": {"oddity": true}}'):
        one(tmp_path, lm_eval({"oddity,none": 0.3}))
    assert one(tmp_path, lm_eval({"exact_match,none": 0.3})).metrics["task exact_match"].direction == "higher"


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -0.1, True, "N/A"])
def test_what_is_no_standard_error_is_left_out(tmp_path, odd):
    score = one(tmp_path, lm_eval({"exact_match,none": 0.3, "exact_match_stderr,none": odd}))
    assert score.metrics["task exact_match"].error is None


@pytest.mark.parametrize("value", [59.9, -0.1])
def test_a_value_off_its_metrics_scale_is_refused(tmp_path, value):
    with pytest.raises(UserError, match=f"task exact_match,none is {value}(.|\n)*from 0 to 1"):
        one(tmp_path, lm_eval({"exact_match,none": value}))


def test_nan_and_files_without_figures_are_refused(tmp_path):
    with pytest.raises(UserError, match="exact_match,none is nan"):
        one(tmp_path, lm_eval({"exact_match,none": float("nan")}))
    with pytest.raises(UserError, match="holds no figure"):
        one(tmp_path, lm_eval({"exact_match,none": "N/A"}))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"n-samples": {"task": {"original": 200}}}, "n-samples.task.effective +is missing"),
        ({"n-samples": {"task": "many"}}, "n-samples.task +expected a mapping, got 'many'"),
        ({"n-samples": {"task": -3}}, "n-samples.task.effective .*greater than or equal to 0"),
        ({"group_subtasks": ["task"]}, "group_subtasks +expected a mapping"),
        ({"group_subtasks": {"task": "other"}}, "group_subtasks.task +expected a list"),
        ({"group_subtasks": {"a": ["b"], "b": ["a"], "task": ["a"]}}, "group_subtasks +groups that hold each other: "),
        ({"versions": ["x"]}, "versions +expected a mapping"),
        ({"n-shot": 5}, "n-shot +expected a mapping"),
        ({"higher_is_better": {"task": True}}, "higher_is_better.task +expected a mapping"),
        ({"date": float("nan")}, "date +expected seconds since 1970, or a text, got nan"),
        ({"date": 1e20}, "date +expected seconds since 1970, or a text, got 1e.20"),
        ({"results": {"task": {"exact_match,none": 10**400}}}, "task exact_match,none is inf"),
    ],
)
def test_a_damaged_key_is_named_with_its_file(tmp_path, change, complaint):
    with pytest.raises(UserError, match=rf"(?s)results\.json.*{complaint}"):
        one(tmp_path, lm_eval({"exact_match,none": 0.3}, **change))


def test_keys_that_are_null_or_of_no_concern_do_no_harm(tmp_path):
    sections = ("n-samples", "n-shot", "versions", "higher_is_better", "group_subtasks", "date", "git_hash")
    score = one(tmp_path, lm_eval({"exact_match,none": 0.3}, **dict.fromkeys(sections), samples=[1], shots="?"))
    assert score.metrics["task exact_match"].n == 0 and score.date == "" and score.facts["n-shot"] is None
    assert one(tmp_path, lm_eval({"acc,none": 0.3}, **{"n-samples": {"task": 7}})).metrics["task acc"].n == 7


# --- VLMEvalKit ------------------------------------------------------------------------------------------------------


VLMEVALKIT = {  # file → its content, and (metric, figure, unit) of the main metric
    "m_MMStar_acc.csv": ('"split","Overall","math"\n"none","0.452","0.292"\n', ("Overall", 45.2, "%")),
    "m_TextVQA_VAL_acc.csv": ('"Overall"\n"45.222"\n', ("Overall", 45.222, "%")),
    "m_ChartQA_TEST_acc.csv": (
        '"test_augmented","test_human","Overall"\n"91.68","54.88","73.28"\n', ("Overall", 73.28, "%")
    ),
    "m_MMBench_DEV_EN_V11_acc.csv": ('"split","Overall","AR"\n"dev","0.7328","0.76"\n', ("Overall", 73.28, "%")),
    "m_MMMU_DEV_VAL_exact_matching_acc.csv": (
        '"split","Overall"\n"dev","0.5"\n"validation","0.552"\n', ("Overall", 55.2, "%")
    ),
    "m_POPE_score.csv": (
        '"split","Overall","acc","precision","recall"\n"random","90","91","92","93"\n"Overall","86.1","87.2","88","84"\n',
        ("Overall", 86.1, "%"),
    ),
    "m_HallusionBench_score.csv": ('"split","aAcc","fAcc","qAcc"\n"Overall","55.2","30","28"\n', ("aAcc", 55.2, "%")),
    "m_MME_score.csv": ('"perception","reasoning"\n"1600.5","500.25"\n', ("perception", 1600.5, "")),
    "m_OCRBench_score.json": ('{"Text Recognition": 255, "Final Score": 812, "Final Score Norm": 81.2}',
                              ("Final Score Norm", 81.2, "%")),
    "m_MathVista_MINI_gpt-4o-mini_score.csv": (
        '"Task&Skill","tot","acc"\n"FQA","200","60"\n"Overall","1000","63.2"\n', ("acc", 63.2, "%")
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", VLMEVALKIT)
def test_vlmevalkit_is_read_by_the_name_of_its_data_set(tmp_path, name):
    content, (metric, value, unit) = VLMEVALKIT[name]
    score = one(tmp_path, content, name)
    (main,) = [name for name, figure in score.metrics.items() if figure.counts]
    assert main == f"{score.task} {metric}" and f"_{score.task}_" in name
    assert score.metrics[main].value == pytest.approx(value) and score.metrics[main].unit == unit
    assert score.facts["harness"] == "VLMEvalKit"


def test_vlmevalkits_other_columns_are_shown(tmp_path):
    score = one(tmp_path, VLMEVALKIT["m_POPE_score.csv"][0], "m_POPE_score.csv")
    shown = {name: figure.value for name, figure in score.metrics.items() if not figure.counts}
    assert shown == {"POPE acc": 87.2, "POPE precision": 88, "POPE recall": 84}


def test_a_benchmark_is_the_longest_name_that_fits(tmp_path):
    file = write(tmp_path / "POPE_tuned_MMBench_DEV_EN_V11_acc.csv", '"split","Overall"\n"dev","0.5"\n')
    assert read(file)[0].name == "MMBench_DEV_EN_V11"


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("m_MMStar_acc.csv", '"split","Overall"\n"none","45.2"\n', "Overall is 45.2(.|\n)*from 0 to 1"),
        ("m_MMStar_acc.csv", '"split","math"\n"none","0.1"\n', "has no Overall"),
        ("m_MMMU_DEV_VAL_acc.csv", '"split","Overall"\n"dev","0.5"\n', "has no Overall(.|\n)*split is validation"),
        ("m_TextVQA_VAL_acc.csv", '"Overall"\n"n/a"\n', "Overall is 'n/a'"),
        ("m_Unheard_acc.csv", '"Overall"\n"1"\n', "no result file(.|\n)*TextVQA_VAL"),
        ("results.json", '{"scores": 1}', "no result file(.|\n)*lmms-eval"),
        ("results.json", "{", "is damaged"),
        pytest.param("results.json", "[" * 100_000, "is damaged", id="deep"),
        ("m_OCRBench_score.json", "[1]", "no result file"),
        pytest.param("m_MMStar_acc.csv", '"split","Overall"\n"none","' + "0" * 200_000, "is damaged", id="long"),
        ("m_MathVista_MINI_score.csv", '"Task&Skill","tot","acc"\n"Overall","many","63.2"\n', "tot is 'many'"),
        ("m_MathVista_MINI_score.csv", '"Task&Skill","tot","acc"\n"Overall","nan","63.2"\n', "tot is nan"),
        ("table.xlsx", "?", "no result file"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_name(tmp_path, name, content, complaint):
    with pytest.raises(UserError, match=f"{name}.*{complaint}"):
        one(tmp_path, content, name)


# --- models ----------------------------------------------------------------------------------------------------------


def test_figures_go_to_the_model_of_the_name_and_repetitions_in_their_order(tmp_path):
    first, second = write(tmp_path / "1.json", lmms()), write(tmp_path / "2.json", lmms())
    table = models("a", "b", "a")
    scores = imported_scores([f"b={first}", f"a={first}", f"a={second}"], table)
    assert [(s.model, s.replicate, s.identity) for s in scores if s.task == "gqa"] == [
        ("b", 0, table[1].identity), ("a", 0, table[0].identity), ("a", 1, table[2].identity),
    ]  # fmt: skip
    with pytest.raises(UserError, match="b has figures of gqa already"):
        imported_scores([f"b={first}", f"b={second}"], table)


def test_a_name_may_hold_an_equals_sign_and_must_be_a_models(tmp_path):
    file = write(tmp_path / "1.json", lmms())
    table = models("teacher:lite0?weights", "teacher:lite0?weights=random")
    assert imported_scores([f"teacher:lite0?weights=random={file}"], table)[0].model == table[1].name
    for pair in (f"c={file}", str(file)):
        with pytest.raises(UserError, match="no such model(.|\n)*MODEL=FILE(.|\n)*name one of a, b"):
            imported_scores([pair], models("a", "b"))
    with pytest.raises(UserError, match="no file"):
        imported_scores(["a="], models("a"))
    with pytest.raises(UserError, match="absent.json cannot be read"):
        imported_scores([f"a={tmp_path / 'absent.json'}"], models("a"))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"n-shot": {"gqa": 5, "mme": 0}}, "gqa: n-shot is 5 in .*2.json .b. and 0 in .*1.json .a."),
        ({"n-samples": {"gqa": {"original": 12578, "effective": 8}}}, "gqa: questions is 8"),
        ({"versions": {"gqa": 2}}, "gqa: version is 2"),
    ],
)
def test_figures_made_under_other_conditions_are_not_put_side_by_side(tmp_path, change, complaint):
    first, second = write(tmp_path / "1.json", lmms()), write(tmp_path / "2.json", lmms(**change))
    with pytest.raises(UserError, match=complaint):
        imported_scores([f"a={first}", f"b={second}"], models("a", "b"))


def test_imported_figures_enter_delta_m_and_survive_a_file(tmp_path):
    better = lmms(results={"gqa": {"exact_match,none": 0.66, "exact_match_stderr,none": 0.005}})
    base = lmms(results={"gqa": {"exact_match,none": 0.60}})
    pairs = [f"a={write(tmp_path / '1.json', base)}", f"b={write(tmp_path / '2.json', better)}"]
    scores = imported_scores(pairs, models("a", "b"), group="VLM")
    check_protocols(scores)
    save(scores[-1], tmp_path / "scores" / "gqa.json")
    assert load(tmp_path / "scores" / "gqa.json") == scores[-1] and scores[-1].metrics["gqa exact_match"].error == 0.5
    assert "gqa exact_match" in scores_csv(scores)
    (_, row) = compare(delta_table(scores), "a")
    assert row.groups["VLM"].mean == pytest.approx(10) and row.overall.mean == pytest.approx(10)
    assert {score.group for score in scores} == {"VLM"}
