"""Karpathy's splits: both files as they are published, their pictures, and what can be wrong with them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from eval.datasets import karpathy
from eval.datasets.split import Split
from teachers.errors import UserError


def entry(filename: str, split: str, *captions: str, **more) -> dict:
    sentences = [{"tokens": text.lower().split(), "raw": text, "sentid": 0, "imgid": 0} for text in captions]
    return {"filename": filename, "split": split, "sentences": sentences, "imgid": 0, "sentids": [0], **more}


def write(root: Path, name: str, folder: str, *entries: dict) -> None:
    for image in entries:
        file = root / folder / image.get("filepath", "") / image["filename"]
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), "green").save(file)
    (root / name).write_text(json.dumps({"dataset": "it", "images": entries}))


def open_split(root: Path, part: str = "val", **config) -> Split:
    config = {"kind": "karpathy_captions", "path": "set", **config}
    return karpathy.open_split("it", karpathy.Config(**config), root, part)


def test_coco_names_folders_and_has_a_rest(tmp_path):
    write(
        tmp_path / "set", "dataset_coco.json", "",
        entry("COCO_val2014_000000391895.jpg", "test", "A man.", "A man on\na bike. ", filepath="val2014"),
        entry("COCO_val2014_000000522418.jpg", "restval", "A cake.", filepath="val2014"),
        entry("COCO_train2014_000000057870.jpg", "train", "A table.", filepath="train2014"),
        entry("COCO_val2014_000000184613.jpg", "val", "A cow.", filepath="val2014"),
    )  # fmt: skip
    test = open_split(tmp_path)
    assert test.count == 1 and test.captions(0) == ["A man.", "A man on a bike."]
    assert test.image(0).shape == (3, 4, 6)
    assert open_split(tmp_path, captions=1).captions(0) == ["A man."]
    assert open_split(tmp_path, val=["val"]).captions(0) == ["A cow."]
    assert [open_split(tmp_path, "train").captions(0)] == [["A table."]]
    more = open_split(tmp_path, "train", train=["train", "restval"])
    assert [more.captions(i) for i in range(more.count)] == [["A cake."], ["A table."]]  # in the file's order
    assert open_split(tmp_path, "train", train=["train", "restval"], train_limit=1).count == 1


def test_flickr_keeps_its_pictures_in_one_folder(tmp_path):
    rows = [
        entry(f"{n}.jpg", "test" if n % 2 else "train", *(f"Caption {c} of {n}." for c in range(5))) for n in range(4)
    ]
    write(tmp_path / "set", "dataset_flickr30k.json", "flickr30k-images", *rows)
    config = {"annotations": "dataset_flickr30k.json", "images": "flickr30k-images"}
    split = open_split(tmp_path, **config)
    assert split.count == 2 and split.captions(1)[4] == "Caption 4 of 3." and len(split.captions(0)) == 5
    assert split.identity != open_split(tmp_path, "train", **config).identity


def test_blank_captions_say_nothing_and_a_picture_without_any_is_refused(tmp_path):
    write(tmp_path / "set", "dataset_coco.json", "", entry("1.jpg", "test", " ", "A cat."), entry("2.jpg", "val", "A."))
    assert open_split(tmp_path).captions(0) == ["A cat."]
    write(tmp_path / "set", "dataset_coco.json", "", entry("1.jpg", "test", " ", "\n"), entry("2.jpg", "test"))
    with pytest.raises(UserError, match="2 pictures have no caption, such as 1.jpg"):
        open_split(tmp_path)


def test_what_is_missing_or_wrong_is_said(tmp_path):
    with pytest.raises(UserError, match="no data set at .*\n.*flickr30k-images.*\n.*karpathy/deepimagesent"):
        open_split(tmp_path)
    (tmp_path / "set").mkdir()
    with pytest.raises(UserError, match="dataset_coco.json cannot be read"):
        open_split(tmp_path)
    for text, complaint in [
        ("{", "is not a file of Karpathy's splits: JSONDecodeError"),
        ("[]", "TypeError"),
        ('{"images": [{"filename": "1.jpg", "split": "test"}]}', "KeyError 'sentences'"),
        ('{"images": [{"filename": "1.jpg", "split": "val", "sentences": []}]}', "no pictures of test\n.*one of val"),
    ]:
        (tmp_path / "set/dataset_coco.json").write_text(text)
        with pytest.raises(UserError, match=complaint):
            open_split(tmp_path)
    (tmp_path / "set/dataset_coco.json").write_text(json.dumps({"images": [entry("1.jpg", "test", "A cat.")]}))
    with pytest.raises(UserError, match="1 pictures with captions are not there, such as .*set/1.jpg"):
        open_split(tmp_path)


def test_captions_changed_in_place_are_another_truth(tmp_path):
    write(tmp_path / "set", "dataset_coco.json", "", entry("1.jpg", "test", "A cat."), entry("2.jpg", "val", "A."))
    before, file = open_split(tmp_path), tmp_path / "set/dataset_coco.json"
    status = file.stat()
    file.write_text(file.read_text().replace("cat", "dog"))
    os.utime(file, ns=(0, status.st_mtime_ns))
    assert open_split(tmp_path).identity == before.identity
    assert open_split(tmp_path).truth_identity != before.truth_identity
