"""NYUDv2's layout: labels from 1, unknown depth and normals, thin edges; what is absent is not offered, what is wrong
is said."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eval.datasets import DATASETS, nyud
from eval.datasets.split import IGNORE, Split
from teachers.errors import UserError

SHAPE = (6, 8)


def write(root: Path, number: str, **arrays: np.ndarray) -> None:
    """A picture and its truths, folder=array; .png of segmentation, .npy of the others."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SHAPE[::-1], "green").save(root / f"images/{number}.jpg")
    for folder, values in arrays.items():
        (root / folder).mkdir(exist_ok=True)
        if folder == "segmentation":
            Image.fromarray(values.astype(np.uint8)).save(root / folder / f"{number}.png")
        else:
            np.save(root / folder / f"{number}.npy", values)


def truths(first: int = 1) -> dict[str, np.ndarray]:
    mask = np.full(SHAPE, first)
    mask[0, :3] = [0, 255, 40]
    depth = np.full(SHAPE, 2.5)
    depth[1, 1] = 0
    normals = np.zeros((*SHAPE, 3), np.float32)
    normals[..., 2] = -2.0
    normals[2, 2] = 0
    edge = np.zeros(SHAPE, np.uint8)
    edge[:, 4] = 1
    return {"segmentation": mask, "depth": depth, "normals": normals, "edge": edge}


@pytest.fixture
def root(tmp_path) -> Path:
    folder = tmp_path / "NYUD_MT"
    for number, first in {"0001": 1, "0002": 5, "0003": 22}.items():
        write(folder, number, **truths(first))
    (folder / "gt_sets").mkdir()
    (folder / "gt_sets/train.txt").write_text("0001\n0003\n")
    (folder / "gt_sets/val.txt").write_text("0002\n")
    return folder


def opened(root: Path, part: str = "val", **config) -> Split:
    return DATASETS["nyud"].open_split("it", nyud.Config(kind="nyud", path=root.name, **config), root.parent, part)


def test_every_truth_is_read_as_the_loaders_of_the_field_read_it(root):
    split = opened(root)
    assert split.count == 1 and split.image(0).shape == (3, *SHAPE) and len(split.mask_names) == 40
    mask = split.mask(0)
    assert mask[0, :4].tolist() == [IGNORE, IGNORE, 39, 4] and split.mask_names[4] == "chair"
    depth = split.depth(0)
    assert depth.dtype == torch.float32 and depth[0, 0] == 2.5 and depth.isnan().sum() == 1 and depth[1, 1].isnan()
    normals = split.normals(0)
    assert normals[:, 0, 0].tolist() == [0, 0, -1] and normals[:, 2, 2].isnan().all() and normals.isnan().sum() == 3
    edge = split.boundary(0)
    assert edge.dtype == torch.long and edge.sum() == SHAPE[0] and edge[:, 4].all()


def test_lists_limits_and_identity(root):
    train = opened(root, "train")
    assert train.count == 2 and train.mask(1)[1, 1] == 21 and opened(root, "train", train_limit=1).count == 1
    before = opened(root).identity
    assert before == opened(root).identity != train.identity
    write(root, "0002", depth=np.full(SHAPE, 1.0, np.float32))  # another file: other figures
    assert opened(root).identity != before


@pytest.mark.parametrize("truth", ["segmentation/0002.png", "depth/0002.npy", "normals/0002.npy", "edge/0002.npy"])
def test_a_truth_changed_in_place_is_another_truth(root, truth):
    before, status = opened(root), (root / truth).stat()
    os.utime(root / truth, ns=(0, status.st_mtime_ns + 1))
    assert opened(root).truth_identity != before.truth_identity and opened(root).identity == before.identity


def test_truths_whose_folder_is_absent_are_not_offered(root):
    os.rename(root / "edge", root / "elsewhere")
    split = opened(root)
    assert split.boundary is None and split.depth is not None
    with pytest.raises(UserError, match="'it' has no boundaries"):
        split.truth("boundary")


def test_pictures_may_be_png_and_arrays_may_end_in_one_channel(root):
    for file in (root / "images").iterdir():
        Image.open(file).save(file.with_suffix(".png"))
        file.unlink()
    np.save(root / "depth/0002.npy", np.full((*SHAPE, 1), 3.0))
    assert opened(root).image(0).shape == (3, *SHAPE) and (opened(root).depth(0) == 3).all()


def test_what_is_wrong_is_said(root, tmp_path):
    for truth, values, complaint in [
        ("depth", np.ones((3, 8)), r"depth/0002.npy is 3×8, its picture asks for 6×8"),
        ("normals", np.ones(SHAPE), r"normals/0002.npy is 6×8, its picture asks for 6×8×3"),
        ("depth", np.full(SHAPE, "far"), r"depth/0002.npy holds <U3"),
    ]:
        np.save(root / truth / "0002.npy", values)
        with pytest.raises(UserError, match=complaint):
            opened(root).truth(truth)(0)
    Image.fromarray(np.full(SHAPE, 41, np.uint8)).save(root / "segmentation/0002.png")
    with pytest.raises(UserError, match="holds the label 41"):
        opened(root).mask(0)
    (root / "edge/0002.npy").unlink()
    with pytest.raises(UserError, match=r"1 files are not there; the first: .*edge/0002.npy"):
        opened(root)
    (root / "gt_sets/val.txt").write_text("\n")
    with pytest.raises(UserError, match=r"the list .*val.txt is empty"):
        opened(root)
    with pytest.raises(UserError, match="cannot be read"):
        opened(root, val="test")
    with pytest.raises(UserError, match=r"no data set at (.|\n)*http(.|\n)*--data-root"):
        opened(tmp_path / "none")


def test_pickled_objects_are_never_executed(root, tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    np.save(root / "depth/0002.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"depth/0002.npy cannot be read"):
        opened(root).depth(0)
    assert not (tmp_path / "sprung").exists()
