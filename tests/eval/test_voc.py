"""Pascal VOC: lists, palette masks with void outlines, masks of the augmented set, and what can be wrong with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.datasets import voc
from eval.datasets.split import IGNORE, Split
from teachers.errors import UserError


def write(root: Path, number: str, mask: np.ndarray | None = None, folder: str = "SegmentationClass") -> None:
    """A picture and its mask, a palette picture as VOC's are."""
    picture = root / f"JPEGImages/{number}.jpg"
    picture.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), "green").save(picture)
    if mask is not None:
        palette = Image.fromarray(mask.astype(np.uint8))
        palette.putpalette([value for i in range(256) for value in (i, 255 - i, 7 * i % 256)])
        (root / folder).mkdir(exist_ok=True)
        palette.save(root / folder / f"{number}.png")


def lists(root: Path, **names: str) -> None:
    folder = root / "ImageSets/Segmentation"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in names.items():
        (folder / f"{name}.txt").write_text(text)


@pytest.fixture
def root(tmp_path) -> Path:
    folder = tmp_path / "VOCdevkit/VOC2012"
    for number, value in {"2007_000032": 1, "2007_000039": 20, "2007_000063": 12}.items():
        write(folder, number, np.full((4, 6), value))
    lists(folder, train="2007_000032\n2007_000063\n", val="2007_000039\n\n")
    return folder


def open_split(root: Path, part: str = "val", **config) -> Split:
    return voc.open_split("it", voc.Config(kind="voc", path="VOCdevkit/VOC2012", **config), root.parents[1], part)


def test_the_palettes_numbers_are_classes_and_outlines_are_void(root):
    mask = np.zeros((4, 6))
    mask[1, :4] = [15, 255, 20, 0]
    write(root, "2007_000039", mask)
    split = open_split(root)
    assert split.count == 1 and split.mask(0)[1].tolist() == [15, IGNORE, 20, 0, 0, 0]
    assert split.image(0).shape == (3, 4, 6) and split.mask(0).shape == (4, 6)
    names = split.mask_names
    assert len(names) == 21 and (names[0], names[15], names[20]) == ("background", "person", "tv monitor")


def test_lists_keep_their_order_and_limits_draw_from_them(root):
    train = open_split(root, "train")
    assert [int(train.mask(i)[0, 0]) for i in range(train.count)] == [1, 12]
    assert open_split(root, "train", train_limit=1).count == 1
    assert train.identity != open_split(root).identity


def test_the_augmented_sets_masks_fill_up_those_of_voc(root):
    write(root, "2008_000002", np.full((4, 6), 5), "SegmentationClassAug")
    write(root, "2007_000032", np.full((4, 6), 7), "SegmentationClassAug")
    lists(root, trainaug="2007_000032\n/JPEGImages/2008_000002.jpg /SegmentationClassAug/2008_000002.png\n")
    folders = ["SegmentationClass", "SegmentationClassAug"]
    split = open_split(root, "train", train="trainaug", masks=folders)
    assert [int(split.mask(i)[0, 0]) for i in range(2)] == [1, 5]
    split = open_split(root, "train", train="trainaug", masks=folders[::-1])
    assert [int(split.mask(i)[0, 0]) for i in range(2)] == [7, 5]
    with pytest.raises(UserError, match="1 pictures have no mask; the first: .*SegmentationClass/2008_000002.png"):
        open_split(root, "train", train="trainaug")


def test_what_is_missing_or_wrong_is_said(root, tmp_path):
    with pytest.raises(UserError, match="trainval.txt cannot be read"):
        open_split(root, val="trainval")
    lists(root, val="\n")
    with pytest.raises(UserError, match="val.txt is empty"):
        open_split(root)
    lists(root, val="2010_000001\n")
    with pytest.raises(UserError, match="1 pictures are not there; the first: .*JPEGImages/2010_000001.jpg"):
        open_split(root)
    write(root, "2010_000001", np.full((4, 6), 21))
    with pytest.raises(UserError, match="2010_000001.png holds the label 21\n.*0 … 20, or 255"):
        open_split(root).mask(0)
    write(root, "2010_000001", np.zeros((6, 4)))
    with pytest.raises(UserError, match="is 6×4, its picture 4×6"):
        open_split(root).mask(0)
    with pytest.raises(UserError, match="no data set at .*\n.*JPEGImages.*\n.*host.robots.ox.ac.uk"):
        open_split(tmp_path / "elsewhere/VOCdevkit/VOC2012")
