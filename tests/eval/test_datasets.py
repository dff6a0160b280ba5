"""Data sets: real layouts are read as they are, and what is wrong with one is said with its path."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eval.datasets import DATASETS
from eval.datasets.split import IGNORE, choose, weights_identity
from teachers.errors import UserError

REAL = Path(__file__).parents[2] / ".." / "shared" / "data"


def open_split(root: Path, part: str = "val", **config):
    module = DATASETS[config["kind"]]
    return module.open_split("it", module.Config(**config), root, part)


def real(name: str) -> Path:
    if not (REAL / name).is_dir():
        pytest.skip(f"no small real data at ../shared/data/{name}")
    return REAL


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def grey(value: int = 0, side: int = 8) -> np.ndarray:
    return np.full((side, side, 3), value)


# --- what is there ---------------------------------------------------------------------------------------------------


def test_image_folder_of_real_photos():
    split = open_split(real("tiny_imagenet_21"), kind="image_folder", path="tiny_imagenet_21", names="classes.txt")
    assert split.count == 21 * 15 and split.class_names[:2] == ("goldfish", "centipede")
    assert torch.equal(split.labels().bincount(), torch.full((21,), 15))
    assert split.image(0).shape == (3, 64, 64) and split.image(0).dtype == torch.uint8


def test_coco_captions_of_real_photos():
    split = open_split(real("coco_tiny"), kind="coco_captions", path="coco_tiny")
    assert split.count == 50 and all(len(split.captions(i)) == 5 for i in range(50))
    assert open_split(REAL, kind="coco_captions", path="coco_tiny", captions=2).captions(0) == split.captions(0)[:2]
    assert split.image(3).shape[0] == 3


def test_masks_of_real_photos():
    split = open_split(real("camvid_small"), kind="masks", path="camvid_small", classes=11, ignore=[11])
    mask = split.mask(0)
    assert split.count == 20 and mask.shape == split.image(0).shape[1:]
    assert set(mask.unique().tolist()) <= {*range(11), IGNORE}
    assert open_split(REAL, "train", kind="masks", path="camvid_small", classes=11, ignore=[11]).count == 40


def test_tabletop_is_the_same_every_time_and_has_every_truth():
    config = {"kind": "tabletop", "size": 32, "val": 5, "train": 4, "captions": 2}
    split, again = open_split(Path(), **config), open_split(Path(), **config)
    assert torch.equal(split.image(3), again.image(3)) and split.identity == again.identity
    assert split.image(0).shape == (3, 32, 32) and split.mask(0).shape == (32, 32)
    assert len(split.captions(0)) == 2 and 0 <= split.label(0) < len(split.class_names)
    assert set(split.prompts) == set(split.class_names)
    train = open_split(Path(), "train", **config)
    assert train.count == 4 and not torch.equal(train.image(0), split.image(0))
    other = open_split(Path(), **config | {"seed": 1})
    assert other.identity != split.identity


def test_reduced_zero_label_and_ignored_labels(tmp_path):
    save(tmp_path / "set/images/validation/a.png", grey())
    raw = np.zeros((8, 8))
    raw[0, :4] = [0, 1, 2, 9]
    save(tmp_path / "set/annotations/validation/a.png", raw)
    config = {"kind": "masks", "path": "set", "classes": 3, "ignore": [9]}
    reduced = open_split(tmp_path, **config, reduce_zero_label=True).mask(0)
    assert reduced[0, :4].tolist() == [IGNORE, 0, 1, IGNORE]
    assert open_split(tmp_path, **config).mask(0)[0, :4].tolist() == [0, 1, 2, IGNORE]


def test_a_limit_takes_the_same_pictures_in_order():
    assert choose(5, None, "x") == [0, 1, 2, 3, 4] == choose(5, 9, "x")
    assert choose(100, 10, "x") == choose(100, 10, "x") == sorted(choose(100, 10, "x"))
    assert choose(100, 10, "x") != choose(100, 10, "y")


def test_identity_changes_with_the_pictures(tmp_path):
    for part in ("train", "val"):
        save(tmp_path / f"set/{part}/cat/1.png", grey())
    config = {"kind": "image_folder", "path": "set"}
    before = open_split(tmp_path, **config).identity
    assert before == open_split(tmp_path, **config).identity
    save(tmp_path / "set/val/cat/2.png", grey(9))
    assert before != open_split(tmp_path, **config).identity


# --- what is wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        {"kind": "image_folder", "path": "none"},
        {"kind": "coco_captions", "path": "none"},
        {"kind": "masks", "path": "none", "classes": 3},
    ],
)
def test_a_missing_data_set_says_where_it_belongs_and_where_to_get_it(tmp_path, config):
    with pytest.raises(UserError) as error:
        open_split(tmp_path, **config)
    text = str(error.value)
    assert str(tmp_path / "none") in text and "http" in text and "--data-root" in text and "jpg" in text


def test_image_folder_mistakes(tmp_path):
    config = {"kind": "image_folder", "path": "set"}
    (tmp_path / "set/train/cat").mkdir(parents=True)
    (tmp_path / "set/val/dog").mkdir(parents=True)
    with pytest.raises(UserError, match="hold different classes, such as 'cat'"):
        open_split(tmp_path, **config)
    (tmp_path / "set/val/dog").rename(tmp_path / "set/val/cat")
    with pytest.raises(UserError, match="class folder .*cat holds no picture"):
        open_split(tmp_path, **config)
    (tmp_path / "set/val/cat/1.jpg").write_bytes(b"no picture")
    split = open_split(tmp_path, **config)
    with pytest.raises(UserError, match="val/cat/1.jpg cannot be decoded"):
        split.image(0)
    (tmp_path / "set/names.txt").write_text("dog Hund\n")
    with pytest.raises(UserError, match="no name for class 'cat'"):
        open_split(tmp_path, **config, names="names.txt")


def test_class_names_stand_behind_a_tab_or_where_there_is_none_a_blank(tmp_path):
    for part in ("train", "val"):
        for name in ("n01", "two words"):
            save(tmp_path / "set" / part / name / "1.png", grey())
    config, file = {"kind": "image_folder", "path": "set", "names": "names.txt"}, tmp_path / "set/names.txt"
    file.write_text("two words\ta large cat\n\nn01 a dog, a wolf\n", encoding="utf-8")
    assert open_split(tmp_path, **config).class_names == ("a dog, a wolf", "a large cat")
    for text, complaint in [
        ("n01 a dog\n\nfox\n", "names.txt, line 3 is 'fox'"),
        ("n01\t \n", "names.txt, line 1 is 'n01'"),
        ("\ta dog\n", "names.txt, line 1 is 'a dog'"),
        ("n01 a dog\ntwo words a cat\n", "names.txt has no name for class 'two words'"),
    ]:
        file.write_text(text)
        with pytest.raises(UserError, match=rf"{complaint}\n.*lines of: class folder, tab, name"):
            open_split(tmp_path, **config)
    file.write_bytes("n01\tein Käfer\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"names.txt cannot be read: 'utf-8'[\s\S]*UTF-8 text"):
        open_split(tmp_path, **config)


def test_coco_mistakes(tmp_path):
    config = {"kind": "coco_captions", "path": "set"}
    file = tmp_path / "set/annotations/captions_val2017.json"
    file.parent.mkdir(parents=True)
    with pytest.raises(UserError, match="captions_val2017.json cannot be read"):
        open_split(tmp_path, **config)
    for text, complaint in [
        ("{", "not a COCO caption file"),
        ('{"images": []}', "KeyError 'annotations'"),
        ('{"images": [], "annotations": []}', "holds no captions"),
    ]:
        file.write_text(text)
        with pytest.raises(UserError, match=complaint):
            open_split(tmp_path, **config)
    file.write_text(
        json.dumps(
            {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"id": 2, "image_id": 1, "caption": "a cat"}]}
        )
    )
    with pytest.raises(UserError, match="1 pictures with captions are not there.*val2017/1.jpg"):
        open_split(tmp_path, **config)
    save(tmp_path / "set/val2017/1.jpg", grey())
    blank = {"id": 1, "image_id": 1, "caption": " \n"}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"annotations": [blank]}))
    with pytest.raises(UserError, match="holds no captions"):
        open_split(tmp_path, **config)


def test_mask_mistakes(tmp_path):
    config = {"kind": "masks", "path": "set", "classes": 3}
    (tmp_path / "set").mkdir()
    with pytest.raises(UserError, match="no folder .*images/validation"):
        open_split(tmp_path, **config)
    save(tmp_path / "set/images/validation/a.png", grey())
    with pytest.raises(UserError, match="have no mask; the first: .*annotations/validation/a.png"):
        open_split(tmp_path, **config)
    mask = tmp_path / "set/annotations/validation/a.png"
    for pixels, complaint in [
        (np.full((8, 8), 7), "holds the label 7"),
        (np.zeros((4, 8)), "is 4×8, its picture 8×8"),
        (grey(), "has 3 channels"),
    ]:
        save(mask, pixels)
        with pytest.raises(UserError, match=complaint):
            open_split(tmp_path, **config).mask(0)
    with pytest.raises(UserError, match="holds 1 names"):
        open_split(tmp_path, **config, names=["sky"])


def test_a_corrected_truth_is_another_set_whose_features_are_kept(tmp_path):
    def write(labels: np.ndarray) -> None:
        for part in ("training", "validation"):
            save(tmp_path / "images" / part / "a.png", grey())
            save(tmp_path / "annotations" / part / "a.png", labels)

    def opened():
        return open_split(tmp_path, kind="masks", path=".", classes=2)

    write(np.zeros((8, 8)))
    before = opened()
    write(np.indices((8, 8)).sum(axis=0) % 2)  # another file size, as a corrected mask has
    after = opened()
    assert before.identity == after.identity and before.truth_identity != after.truth_identity
    assert after.truth_identity == opened().truth_identity


def rewritten(file: Path, old: str, new: str) -> None:
    """Other content, as many bytes, the same time of change: a copy keeps times, or none."""
    text, status = file.read_text(), file.stat()
    assert old in text and len(old) == len(new)
    file.write_text(text.replace(old, new))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_annotations_count_by_their_content(tmp_path):
    for part in ("train2017", "val2017"):
        save(tmp_path / "set" / part / "1.jpg", grey())
        notes = [{"id": 1, "image_id": 1, "caption": "A cat."}]
        document = {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": notes}
        (tmp_path / "set/annotations").mkdir(exist_ok=True)
        (tmp_path / f"set/annotations/captions_{part}.json").write_text(json.dumps(document))
    before = open_split(tmp_path, kind="coco_captions", path="set")
    rewritten(tmp_path / "set/annotations/captions_val2017.json", "cat", "dog")
    after = open_split(tmp_path, kind="coco_captions", path="set")
    assert after.identity == before.identity and after.truth_identity != before.truth_identity
    shutil.copytree(tmp_path / "set", tmp_path / "copy", copy_function=shutil.copyfile)  # of today
    assert open_split(tmp_path, kind="coco_captions", path="copy").truth_identity == after.truth_identity


def test_names_of_classes_are_a_truth(tmp_path):
    for part in ("train", "val"):
        for name in ("n01", "n02"):
            save(tmp_path / f"set/{part}/{name}/1.png", grey())
    file, config = tmp_path / "set/classes.txt", {"kind": "image_folder", "path": "set", "names": "classes.txt"}
    file.write_text("n01\tcat\nn02\tdog\n")
    before = open_split(tmp_path, **config)
    rewritten(file, "cat", "cow")
    after = open_split(tmp_path, **config)
    assert after.identity == before.identity and after.truth_identity != before.truth_identity
    assert open_split(tmp_path, **config | {"names": None}).truth_identity == ""


def test_identity_is_alike_on_every_machine_whatever_the_times(tmp_path):
    save(tmp_path / "images/validation/a.png", grey())
    save(tmp_path / "annotations/validation/a.png", np.zeros((8, 8)))

    def opened():
        return open_split(tmp_path, kind="masks", path=".", classes=2)

    before = opened()
    for file in tmp_path.rglob("*.png"):
        os.utime(file, (0, 0))
    assert opened().identity == before.identity and opened().truth_identity != before.truth_identity


def test_hidden_files_in_a_folder_of_weights_do_not_count(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(bytes(8))
    before = weights_identity(tmp_path)
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache/model.lock").write_text("today")  # as a download leaves it, again and again
    assert weights_identity(tmp_path) == before
    os.utime(tmp_path / "model.safetensors", (0, 0))
    assert weights_identity(tmp_path) != before


def test_a_score_is_of_the_truths_that_it_was_judged_by(tmp_path):
    from dataclasses import replace

    from worlds import Truth, make_split

    from eval.config import load_recipe
    from eval.encoders import Model
    from eval.suite import Suite

    (tmp_path / "r.yaml").write_text("data: {it: {kind: tabletop}}\ntasks: {knn: {task: knn, data: it}}")
    suite = Suite(load_recipe(tmp_path / "r.yaml")[0], tmp_path, tmp_path)
    (cell,) = suite.cells([Model("m", "m", Truth())])
    keys = []
    for truth in ("", "one", "another"):
        for part in ("train", "val"):
            suite._splits["it", part] = replace(make_split(part), truth_identity=truth)
        keys.append(suite.key(cell))
    assert len(set(keys)) == 3
