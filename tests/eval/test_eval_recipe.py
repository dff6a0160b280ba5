"""Evaluation recipes: every mistake at once, with its key path; the shipped ones are valid."""

from __future__ import annotations

import pytest

from eval.config import load_recipe
from teachers.errors import UserError

GOOD = """
data: {world: {kind: tabletop, val: 5}}
tasks: {knn: {task: knn, data: world, size: [64, 32]}, seg: {task: segmentation, data: world}}
"""


def write(tmp_path, text):
    path = tmp_path / "trial.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def mistakes(tmp_path, text) -> str:
    with pytest.raises(UserError) as error:
        load_recipe(write(tmp_path, text))
    return str(error.value)


@pytest.mark.parametrize(
    "name", ["recipes/eval/quick.yaml", "recipes/eval/tabletop.yaml", "recipes/eval/real_small.yaml", "eval/quick"]
)
def test_shipped_recipes_are_valid(name):
    recipe, path = load_recipe(name)
    assert recipe.about and set(recipe.task_settings) >= {"knn", "segmentation"}
    header = path.read_text(encoding="utf-8").split("\nabout:")[0]
    assert "python -m eval" in header and "Hardware:" in header and "Time:" in header


def test_defaults_stand_in_the_schema(tmp_path):
    recipe, _ = load_recipe(write(tmp_path, GOOD), ["tasks.knn.k=5"])
    assert recipe.task_settings["knn"].k == 5 and recipe.task_settings["knn"].size == (64, 32)
    assert recipe.task_settings["seg"].seeds == [0, 1, 2] and recipe.task_settings["seg"].size == "native"
    assert recipe.datasets["world"].size == (128, 128) and recipe.datasets["world"].val == 5


def test_all_mistakes_are_reported_at_once_with_key_paths(tmp_path):
    text = mistakes(
        tmp_path,
        """
abuot: x
data: {world: {kind: tabletop, sede: 3}, streets: {kind: maskss, path: x}}
tasks:
  knn: {task: knn, data: wrold, k: lots}
  seg: {task: segmentation, data: world, stpes: 3}
  zs: {data: world}
""",
    )
    assert text.splitlines()[0].endswith("trial.yaml: 8 mistakes") or "mistakes" in text.splitlines()[0]
    for part in (
        "abuot", "did you mean 'about'", "data.world.sede", "did you mean 'seed'", "data.streets", "'maskss'",
        "did you mean 'masks'", "tasks.knn.data", "did you mean 'world'", "tasks.knn.k", "a whole number, got 'lots'",
        "tasks.seg.stpes", "did you mean 'steps'", "tasks.zs", "is missing its task", "Nothing was started",
    ):  # fmt: skip
        assert part in text, part


@pytest.mark.parametrize("text, complaint", [
    ("tasks: {}\ndata: {a: {kind: tabletop}}", "tasks   expected entries by name, each with its task: knn"),
    ("tasks: 3\ndata: [1]", "data    expected entries by name, each with its kind"),
    (GOOD + "pictures: {data: wrold}", "pictures   no data set is named 'wrold'; did you mean 'world'"),
    (GOOD.replace("seg:", "copy:"), "cannot be used as names: copy"),
    (GOOD.replace("seg:", '"a b":'), "cannot be used as names: a b"),
    (GOOD.replace("knn, data", "nkn, data"), "unknown task 'nkn'; did you mean 'knn'"),
    ("data: {world: {kind: tabletop}}\ntasks: {z: {task: zero_shot, data: world, templates: [a photo]}}",
     "each template needs one {} for the class name"),
])  # fmt: skip
def test_each_mistake_says_what_to_type(tmp_path, text, complaint):
    assert complaint in mistakes(tmp_path, text)
