"""Cityscapes: cities, label ids and train ids that say the same, and what can be wrong with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.datasets import cityscapes
from eval.datasets.split import IGNORE, Split
from teachers.errors import UserError

# id → train id of the benchmark, 255 where a class is left out of it.
TRAIN_IDS = [255] * 7 + [0, 1, 255, 255, 2, 3, 4, 255, 255, 255, 5, 255, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]
TRAIN_IDS += [255, 255, 16, 17, 18]


def write(root: Path, city: str, scene: str, ids: np.ndarray, part: str = "val", kind: str = "labelIds") -> None:
    picture = root / f"leftImg8bit/{part}/{city}/{city}_{scene}_leftImg8bit.png"
    mask = root / f"gtFine/{part}/{city}/{city}_{scene}_gtFine_{kind}.png"
    for file, pixels in ((picture, np.zeros((*ids.shape, 3))), (mask, ids)):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(file)


def open_split(root: Path, part: str = "val", **config) -> Split:
    return cityscapes.open_split("it", cityscapes.Config(kind="cityscapes", path="city", **config), root, part)


def test_ids_become_the_benchmarks_nineteen_classes(tmp_path):
    ids = np.array([[*range(34)], [255] * 34])  # 255: the number plate, −1 in eight bits
    write(tmp_path / "city", "ulm", "000000_000019", ids)
    write(tmp_path / "city", "ulm", "000000_000019", np.array([TRAIN_IDS, [255] * 34]), kind="labelTrainIds")
    split = open_split(tmp_path)
    assert split.mask(0)[0].tolist() == TRAIN_IDS and (split.mask(0)[1] == IGNORE).all()
    assert (open_split(tmp_path, labels="labelTrainIds").mask(0) == split.mask(0)).all()
    names = split.mask_names
    assert len(names) == 19 and (names[0], names[10], names[18]) == ("road", "sky", "bicycle")


def test_scenes_of_all_cities_in_order(tmp_path):
    for city, scene in (("ulm", "000001_000019"), ("bonn", "000000_000019"), ("ulm", "000000_000019")):
        write(tmp_path / "city", city, scene, np.full((2, 4), 7 + len(city) + int(scene[5])), "train")
    split = open_split(tmp_path, "train")
    assert [int(split.mask(i)[0, 0]) for i in range(split.count)] == [2, IGNORE, 2] and split.count == 3
    assert open_split(tmp_path, "train", train_limit=2).count == 2
    assert split.image(0).shape == (3, 2, 4)


def test_what_is_missing_or_wrong_is_said(tmp_path):
    with pytest.raises(UserError, match="no data set at .*\n.*leftImg8bit.*\n.*cityscapes-dataset.com"):
        open_split(tmp_path)
    (tmp_path / "city").mkdir()
    with pytest.raises(UserError, match="leftImg8bit/val holds no <city>"):
        open_split(tmp_path)
    write(tmp_path / "city", "ulm", "000000_000019", np.full((2, 4), 34))
    with pytest.raises(UserError, match="holds the label 34\n.*label ids 0 … 33"):
        open_split(tmp_path).mask(0)
    with pytest.raises(UserError, match="1 pictures have no mask; the first: .*gtFine_labelTrainIds.png"):
        open_split(tmp_path, labels="labelTrainIds")
    write(tmp_path / "city", "ulm", "000000_000019", np.full((2, 4), 33), kind="labelTrainIds")
    with pytest.raises(UserError, match="holds the label 33\n.*for files of label ids: labels: labelIds"):
        open_split(tmp_path, labels="labelTrainIds").mask(0)
    (tmp_path / "city/gtFine/val/ulm/ulm_000000_000019_gtFine_labelIds.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="labelIds.png cannot be decoded"):
        open_split(tmp_path).mask(0)
