"""A data root with the marker of a rehearsal: everything runs, shortened, and everything says so."""

from __future__ import annotations

import json

import pytest

from eval.__main__ import main as evaluate
from eval.rehearsal import MARKER, WORDS, Rehearsal, read
from eval.scores import load_folder
from eval.suite import Suite
from teachers.errors import UserError

RECIPE = """
data:
  tabletop: {{kind: tabletop, size: 32, train: 12, val: 8, expect: {{val: {{count: 5000}}}}}}
tasks:
  knn: {{task: knn, data: tabletop, k: 3}}
  seg: {{task: segmentation, data: tabletop, seeds: [0], steps: 40000, batch: 16, labels: 4}}
  short: {{task: segmentation, data: tabletop, seeds: [0], steps: 2, batch: 1, labels: 4}}
  sam: {{task: sam, data: tabletop}}
cache: {cache}
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "trial.yaml"
    path.write_text(RECIPE.format(cache=tmp_path / "cache"))
    return path


def mark(root, **changes) -> Rehearsal:
    told = Rehearsal(
        what="a test", command="none", version=1, seed=0, scenes=4, steps=3, batch=2, hidden=8, lr=0.02,
        sam="sam_random",
    ).model_copy(update=changes)  # fmt: skip
    root.mkdir(exist_ok=True)
    (root / MARKER).write_text(told.model_dump_json())
    return told


def test_a_rehearsal_is_short_and_says_so_everywhere(recipe, tmp_path, capsys):
    root, out = tmp_path / "data", tmp_path / "out"
    mark(root)
    assert evaluate([str(recipe), "teacher:tabletop_clip", "--data-root", str(root), "--out", str(out)]) == 0
    console = capsys.readouterr().out
    assert console.splitlines()[0].startswith(WORDS) and WORDS in console.splitlines()[-2]
    assert "at most 3 steps of 2 pictures and are at most 8 wide" in console.splitlines()[0]
    assert "tabletop/val" in console and "holds 8 pictures; the recipe expects 5000" in console  # told, and scored
    scores = {score.task: score for score in load_folder(out / "scores")}
    steps = {task: score.settings.get("steps") for task, score in scores.items()}
    assert steps == {"knn": None, "seg": 3, "short": 2, "sam": None}
    assert (scores["seg"].settings["batch"], scores["short"].settings["batch"]) == (2, 1)
    assert scores["seg"].settings["lr"] == 0.02
    assert scores["sam"].settings["weights"] == str(root / "sam_random")
    assert all(score.settings["rehearsal"] == {"seed": 0, "scenes": 4, "version": 1} for score in scores.values())
    assert (out / "report.md").read_text().splitlines()[0].startswith("**REHEARSAL on rendered stand-ins")
    page = (out / "report.html").read_text()
    assert page.index('<p class="rehearsal">REHEARSAL') < page.index("Baseline:")
    rows = (out / "scores.csv").read_text().splitlines()
    assert len(rows) > 3 and all("rehearsal on rendered stand-ins" in row for row in rows[1:])


def test_its_scores_never_stand_for_real_ones(recipe, tmp_path, capsys):
    """The same recipe and pictures, to be scored once in a rehearsal and once in earnest."""
    out, real, marked = tmp_path / "out", tmp_path / "real", tmp_path / "marked"
    real.mkdir(), mark(marked)
    earnest = ["--set", "data.tabletop.expect.val.count=8", "--set", "tasks.seg.steps=3", "--set", "tasks.seg.batch=2"]
    for root, to_do in ((marked, "4 to do"), (real, "4 to do"), (marked, "4 there, 0 to do")):
        evaluate([str(recipe), "teacher:tabletop_clip", "--data-root", str(root), "--out", str(out), *earnest])
        told = capsys.readouterr().out
        assert to_do in told or "0 there, 4 to do" in told, (root, told)
        assert ("REHEARSAL" in told) == (root == marked)
    assert "REHEARSAL" in (out / "report.md").read_text()


def test_without_the_marker_counts_are_enforced(recipe, tmp_path, capsys):
    data, out = tmp_path / "data", tmp_path / "o"
    data.mkdir()
    arguments = [str(recipe), "teacher:tabletop_clip", "--data-root", str(data), "--out", str(out)]
    assert evaluate([*arguments, "--set", "tasks={knn: {task: knn, data: tabletop, k: 3}}"]) == 1
    told = capsys.readouterr().out
    assert "FAILED" in told and "REHEARSAL" not in told and "rehearsal" not in (tmp_path / "o/report.md").read_text()


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"steps": 0}), "\ud800".encode("utf-8", "surrogatepass")])
def test_a_damaged_marker_is_said(tmp_path, text):
    (tmp_path / MARKER).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match="rehearsal.json cannot be read(.|\n)*expected: the marker"):
        read(tmp_path)


def test_a_suite_elsewhere_is_none(tmp_path):
    from eval.config import load_recipe

    recipe, _ = load_recipe("recipes/eval/quick.yaml")
    assert Suite(recipe, tmp_path, tmp_path).rehearsal is None
