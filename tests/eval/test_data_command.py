"""`python -m eval data`: what is there, what is not, and what a recipe knows of a whole data set is checked."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from eval.__main__ import main
from eval.config import load_recipe
from eval.datasets import DATASETS
from eval.suite import Suite
from teachers.errors import UserError

RECIPE = """
data:
  tabletop: {kind: tabletop, size: 32, train: 6, val: 4}
  folder: {kind: image_folder, path: things, EXPECT}
tasks:
  knn: {task: knn, data: folder, k: 1}
  depth: {task: segmentation, data: tabletop}
"""


@pytest.fixture
def folder(tmp_path):
    for part in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / "things" / part / name).mkdir(parents=True)
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "things" / part / name / "0.png")
    return tmp_path


def write(folder, expect: str = "val: {}"):
    (folder / "r.yaml").write_text(RECIPE.replace("EXPECT", f"expect: {{{expect}}}"))
    return str(folder / "r.yaml")


def test_every_data_set_is_told_with_its_parts(folder, capsys):
    assert main(["data", write(folder), "--data-root", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "folder (image_folder), asked by knn" in said and "val: 2 pictures, labels;" in said
    assert "train: 6 pictures, labels, captions" in said and said.endswith("all there\n")


def test_an_absent_one_says_where_to_get_it_and_where_to_put_it(folder, capsys):
    assert main(["data", write(folder), "--data-root", str(folder / "elsewhere")]) == 1
    said = capsys.readouterr().out
    assert f"no data set at {folder / 'elsewhere' / 'things'}" in said and "image-net.org" in said
    assert said.endswith("absent: folder\n")


def split(folder, expect: str, part: str = "val"):
    recipe, _ = load_recipe(write(folder, expect))
    return Suite(recipe, folder, folder).split("folder", part)


def test_a_set_that_is_not_whole_is_refused(folder):
    assert split(folder, "val: {count: 2}").count == 2
    with pytest.raises(UserError, match=r"holds 2 pictures\n.*3, as the recipe's data.folder.expect.val.count says"):
        split(folder, "val: {count: 3}")
    split(folder, "val: {count: 3}", "train")  # of the other part nothing is said
    right = split(folder, "val: {}").identity
    assert split(folder, f"val: {{identity: {right}}}").identity == right
    with pytest.raises(UserError, match="another set of files: its checksum is " + right):
        split(folder, "val: {identity: 0123456789abcdef}")


def test_a_limit_is_held_against_the_smaller_number(folder):
    recipe, _ = load_recipe(write(folder, "val: {count: 50000}"), ["data.folder.val_limit=2"])
    assert Suite(recipe, folder, folder).split("folder", "val").count == 2


def test_a_misspelt_expectation_is_a_mistake(folder):
    with pytest.raises(UserError, match=r"data.folder.expect.val.cuont +unknown key; did you mean 'count'"):
        load_recipe(write(folder, "val: {cuont: 3}"))


def test_what_no_reader_foresaw_is_told_as_every_other_mistake(folder, capsys, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("of nothing")

    monkeypatch.setattr(DATASETS["image_folder"], "open_split", broken)
    assert main(["data", write(folder), "--data-root", str(folder)]) == 1
    with pytest.raises(UserError, match=r"ZeroDivisionError: of nothing \(test_data_command.py, line \d+\)"):
        split(folder, "val: {}")
    said = capsys.readouterr().out
    assert "folder/train (image_folder) cannot be read: ZeroDivisionError" in said and said.endswith("absent: folder\n")
