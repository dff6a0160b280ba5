"""Pascal Context's layout: masks from two places, parts from MATLAB structures, distilled saliency and normals, edges
of the label map; what is wrong is said."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from eval.datasets import DATASETS, pascal_context
from eval.datasets.pascal_context import INDOOR, PART_NAMES, PARTS
from eval.datasets.split import IGNORE, Split
from teachers.errors import UserError

SHAPE = (8, 10)
CHAIR, SKY = 72, 360  # of the 459 classes; NYUDv2 has chairs and no sky


def structure(rows: list[tuple], names: str) -> np.ndarray:
    """MATLAB's 1×n structure array."""
    made = np.empty((1, len(rows)), dtype=[(name, object) for name in names.split()])
    for place, row in enumerate(rows):
        made[0, place] = row
    return made


def box(top: int, bottom: int, left: int, right: int) -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def annotation(*things: tuple[int, list[tuple[str, np.ndarray]]]) -> dict:
    """PASCAL-Part's `anno` of things (class number, [(part, mask), ...])."""
    rows = []
    for number, parts in things:
        inside = structure(parts, "part_name mask") if parts else np.zeros((0, 0))
        rows.append(("thing", number, box(0, 8, 0, 10), inside))
    objects = structure(rows, "class class_ind mask parts")
    return {"anno": structure([("2008_000002", objects)], "imname objects")}


def png(file: Path, values: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(file)


def mat(file: Path, values: dict) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    savemat(file, values)


def write(root: Path, number: str) -> None:
    (root / "JPEGImages").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SHAPE[::-1], "green").save(root / f"JPEGImages/{number}.jpg")
    mask = np.full(SHAPE, 15)
    mask[0, 0] = 255
    png(root / f"semseg/pascal-context/{number}.png", mask)
    salient = np.full(SHAPE, 127)
    salient[4:] = 128
    png(root / f"sal_distill/{number}.png", salient)
    normals = np.full((*SHAPE, 3), 128)
    normals[..., 2] = 255
    png(root / f"normals_distill/{number}.png", normals)
    labels = np.full(SHAPE, CHAIR, np.uint16)
    labels[:, 5:] = SKY
    mat(root / f"pascal-context/trainval/{number}.mat", {"LabelMap": labels})
    first = (15, [("head", box(0, 2, 0, 4)), ("lfoot", box(6, 8, 0, 4)), ("torso", box(2, 6, 0, 4))])
    second = (15, [("ruarm", box(3, 5, 3, 6))])  # covers a strip of the first one's torso
    dog = (12, [("head", box(0, 2, 7, 9))])
    mat(root / f"human_parts/{number}.mat", annotation(first, dog, second))


@pytest.fixture
def root(tmp_path) -> Path:
    folder = tmp_path / "PASCAL_MT"
    for number in ("2008_000002", "2008_000003", "2008_000008"):
        write(folder, number)
    (folder / "ImageSets/Context").mkdir(parents=True)
    (folder / "ImageSets/Context/train.txt").write_text("2008_000002\n2008_000008\n")
    (folder / "ImageSets/Context/val.txt").write_text("2008_000003\n")
    return folder


def opened(root: Path, part: str = "val", **config) -> Split:
    module = DATASETS["pascal_context"]
    return module.open_split(
        "it", pascal_context.Config(kind="pascal_context", path=root.name, **config), root.parent, part
    )


def test_masks_are_vocs_own_where_there_is_one(root):
    split = opened(root)
    assert split.mask(0)[0, :2].tolist() == [IGNORE, 15] and split.mask_names[15] == "person"
    png(root / "semseg/VOC12/2008_000003.png", np.full(SHAPE, 20))
    assert opened(root).mask(0).unique().tolist() == [20] and opened(root).identity != split.identity
    assert opened(root, "train").mask(0)[1, 1] == 15


def test_parts_are_peoples_and_later_people_cover_earlier_ones(root):
    parts = opened(root).parts(0)
    wanted = np.zeros(SHAPE, int)
    wanted[:2, :4], wanted[2:6, :4], wanted[6:, :4] = 1, 2, 6
    wanted[3:5, 3:6] = 3
    assert torch.equal(parts, torch.from_numpy(wanted))  # the dog's head is no part
    assert opened(root).part_names == PART_NAMES and len(PARTS) == 24 and set(PARTS.values()) == set(range(1, 7))


def test_one_thing_alone_is_read_too_and_pictures_without_people_are_ignored(root):
    mat(root / "human_parts/2008_000003.mat", annotation((15, [("hair", box(0, 1, 0, 3))])))
    assert opened(root).parts(0).sum() == 3
    for things in ([(12, [("head", box(0, 1, 0, 3))])], [(15, [])], []):
        mat(root / "human_parts/2008_000003.mat", annotation(*things))
        assert (opened(root).parts(0) == IGNORE).all()


