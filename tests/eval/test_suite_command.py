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


@pytest.mark.parametrize(
    ("name", "complaint", "changes"),
    [
        ("published:nobody", "nobody", []),
        ("published:c_radio_v4", "is not one row", []),
        ("nobody", "--baseline nobody: no such model", []),
        ("published:nyud_vit_b/SAK", "SAK shares no group with the table, which has Classification", []),
        ("published:featsharp_table_2/Tile", "holds Δ% against Baseline", []),
        ("published:c_radio_v4/C-RADIOv4-H", "of which nothing counts", ["--set", "tasks.knn.counts=false"]),
    ],
)
def test_a_baseline_that_cannot_be_is_told_before_anything_is_scored(
    folder, capsys, monkeypatch, name, complaint, changes
):
    monkeypatch.setattr("eval.suite.Suite.run", lambda *_: pytest.fail("scored"))
    assert run(folder, "--baseline", name, *changes) == 2
    assert complaint in capsys.readouterr().err


def test_a_row_may_match_what_is_imported(folder):
    pairs = ["--imported", f"a={folder}/a.json", "--imported-group", "NYUDv2"]
    assert run(folder, "--baseline", "published:nyud_vit_b/SAK", *pairs) == 2  # by its group, but not by its metric
    assert (folder / "out" / "report.md").read_text().startswith("Baseline: **a**")


def test_a_published_row_that_does_not_match_costs_no_report(folder, capsys):
    (folder / "out" / "report.md").unlink(missing_ok=True)
    name = "published:nyud_vit_b/SAK"
    assert run(folder, "--baseline", name, "--set", "tasks.knn.group=NYUDv2") == 2
    said = capsys.readouterr()
    assert "Traceback" not in said.err and f"NOT against the baseline that was asked for: {name}" in said.out
    assert "shares no metric with the table, which has NYUDv2 / " in said.out and "a: baseline" in said.out
    for page in ("report.md", "report.html"):
        text = (folder / "out" / page).read_text()
        assert "Not the baseline that was asked for." in text and f"because {name} shares no metric" in text
    assert (folder / "out" / "report.md").read_text().startswith("Baseline: **a**")
    assert name not in (folder / "out" / "delta.csv").read_text()


@pytest.mark.parametrize("name", ["banana", "cuda:99", "meta"])
def test_a_device_that_is_not_there_is_a_users_mistake(folder, capsys, monkeypatch, name):
    monkeypatch.setattr("eval.suite_command.open_models", lambda *_: pytest.fail("opened"))
    assert run(folder, "--device", name) == 2
    assert f"--device {name}: " in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_scored(folder, capsys, monkeypatch):
    monkeypatch.setattr("eval.suite.Suite.run", lambda *_: pytest.fail("scored"))
    (folder / "file").write_text("")
    for out in (folder / "file", folder / "file" / "below"):
        assert run(folder, "--out", str(out)) == 2
        assert f"{out}/scores cannot be written: " in capsys.readouterr().err


def test_control_c_is_one_line_and_130(folder, capsys, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("eval.suite.Suite.run", stopped)
    assert run(folder) == 130
    assert capsys.readouterr().err.strip() == "Stopped: the same command goes on from here."
