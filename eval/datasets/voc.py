"""Pascal VOC 2012 as its archive unpacks: lists, pictures and palette masks → pictures with masks of 21 classes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from eval.datasets.label_masks import masked_split
from eval.datasets.split import IGNORE, Split, find_root
from teachers.errors import UserError
from teachers.section import Section

LAYOUT = "JPEGImages/ID.jpg, SegmentationClass/ID.png and ImageSets/Segmentation/{train,val}.txt (an ID a line)"
VOID = 255
NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor",
)  # fmt: skip


class Config(Section):
    """Pascal VOC 2012, semantic segmentation."""

    kind: Literal["voc"]
    path: str = Field(description="its folder VOC2012, below data_root")
    train: str = Field("train", description="list of the training pictures: train (1464), or trainaug (10582)")
    val: str = Field("val", description="list of the test pictures (1449)")
    masks: Annotated[list[str], Field(min_length=1)] = Field(
        ["SegmentationClass"],
        description="folders of the masks, the first that has one counts; trainaug: add SegmentationClassAug",
    )
    train_limit: Annotated[int, Field(ge=1)] | None = Field(None, description="use so many pictures, drawn once")
    val_limit: Annotated[int, Field(ge=1)] | None = Field(None, description="the same of the test pictures")
    get: str = Field(
        "VOC 2012 is at http://host.robots.ox.ac.uk/pascal/VOC/voc2012 (trainval archive)",
        description="where to get it",
    )


def open_split(name: str, config: Config, data_root: Path, part: str) -> Split:
    """The train or val part, in its list's order; 255 (void: outlines and what is hard to tell) is ignored."""
    root = find_root(data_root, config.path, LAYOUT, config.get)
    chosen, limit = (config.train, config.train_limit) if part == "train" else (config.val, config.val_limit)
    numbers = _listed(root / "ImageSets" / "Segmentation" / f"{chosen}.txt")
    return masked_split(
        name, part, root,
        [(root / "JPEGImages" / f"{number}.jpg", _mask(root, config.masks, number)) for number in numbers], limit,
        meaning={label: label for label in range(len(NAMES))} | {VOID: IGNORE}, classes=NAMES,
        expected=f"classes 0 … {len(NAMES) - 1}, or {VOID}", layout=LAYOUT,
    )  # fmt: skip


def _listed(path: Path) -> list[str]:
    """The IDs in a list; some lists of the augmented set name paths of picture and mask instead."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the list {path} cannot be read: {error}", expected=LAYOUT) from None
    numbers = [Path(line.split()[0]).stem for line in lines if line.strip()]
    if not numbers:
        raise UserError(f"the list {path} is empty", expected="an ID a line, such as 2007_000032")
    return numbers


def _mask(root: Path, folders: list[str], number: str) -> Path:
    """The mask in the first folder that has it; where none has, the first folder's, for the message."""
    places = [root / folder / f"{number}.png" for folder in folders]
    return next((place for place in places if place.is_file()), places[0])
