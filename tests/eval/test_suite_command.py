"""The suite's command: figures of a VLM harness enter the table, and a published row can be the baseline."""

from __future__ import annotations

import json

import pytest

from eval.__main__ import main

RANDOM = "teacher:random?patch=8&image_size=32&width=8&depth=1"
RECIPE = """
data: {tabletop: {kind: tabletop, size: 32, train: 24, val: 12}}
tasks:
  knn: {task: knn, data: tabletop, k: 3}
  gqa_small: {task: knn, data: tabletop, k: 2, counts: false}
cache: CACHE
"""
RESULTS = {
    "results": {"gqa": {"alias": "gqa", "exact_match,none": 0.6}},
    "higher_is_better": {"gqa": {"exact_match": True}}, "n-samples": {"gqa": {"original": 100, "effective": 100}},
    "versions": {"gqa": "Yaml"}, "n-shot": {"gqa": 0}, "configs": {"gqa": {"num_fewshot": 0}},
    "lmms_eval_version": "0.6", "config": {"model": "llava"},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("command")
    (folder / "trial.yaml").write_text(RECIPE.replace("CACHE", str(folder / "cache")))
    for name, share in (("a", 0.6), ("b", 0.5)):
        figures = RESULTS | {"results": {"gqa": {"alias": "gqa", "exact_match,none": share}}}
        (folder / f"{name}.json").write_text(json.dumps(figures))
    return folder


def run(folder, *arguments):
    models = (f"a={RANDOM}", f"b={RANDOM}&seed=1")
    return main([str(folder / "trial.yaml"), *models, "--out", str(folder / "out"), *arguments])


def test_imported_figures_enter_the_table_and_its_delta(folder):
    pairs = [word for name in "ab" for word in ("--imported", f"{name}={folder}/{name}.json")]
    assert run(folder, "--baseline", "b", *pairs, "--imported-group", "VILA") == 0
    page = (folder / "out" / "report.md").read_text()
    assert "| VILA |" in page and "60.0" in page and "lmms-eval" in page
    table = (folder / "out" / "delta.csv").read_text()
    assert "a,VILA," in table and ",higher,60.0," in table
    assert not list(folder.glob("out/scores/*/gqa.*"))  # the file itself is the record


def test_what_is_wrong_with_an_imported_file_is_told_before_anything_is_scored(folder, capsys, monkeypatch):
    monkeypatch.setattr("eval.suite.Suite.run", lambda *_: pytest.fail("scored"))
    assert run(folder, "--imported", f"c={folder}/a.json") == 2
    assert "--imported c=" in capsys.readouterr().err
    recipe = ["--set", "tasks.gqa={task: knn, data: tabletop, k: 2}"]
    assert run(folder, *recipe, "--imported", f"a={folder}/a.json") == 2
    assert "gqa: a task of the recipe, and a benchmark of an imported file" in capsys.readouterr().err


def test_a_published_row_is_the_baseline_of_metrics_of_its_name(folder, capsys):
    assert run(folder, "--baseline", "published:c_radio_v4/C-RADIOv4-H", "--common") == 0
    page = (folder / "out" / "report.md").read_text()
    assert "published:c_radio_v4/C-RADIOv4-H" in page.splitlines()[0]
    assert "2601.17237" in page and "| **86.6** |" in page.replace("  ", " ")  # its source; its k-NN
    assert "C-RADIOv4" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["published:nobody", "published:c_radio_v4", "nobody"])
def test_a_baseline_that_is_nowhere_is_told_before_anything_is_scored(folder, capsys, monkeypatch, name):
    monkeypatch.setattr("eval.suite.Suite.run", lambda *_: pytest.fail("scored"))
    assert run(folder, "--baseline", name) == 2
    assert name.removeprefix("published:") in capsys.readouterr().err
