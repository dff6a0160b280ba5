"""COCO layout: `val2017/*.jpg`, `annotations/instances_val2017.json` → pictures with the things in them.

Pictures without annotations stay: what is detected there counts against a model. Boxes without area, of which COCO's
training part has two, can be neither learnt nor found and are left out; the split's source says how many.
Height and width of a picture are of the file as it is shown; where they are of the pixels as they are stored (EXIF),
the things are turned with the picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from eval.datasets.coco_layout import CocoConfig, CocoPart, find_part, layout
from eval.datasets.split import Instances, Split, choose, files_identity, read_image
from eval.datasets.upright import size_of, turn_of, turned, turned_boxes
from teachers.errors import UserError
from teachers.features import Size

LAYOUT = layout("instances")
EXPECTED = (
    "images: [{id, file_name, height, width}], categories: [{id, name}], "
    "annotations: [{id, image_id, category_id, bbox, area, iscrowd, segmentation}]"
)


class Config(CocoConfig):
    """Pictures with boxes, classes and masks of things."""

    kind: Literal["coco_instances"]


@dataclass
class _Picture:
    """One picture's entries in the annotation file."""

    file: str
    size: Size
    notes: list[dict[str, Any]] = field(default_factory=list)  # annotations, in the order of their ids
    degenerate: int = 0


def open_split(name: str, config: Config, data_root: Path, part: str) -> Split:
    """The train or val part: every picture of the annotation file, in the order of ids; classes by category id."""
    found = find_part(config, data_root, part, "instances")
    pictures, categories = found.parse(lambda document: _parse(document, found.annotations), EXPECTED)
    if not pictures or not categories:
        lacks = "pictures" if categories else "categories"
        raise UserError(f"{found.annotations} holds no {lacks}", expected=EXPECTED)
    pictures = [pictures[index] for index in choose(len(pictures), found.limit, name, part)]
    files = found.pictures([picture.file for picture in pictures])
    indices = {category: index for index, category in enumerate(categories)}
    left_out = sum(picture.degenerate for picture in pictures)
    return Split(
        data=name, part=part, count=len(files), identity=files_identity(files, found.root),
        truth_identity=found.identity,
        source=f"{found.root} ({found.folder})" + (f"; {left_out} boxes without area left out" if left_out else ""),
        image=lambda index: _image(files[index], pictures[index].size),
        instances=lambda index: _instances(pictures[index], files[index], indices, found),
        thing_names=tuple(categories.values()),
    )  # fmt: skip


def _parse(document: Any, path: Path) -> tuple[list[_Picture], dict[int, str]]:
    """The pictures and the categories (id → name), each by id, with every annotation at its picture and checked."""
    entries = sorted(document["images"], key=lambda image: image["id"])
    pictures = {image["id"]: _Picture(image["file_name"], (image["height"], image["width"])) for image in entries}
    categories = {one["id"]: one["name"] for one in sorted(document["categories"], key=lambda one: one["id"])}
    for note in sorted(document["annotations"], key=lambda note: note["id"]):
        for key, known, what in (("image_id", pictures, "picture"), ("category_id", categories, "category")):
            if note[key] not in known:
                raise UserError(
                    f"{path}: annotation {note['id']} belongs to {what} {note[key]}, which the file does not list",
                    expected=f"one of its {len(known)}",
                )
        box, area = note["bbox"], float(note["area"])
        if len(box) != 4 or not all(map(math.isfinite, (*box, area))):
            raise UserError(
                f"{path}: annotation {note['id']} has the box {box} and the area {area}",
                expected="[x, y, width, height] and an area, finite numbers, in pixels",
            )
        picture = pictures[note["image_id"]]
        if box[2] > 0 and box[3] > 0:
            picture.notes.append(note)
        else:
            picture.degenerate += 1
    return list(pictures.values()), categories


def _image(file: Path, size: Size) -> Tensor:
    """The picture, which must have the size that its annotations are for."""
    _turn(file, size)
    return read_image(file)


def _turn(file: Path, size: Size) -> int:
    """How annotations for a picture of `size` are turned to lie on the picture (`upright`)."""
    turn = turn_of(file, size)
    if turn is None:
        shown = "×".join(map(str, size_of(file)))
        raise UserError(f"{file} is {shown}", expected=f"{size[0]}×{size[1]}, as its annotations have it")
    return turn


def _instances(picture: _Picture, file: Path, indices: dict[int, int], found: CocoPart) -> Instances:
    turn = _turn(file, picture.size)
    boxes = torch.tensor([note["bbox"] for note in picture.notes], dtype=torch.float32).reshape(-1, 4)
    boxes = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)
    return Instances(
        boxes=turned_boxes(boxes, picture.size, turn),
        classes=torch.tensor([indices[note["category_id"]] for note in picture.notes], dtype=torch.long),
        masks=lambda: _masks(picture, found.annotations, turn),
        areas=torch.tensor([note["area"] for note in picture.notes], dtype=torch.float32),
        crowd=torch.tensor([bool(note.get("iscrowd", 0)) for note in picture.notes], dtype=torch.bool),
        size=size_of(file),
    )


def _masks(picture: _Picture, path: Path, turn: int) -> Tensor:
    """n×H×W bool from polygons or run lengths, on the picture as it is shown."""
    from pycocotools import mask

    runs = [_run_lengths(note, picture.size, path) for note in picture.notes]
    masks = mask.decode(runs) if runs else np.zeros((*picture.size, 0), np.uint8)
    return torch.from_numpy(turned(masks, turn)).permute(2, 0, 1).bool()


def _run_lengths(note: dict[str, Any], size: Size, path: Path) -> dict[str, Any]:
    """A `segmentation` (polygons, or run lengths as numbers or as COCO's text) as compressed run lengths."""
    from pycocotools import mask

    shape, (height, width) = note.get("segmentation"), size
    if isinstance(shape, dict) and list(shape.get("size", ())) == [height, width] and "counts" in shape:
        return mask.frPyObjects(shape, height, width) if isinstance(shape["counts"], list) else shape
    # pycocotools would take four numbers for a box, and fewer for memory that is not there.
    if isinstance(shape, list) and shape and all(len(points) >= 6 and len(points) % 2 == 0 for points in shape):
        return mask.merge(mask.frPyObjects(shape, height, width))
    raise UserError(
        f"{path}: annotation {note['id']} has no mask of its picture's {height}×{width} pixels",
        expected="segmentation: polygons [[x, y, x, y, x, y, ...], ...] or run lengths {size: [height, width], counts}",
    )