def test_saliency_is_cut_at_one_half(root):
    assert opened(root).saliency(0).sum(dim=1).tolist() == [0] * 4 + [10] * 4


def test_normals_count_where_the_network_that_made_them_knows_the_class(root):
    normals = opened(root).normals(0)
    assert normals.shape == (3, *SHAPE) and CHAIR in INDOOR and SKY not in INDOOR
    assert normals[:, :, 5:].isnan().all() and normals[:, :, :5].isfinite().all()
    near = torch.tensor([1 / 255, 1 / 255, 1.0])
    torch.testing.assert_close(normals[:, 0, 0], near / near.norm())


def test_boundaries_lie_between_the_labels_and_are_thin(root):
    boundary = opened(root).boundary(0)
    assert (boundary[1:-1].sum(dim=1) == 1).all() and boundary.dtype == torch.long  # the Laplacian is two pixels wide
    assert boundary.sum() == boundary[:, 4:6].sum() >= SHAPE[0] - 1  # thinning takes a pixel off an end


def test_the_laplacian_is_the_four_neighbours_one(root):
    rng = np.random.default_rng(0)
    labels = rng.integers(1, 4, SHAPE).astype(np.uint16)
    mat(root / "pascal-context/trainval/2008_000003.mat", {"LabelMap": labels})
    padded = np.pad(labels.astype(int), 1, mode="reflect")
    around = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    edges = opened(root).boundary(0).numpy().astype(bool)
    assert not edges[around == 4 * labels].any() and edges.any()


def test_truths_whose_folder_is_absent_are_not_offered(root):
    for folder in ("human_parts", "sal_distill", "semseg"):
        shutil.rmtree(root / folder)
    split = opened(root)
    assert split.mask is None and split.parts is None and split.saliency is None and split.boundary is not None
    shutil.rmtree(root / "pascal-context")
    assert opened(root).boundary is None and opened(root).normals is None  # without labels, which normals count?
    with pytest.raises(UserError, match="'it' has no surface normals"):
        opened(root).truth("normals")


def test_what_is_wrong_is_said(root, tmp_path):
    parts, labels = root / "human_parts/2008_000003.mat", root / "pascal-context/trainval/2008_000003.mat"
    mat(parts, annotation((15, [("tail", box(0, 1, 0, 3))])))
    with pytest.raises(UserError, match=r"2008_000003.mat names the part 'tail'(.|\n)*torso"):
        opened(root).parts(0)
    mat(parts, annotation((15, [("head", np.ones((3, 3)))])))
    with pytest.raises(UserError, match="is 3×3, its picture asks for 8×10"):
        opened(root).parts(0)
    mat(parts, {"anno": {"imname": "x"}})
    with pytest.raises(UserError, match="is not PASCAL-Part's: KeyError 'objects'"):
        opened(root).parts(0)
    mat(labels, {"Labels": np.ones(SHAPE)})
    with pytest.raises(UserError, match=r"has no LabelMap(.|\n)*it has Labels"):
        opened(root).boundary(0)
    labels.write_bytes(b"no MATLAB file")
    with pytest.raises(UserError, match="2008_000003.mat cannot be read"):
        opened(root).normals(0)
    png(root / "normals_distill/2008_000003.png", np.zeros(SHAPE))
    with pytest.raises(UserError, match="is 8×10, its picture asks for 8×10×3"):
        opened(root).normals(0)
    (root / "sal_distill/2008_000003.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="sal_distill/2008_000003.png cannot be decoded"):
        opened(root).saliency(0)
    (root / "semseg/pascal-context/2008_000003.png").unlink()
    with pytest.raises(UserError, match=r"1 pictures have no mask; the first: .*pascal-context/2008_000003.png"):
        opened(root)
    with pytest.raises(UserError, match=r"the list .*Context/test.txt cannot be read"):
        opened(root, val="test")
    with pytest.raises(UserError, match=r"no data set at (.|\n)*http"):
        opened(tmp_path / "none")


def test_a_truth_changed_in_place_is_another_truth(root):
    for file in sorted((root / "human_parts").iterdir()) + sorted((root / "semseg").rglob("*.png")):
        before, status = [opened(root, part) for part in ("train", "val")], file.stat()
        os.utime(file, ns=(0, status.st_mtime_ns + 1))
        after = [opened(root, part) for part in ("train", "val")]
        assert [split.identity for split in after] == [split.identity for split in before]
        assert [split.truth_identity for split in after] != [split.truth_identity for split in before]
