"""Pictures that their EXIF tag turns: truths of the picture as shown stay, those on the stored pixels are turned."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from test_datasets import open_split

from eval.datasets.split import read_image
from eval.datasets.truth_files import checked
from eval.datasets.upright import size_of, turn_of, turned, turned_boxes
from teachers.errors import UserError

STORED = (6, 10)
SIDEWAYS = (5, 6, 7, 8)
THING = (1, 2, 5, 4)  # x0, y0, x1, y1 on the stored pixels


def write(path: Path, tag: int, size=STORED) -> np.ndarray:
    """A picture of two values, brighter where its thing is; returns the thing on the stored pixels, 0 or 1."""
    truth = np.zeros(size, np.uint8)
    truth[THING[1] : THING[3], THING[0] : THING[2]] = 1
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = tag
    Image.fromarray(np.repeat(200 * truth[..., None], 3, axis=2)).save(path, exif=exif)
    return truth


def seen(image: torch.Tensor) -> torch.Tensor:
    """Where the thing is in the picture as it is shown."""
    return (image[0] > 100).long()


@pytest.mark.parametrize("tag", [*range(1, 9), 9])
def test_truths_are_turned_as_pillow_turns_the_picture(tmp_path, tag):
    stored = write(tmp_path / "a.png", tag)
    with Image.open(tmp_path / "a.png") as file:
        shown = np.array(ImageOps.exif_transpose(file))[..., 0] // 200
    assert size_of(tmp_path / "a.png") == shown.shape == tuple(read_image(tmp_path / "a.png").shape[1:])
    assert turn_of(tmp_path / "a.png", shown.shape) == 1 and turn_of(tmp_path / "a.png", (6, 9)) is None
    assert (turn_of(tmp_path / "a.png", STORED) == tag) == (tag in (1, *SIDEWAYS))
    if tag in SIDEWAYS:
        np.testing.assert_array_equal(turned(stored, tag), shown)
        (box,) = turned_boxes(torch.tensor([THING]), STORED, tag).tolist()
        rows, columns = np.nonzero(shown)
        assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize("tag", [1, *SIDEWAYS])
@pytest.mark.parametrize("drawn", ["stored", "shown"])
def test_a_mask_lies_on_its_picture_whichever_way_it_was_drawn(tmp_path, tag, drawn):
    stored = write(tmp_path / "images/validation/a.png", tag)
    picture = read_image(tmp_path / "images/validation/a.png")
    mask = stored if drawn == "stored" else seen(picture).numpy().astype(np.uint8)
    (tmp_path / "annotations/validation").mkdir(parents=True)
    Image.fromarray(mask).save(tmp_path / "annotations/validation/a.png")
    split = open_split(tmp_path, kind="masks", path=".", classes=2)
    assert torch.equal(split.mask(0), seen(split.image(0)))


def test_where_sizes_cannot_tell_a_mask_is_of_the_picture_as_shown(tmp_path):
    for number, (tag, size) in enumerate([(6, (8, 8)), (3, STORED)]):
        mask = write(tmp_path / f"{number}.png", tag, size)
        np.testing.assert_array_equal(checked(mask, Path("mask"), tmp_path / f"{number}.png"), mask)


def test_vectors_on_stored_pixels_are_refused(tmp_path):
    write(tmp_path / "a.png", 6)
    checked(np.zeros((*STORED[::-1], 3)), Path("normals"), tmp_path / "a.png", (3,))
    with pytest.raises(UserError, match="normals holds vectors on the stored pixels of .*a.png"):
        checked(np.zeros((*STORED, 3)), Path("normals"), tmp_path / "a.png", (3,))


@pytest.mark.parametrize("tag", [1, *SIDEWAYS])
@pytest.mark.parametrize("drawn", ["stored", "shown"])
def test_things_of_coco_lie_on_their_picture_whichever_way_they_were_drawn(tmp_path, tag, drawn):
    for number in (0, 1):  # the second one has no things
        write(tmp_path / f"val2017/{number}.png", tag)
    height, width = STORED if drawn == "stored" else size_of(tmp_path / "val2017/0.png")
    turn = 1 if drawn == "stored" else tag
    x0, y0, x1, y1 = turned_boxes(torch.tensor([THING]), STORED, turn)[0].tolist()
    note = {"id": 7, "image_id": 0, "category_id": 1, "bbox": [x0, y0, x1 - x0, y1 - y0], "area": 8, "iscrowd": 0}
    note["segmentation"] = [[x0, y0, x1, y0, x1, y1, x0, y1]]
    images = [{"id": i, "file_name": f"{i}.png", "height": height, "width": width} for i in (0, 1)]
    document = {"images": images, "categories": [{"id": 1, "name": "cat"}], "annotations": [note]}
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances_val2017.json").write_text(json.dumps(document))
    split = open_split(tmp_path, kind="coco_instances", path=".")
    things, shown = split.instances(0), seen(split.image(0))
    assert torch.equal(things.masks()[0].long(), shown)
    rows, columns = torch.nonzero(shown, as_tuple=True)
    assert things.boxes.tolist() == [[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]]
    assert things.size == tuple(shown.shape) and split.instances(1).masks().shape == (0, *shown.shape)
    assert split.instances(1).boxes.shape == (0, 4)
    images[0]["width"] = 11
    (tmp_path / "annotations/instances_val2017.json").write_text(json.dumps(document))
    split = open_split(tmp_path, kind="coco_instances", path=".")
    for look in (split.image, split.instances):
        with pytest.raises(UserError, match=r"0.png is (6×10|10×6)\n.*×11, as its annotations have it"):
            look(0)
