"""Things in COCO's layout: real photos agree with pycocotools, and what is wrong with a file is said with its path."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO
from test_datasets import REAL, grey, open_split, real, save

from teachers.errors import UserError

CONFIG = {"kind": "coco_instances", "path": "set"}
SQUARE = [[2, 1, 6, 1, 6, 5, 2, 5]]
NOTE = {
    "id": 7,
    "image_id": 1,
    "category_id": 3,
    "bbox": [2, 1, 4, 4],
    "area": 16,
    "iscrowd": 0,
    "segmentation": SQUARE,
}


def write(root: Path, *notes: dict, **changes) -> dict:
    """A set of two 8×10 pictures (ids 1 and 0) with those annotations; returns what `open_split` needs."""
    document = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 8, "width": 10} for i in (1, 0)],
        "categories": [{"id": 9, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": list(notes),
    }
    for i in (0, 1):
        save(root / f"set/val2017/{i}.png", np.full((8, 10, 3), i))
    file = root / "set/annotations/instances_val2017.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document | changes))
    return CONFIG


def test_real_photos_agree_with_pycocotools(capsys):
    split = open_split(real("coco_tiny"), kind="coco_instances", path="coco_tiny")
    coco = COCO(REAL / "coco_tiny/annotations/instances_val2017.json")
    capsys.readouterr()
    assert split.count == 50 and len(split.thing_names) == 80 and split.thing_names[0] == "person"
    categories, crowds = sorted(coco.cats), 0
    for index, key in enumerate(sorted(coco.imgs)[:25]):
        things, notes = split.instances(index), coco.loadAnns(sorted(coco.getAnnIds(key)))
        assert things.size == tuple(split.image(index).shape[1:]) == (coco.imgs[key]["height"], coco.imgs[key]["width"])
        assert [categories[i] for i in things.classes] == [note["category_id"] for note in notes]
        widths = np.array([note["bbox"] for note in notes]).reshape(-1, 4)
        corners = np.concatenate([widths[:, :2], widths[:, :2] + widths[:, 2:]], axis=1)
        np.testing.assert_allclose(things.boxes, corners, rtol=1e-6)
        np.testing.assert_allclose(things.areas, [note["area"] for note in notes], rtol=1e-6)
        assert things.crowd.tolist() == [note["iscrowd"] == 1 for note in notes]
        crowds += int(things.crowd.sum())
        for mask, note in zip(things.masks(), notes):
            np.testing.assert_array_equal(mask, coco.annToMask(note) == 1)
    assert crowds  # run lengths were among them


def test_pictures_and_categories_stand_in_the_order_of_their_ids(tmp_path):
    split = open_split(tmp_path, **write(tmp_path, NOTE))
    assert split.count == 2 and split.thing_names == ("cat", "dog")
    assert int(split.image(0).max()) == 0 and int(split.image(1).max()) == 1
    empty, things = split.instances(0), split.instances(1)  # a picture without annotations stays
    assert empty.boxes.shape == (0, 4) and empty.masks().shape == (0, 8, 10) and len(empty.classes) == 0
    assert things.boxes.tolist() == [[2, 1, 6, 5]] and things.classes.tolist() == [0]
    wanted = torch.zeros(8, 10, dtype=torch.bool)
    wanted[1:5, 2:6] = True
    assert torch.equal(things.masks()[0], wanted)


def test_every_form_of_a_mask_is_read(tmp_path):
    mask = np.zeros((8, 10), dtype=np.uint8, order="F")
    mask[1:5, 2:6] = 1
    text = run_lengths.encode(mask)["counts"].decode()
    flat = mask.flatten(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    numbers = np.diff([0, *edges, len(flat)]).tolist()  # as a crowd has them
    forms = [SQUARE, {"size": [8, 10], "counts": text}, {"size": [8, 10], "counts": numbers}]
    notes = [NOTE | {"id": i, "segmentation": form} for i, form in enumerate(forms)]
    masks = open_split(tmp_path, **write(tmp_path, *notes)).instances(1).masks()
    assert masks.shape == (3, 8, 10) and all(np.array_equal(found, mask) for found in masks)


def test_boxes_without_area_are_left_out_and_counted(tmp_path):
    flat = NOTE | {"id": 8, "bbox": [2, 1, 4, 0]}
    split = open_split(tmp_path, **write(tmp_path, NOTE, flat))
    assert len(split.instances(1).boxes) == 1 and "1 boxes without area left out" in split.source
    assert "left out" not in open_split(tmp_path, **write(tmp_path, NOTE)).source


def test_a_limit_keeps_the_truth_with_its_picture(tmp_path):
    write(tmp_path, NOTE)
    split = open_split(tmp_path, **CONFIG, val_limit=1)
    assert split.count == 1
    assert len(split.instances(0).boxes) == int(split.image(0).max())  # picture 1 has one thing, picture 0 none


@pytest.mark.parametrize(
    ("note", "changes", "complaint"),
    [
        ({"image_id": 5}, {}, "annotation 7 belongs to picture 5, which the file does not list"),
        ({"category_id": 5}, {}, "annotation 7 belongs to category 5, which the file does not list"),
        ({"bbox": [1, 2, 3]}, {}, r"annotation 7 has the box \[1, 2, 3\]"),
        ({"bbox": [1, 2, float("nan"), 3]}, {}, "finite numbers"),
        ({}, {"images": []}, "belongs to picture 1"),
        ({}, {"annotations": [], "images": []}, "holds no pictures"),
        ({}, {"annotations": [], "categories": []}, "holds no categories"),
        ({}, {"annotations": [{"id": 1}]}, "not a COCO instance file: KeyError 'image_id'"),
        ({}, {"categories": [3]}, "not a COCO instance file: TypeError"),
    ],
)
def test_mistakes_in_the_file(tmp_path, note, changes, complaint):
    with pytest.raises(UserError, match=rf"instances_val2017.json[\s\S]*{complaint}"):
        open_split(tmp_path, **write(tmp_path, NOTE | note, **changes))


@pytest.mark.parametrize("form", [None, [], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5, 6, 7]], {"size": [4, 4], "counts": [16]}])
def test_a_thing_without_a_mask_has_a_box_all_the_same(tmp_path, form):
    things = open_split(tmp_path, **write(tmp_path, NOTE | {"segmentation": form})).instances(1)
    assert len(things.boxes) == 1
    with pytest.raises(UserError, match="annotation 7 has no mask of its picture's 8×10 pixels"):
        things.masks()


def test_missing_files_and_other_sizes(tmp_path):
    with pytest.raises(UserError, match=r"no data set at .*set\n.*instances_val2017.json"):
        open_split(tmp_path, **CONFIG)
    (tmp_path / "set").mkdir()
    with pytest.raises(UserError, match="instances_val2017.json cannot be read"):
        open_split(tmp_path, **CONFIG)
    write(tmp_path, NOTE)
    save(tmp_path / "set/val2017/1.png", grey())
    with pytest.raises(UserError, match=r"1.png is 8×8\n.*8×10, as its annotations have it"):
        open_split(tmp_path, **CONFIG).image(1)
    (tmp_path / "set/val2017/1.png").unlink()
    with pytest.raises(UserError, match="1 pictures with instances are not there.*val2017/1.png"):
        open_split(tmp_path, **CONFIG)
    (tmp_path / "set/annotations/instances_val2017.json").write_text("{")
    with pytest.raises(UserError, match="not a COCO instance file: JSONDecodeError"):
        open_split(tmp_path, **CONFIG)
