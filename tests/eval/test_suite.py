"""The suite: runs what is missing, records what fails, and writes a report that says what it can and cannot tell."""

from __future__ import annotations

import csv
import json
import re
import shutil

import pytest
from worlds import write_student

from eval import suite as suites
from eval.__main__ import main
from eval.tasks import TASKS
from teachers.radio_files import CONFIG

RANDOM = "teacher:random?patch=8&image_size=32&width=8&depth=1"
RECIPE = """
about: A trial.
data: {tabletop: {kind: tabletop, size: 32, train: 24, val: 12}, absent: {kind: image_folder, path: nowhere}}
tasks:
  knn: {task: knn, data: tabletop, k: 3}
  probe: {task: segmentation, data: tabletop, steps: 4, batch: 8, labels: 8, seeds: [0, 1]}
  words: {task: zero_shot, data: tabletop}
  match: {task: match, data: tabletop}
pictures: {data: tabletop, count: 2}
cache: CACHE
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("suite")
    (folder / "trial.yaml").write_text(RECIPE.replace("CACHE", str(folder / "cache")))
    return folder


def run(folder, *arguments, recipe="trial.yaml", out="out"):
    return main([str(folder / recipe), *arguments, "--out", str(folder / out)])


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return str(write_student(tmp_path_factory.mktemp("runs") / "run"))


@pytest.fixture(scope="module")
def scored(folder, student):
    assert run(folder, f"a={RANDOM}", f"b={RANDOM}&seed=1", student, "--baseline", "b") == 0
    return folder / "out"


def test_one_file_a_model_task_and_seed(scored):
    files = sorted(path.name for path in scored.glob("scores/a-*/*.json"))
    assert files == ["knn.seed0.json", "match.seed0.json", "probe.seed0.json", "probe.seed1.json", "words.seed0.json"]
    score = json.loads(next(scored.glob("scores/a-*/knn.seed0.json")).read_text())
    figure = score["metrics"]["k-NN top-1"]
    assert figure["n"] == 12 and figure["direction"] == "higher" and 0 < figure["chance"] < 60
    assert score["commit"] and score["libraries"]["torch"] and score["facts"]["size"] == [32, 32]
    assert json.loads(next(scored.glob("scores/a-*/words.seed0.json")).read_text())["not_applicable"]


def test_a_second_run_scores_nothing_again(scored, folder, student, capsys, monkeypatch):
    monkeypatch.setattr(suites.Suite, "score", lambda *_: pytest.fail("scored again"))
    assert run(folder, f"a={RANDOM}", f"b={RANDOM}&seed=1", student, "--baseline", "b") == 0
    assert "15 there, 0 to do" in capsys.readouterr().out


def test_a_renamed_model_keeps_its_scores(scored, folder, capsys):
    assert run(folder, f"renamed={RANDOM}") == 0
    assert "5 there, 0 to do" in capsys.readouterr().out
    assert "Baseline: **renamed**" in (scored / "report.md").read_text().splitlines()[0]


def test_other_settings_or_another_protocol_are_scored_again(scored, folder, capsys, monkeypatch):
    assert run(folder, f"a={RANDOM}", "--set", "tasks.knn.k=5") == 0
    assert "4 there, 1 to do" in capsys.readouterr().out
    assert list(scored.glob("scores/a-*/knn.seed0.json.before-*"))  # the other figure is kept
    monkeypatch.setattr(TASKS["knn"], "VERSION", 99)
    assert run(folder, f"a={RANDOM}") == 0
    assert "4 there, 1 to do" in capsys.readouterr().out


def test_report_begins_with_baseline_and_coverage_and_needs_no_network(folder, student):
    out = folder / "report"
    models = [f"a={RANDOM}", f"b={RANDOM}&seed=1", student]
    assert run(folder, *models, "--baseline", "b", out="report") == 0
    markdown = (out / "report.md").read_text()
    first = "Baseline: **b**. Coverage: all 3 models have all 2 metrics (applicable to none: words)."
    assert markdown.splitlines()[0] == first
    page = (out / "report.html").read_text()
    assert page.index("Baseline") < page.index("<h1>") and "<script" not in page and "<link" not in page
    assert set(re.findall(r'(?:src|href)="([^"]{11})', page)) == {"data:image/"}
    assert page.count("<img") == 5 and 'name="viewport"' in page and "@media print" in page
    for text in (markdown, page):
        for part in (
            "k-NN top-1 ↑",
            "mIoU ↑",
            "feature error a ↓",
            "chance",
            "version 1",
            "A trial.",
            "no evidence about",
            "not resolved",
            "training seed",
            f"b={RANDOM}&seed=1".replace("&", "&amp;" if text is page else "&"),
        ):
            assert part in text, part
    for name in ("delta", "features", "head_a", "head_b"):
        assert (out / f"{name}.png").stat().st_size > 1000 and f"({name}.png)" in markdown


def test_tables_can_be_recomputed(folder, capsys):
    out = folder / "report"
    rows = list(csv.DictReader((out / "scores.csv").open()))
    assert {row["model"] for row in rows} == {"a", "b", "run"}
    assert {row["note"] for row in rows if row["task"] == "words"} == {"the model has no text tower"}
    capsys.readouterr()
    assert main(["delta", str(out / "delta.csv"), "--baseline", "b", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)["models"]["a"]["overall"]["delta"]
    row = next(line for line in (out / "report.md").read_text().splitlines() if line.startswith("| a |"))
    printed = re.search(r"[+-]\d+\.(\d+)", row)
    assert float(printed[0]) == pytest.approx(again, abs=0.51 * 10 ** -len(printed[1]))  # to its last digit


def test_a_failed_task_is_recorded_and_the_rest_goes_on(folder, capsys, monkeypatch):
    def broken(ctx):
        raise RuntimeError("it broke")

    monkeypatch.setattr(TASKS["segmentation"], "run", broken)
    more = "tasks.lost={task: knn, data: absent}"
    assert run(folder, f"a={RANDOM}", f"b={RANDOM}&seed=1", "--set", more, out="failed") == 1
    printed = capsys.readouterr().out
    assert "RuntimeError: it broke (test_suite.py" in printed and "no data set at" in printed
    markdown = (folder / "failed" / "report.md").read_text()
    assert "all 2 models: 1 of 3; missing: Classification / lost, Dense / probe" in markdown.splitlines()[0]
    assert "probe, every model: failed: RuntimeError" in markdown and "n/a" in markdown
    score = json.loads(next((folder / "failed").glob("scores/a-*/probe.seed0.json")).read_text())
    assert "it broke" in score["error"] and not score["metrics"]
    monkeypatch.undo()
    assert run(folder, f"a={RANDOM}", f"b={RANDOM}&seed=1", out="failed") == 0  # what failed is tried again
    assert "6 there, 4 to do" in capsys.readouterr().out


def test_repetitions_give_intervals_over_training_seeds(folder):
    models = [f"new={RANDOM}&seed={seed}" for seed in (5, 6)] + [f"old={RANDOM}&seed={seed}" for seed in (7, 8)]
    assert run(folder, *models, "--baseline", "old", "--set", "pictures=null", out="repeated") == 0
    text = (folder / "repeated" / "report.md").read_text()
    assert "2 training runs" in text and "each model was trained once" not in text
    rows = list(csv.DictReader((folder / "repeated" / "delta.csv").open()))
    assert {row["seed"] for row in rows} == {f"{model}, run {i}" for model in ("new", "old") for i in (0, 1)}
    assert "Not paired, because its seeds are not the baseline's or not known: new." in text


def test_user_mistakes_exit_with_2(folder, capsys, tmp_path):
    assert run(folder, f"a={RANDOM}", "--baseline", "c") == 2
    assert run(folder, "teacher:none") == 2
    assert run(folder, f"a={RANDOM}", recipe="none.yaml") == 2
    file = next((folder / "out").glob("scores/a-*/match.seed0.json"))
    content = file.read_text()
    file.write_text("{")
    assert run(folder, f"a={RANDOM}") == 2
    file.write_text(content)
    message = capsys.readouterr().err
    for part in ("--baseline c: no such model", "unknown encoder 'none'", "no recipe at", "is not a score file"):
        assert part in message


def test_a_model_that_cannot_take_the_size_fails_alone(folder, student):
    large = ["--set", "tasks.knn.size=128", "--set", "pictures=null"]
    assert run(folder, f"a={RANDOM}", student, *large, "--common", out="sizes") == 1
    text = (folder / "sizes" / "report.md").read_text()
    assert "knn, run: failed: run cannot take images of 128×128" in text
    first = text.splitlines()[0]
    assert "1 of 2 models have all 2 metrics" in first and "run: 1 of 2; missing: Classification / k-NN top-1" in first


def test_a_teacher_that_cannot_be_loaded_costs_its_own_panel_only(folder, student, capsys):
    broken = folder / "broken"
    shutil.copytree(student, broken)
    config = json.loads((broken / "export" / CONFIG).read_text())
    config["teachers"]["a"] |= {"encoder": "tabletop_clip", "weights": "/nowhere/a.safetensors", "options": {}}
    (broken / "export" / CONFIG).write_text(json.dumps(config))
    assert run(folder, f"n={RANDOM}", str(broken), out="panels") == 1
    assert "no PCA panel of head a: " in capsys.readouterr().out
    out = folder / "panels"
    assert (out / "features.png").exists() and (out / "head_b.png").exists() and not (out / "head_a.png").exists()
    for name in ("report.md", "report.html"):
        assert re.search(r"Not shown: head a \(.*/nowhere/a.safetensors", (out / name).read_text())
