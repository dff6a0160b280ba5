"""SPair-71k layout: pairs are read as their files have them, and what is wrong is said with its path."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eval.config import load_recipe
from eval.datasets import spair
from teachers.errors import UserError

PAIRS = {
    "000001-2008_000033-2009_001764:aeroplane": ([[3, 4], [10, 6]], [[1, 2], [20, 11]], [0, 1, 30, 12]),
    "000002-2009_001764-2008_000033:aeroplane": ([[1, 2]], [[3, 4]], [2, 2, 12, 22]),
    "000003-2010_1-2010_2:cat": ([[5, 5], [6, 6], [7, 7]], [[1, 1], [2, 2], [3, 3]], [0, 0, 8, 8]),
}


@pytest.fixture
def root(tmp_path) -> Path:
    home = tmp_path / "SPair-71k"
    for folder in ("Layout/large", "PairAnnotation/test", "JPEGImages/aeroplane", "JPEGImages/cat"):
        (home / folder).mkdir(parents=True)
    (home / "Layout/large/test.txt").write_text("\n".join(PAIRS) + "\n")
    for name, (source, target, box) in PAIRS.items():
        note = {"src_kps": source, "trg_kps": target, "trg_bndbox": box, "category": name.split(":")[1]}
        (home / f"PairAnnotation/test/{name}.json").write_text(json.dumps(note))
    for number, name in enumerate(("aeroplane/2008_000033", "aeroplane/2009_001764", "cat/2010_1", "cat/2010_2")):
        Image.fromarray(np.full((24, 32, 3), 40 * number, np.uint8)).save(home / f"JPEGImages/{name}.jpg")
    return tmp_path


def open_split(root: Path, part: str = "val", **changes):
    return spair.open_split("spair", spair.Config(kind="spair", path="SPair-71k", **changes), root, part)


def test_pictures_stand_once_and_pairs_name_them(root):
    split = open_split(root)
    assert split.count == 4 and [int(split.image(i).float().mean().round()) for i in range(4)] == [0, 40, 80, 120]
    assert [(pair.first, pair.second) for pair in split.keypoint_pairs] == [(0, 1), (1, 0), (2, 3)]
    assert [pair.category for pair in split.keypoint_pairs] == ["aeroplane", "aeroplane", "cat"]
    assert [pair.scale for pair in split.keypoint_pairs] == [30, 20, 8]
    pair = split.keypoint_pairs[0]
    # Whole numbers name pixels, whose centres are half a pixel further.
    assert pair.source.tolist() == [[3.5, 4.5], [10.5, 6.5]] and pair.targets.tolist() == [[[1.5, 2.5]], [[20.5, 11.5]]]
    assert pair.source.dtype == pair.targets.dtype == torch.float32


def test_pair_files_are_read_when_pairs_are_asked_for(root):
    for file in (root / "SPair-71k/PairAnnotation/test").iterdir():
        file.unlink()
    split = open_split(root)
    assert split.image(0).shape == (3, 24, 32)
    with pytest.raises(UserError, match="000001-.*aeroplane.json cannot be read"):
        len(split.keypoint_pairs)


def test_identity_changes_with_the_list(root):
    before = open_split(root).identity
    assert before == open_split(root).identity
    (root / "SPair-71k/Layout/large/test.txt").write_text("\n".join(list(PAIRS)[:2]))
    assert open_split(root).identity != before and open_split(root).count == 2


def test_a_pair_changed_in_place_is_another_truth(root):
    before, file = open_split(root), next((root / "SPair-71k/PairAnnotation/test").iterdir())
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    assert open_split(root).truth_identity != before.truth_identity and open_split(root).identity == before.identity


def test_a_recipe_can_name_it(tmp_path):
    text = "data: {spair: {kind: spair, path: SPair-71k}}\ntasks: {pck: {task: keypoints, data: spair, size: 800}}\n"
    (tmp_path / "recipe.yaml").write_text(text)
    recipe, _ = load_recipe(tmp_path / "recipe.yaml")
    assert recipe.task_settings["pck"].per_class == 200 and recipe.task_settings["pck"].alpha == 0.1


def test_mistakes_are_said_with_their_path(root):
    home = root / "SPair-71k"
    with pytest.raises(UserError) as absent:
        spair.open_split("spair", spair.Config(kind="spair", path="none"), root, "val")
    assert all(word in str(absent.value) for word in (str(root / "none"), "JPEGImages", "http", "--data-root"))
    with pytest.raises(UserError, match="Layout/large/trn.txt cannot be read"):
        open_split(root, "train")
    with pytest.raises(UserError, match="Layout/small/test.txt cannot be read"):
        open_split(root, layout="small")
    file = home / "PairAnnotation/test/000003-2010_1-2010_2:cat.json"
    good = json.loads(file.read_text())
    for note, complaint in [
        ("{", "is not a pair file: JSONDecodeError"),
        (json.dumps({"src_kps": [[1, 2]]}), "is not a pair file: KeyError 'trg_kps'"),
        (json.dumps(good | {"src_kps": [[1, 2], [3]]}), "is not a pair file: ValueError"),
        (json.dumps(good | {"trg_kps": [[1, 2]]}), "holds 3 and 1 keypoints"),
        (json.dumps(good | {"trg_bndbox": [4, 4, 4, 4]}), "the box .4.0, 4.0, 4.0, 4.0."),
    ]:
        file.write_text(note)
        with pytest.raises(UserError, match=f"2010_2:cat.json {complaint}|2010_2:cat.json .*{complaint}"):
            list(open_split(root).keypoint_pairs)
    (home / "JPEGImages/cat/2010_2.jpg").unlink()
    with pytest.raises(UserError, match="1 pictures of pairs are not there, such as .*cat/2010_2.jpg"):
        open_split(root)
    for text, complaint in [("", "names no pair"), ("000001-cat", "holds the line '000001-cat'")]:
        (home / "Layout/large/test.txt").write_text(text)
        with pytest.raises(UserError, match=complaint):
            open_split(root)
