"""Cityscapes as its archives unpack (`leftImg8bit/`, `gtFine/`) → street scenes with masks of the 19 classes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from eval.datasets.label_masks import masked_split
from eval.datasets.split import IGNORE, Split, find_root
from teachers.errors import UserError
from teachers.section import Section

LAYOUT = (
    "leftImg8bit/{train,val}/<city>/*_leftImg8bit.png and gtFine/{train,val}/<city>/*_gtFine_labelIds.png "
    "(or *_gtFine_labelTrainIds.png)"
)
CLASSES = {  # number in labelIds files → class, in the order of the train ids 0 … 18; the other numbers are ignored
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light",
    20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car", 27: "truck",
    28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}  # fmt: skip
IDS = 34
VOID = 255  # in train ids; in label ids the number plate, −1, as eight bits hold it


class Config(Section):
    """Cityscapes, semantic segmentation with the fine annotations."""

    kind: Literal["cityscapes"]
    path: str = Field(description="the folder of leftImg8bit and gtFine, below data_root")
    labels: Literal["labelIds", "labelTrainIds"] = Field(
        "labelIds", description="which masks: as published (34 ids), or as Cityscapes' scripts make them (19 train ids)"
    )
    train: str = Field("train", description="sub-folder of the training pictures (2975)")
    val: str = Field("val", description="sub-folder of the test pictures (500)")
    train_limit: Annotated[int, Field(ge=1)] | None = Field(None, description="use so many pictures, drawn once")
    val_limit: Annotated[int, Field(ge=1)] | None = Field(None, description="the same of the test pictures")
    get: str = Field(
        "Cityscapes is at https://www.cityscapes-dataset.com (leftImg8bit_trainvaltest, gtFine_trainvaltest)",
        description="where to get it",
    )


def open_split(name: str, config: Config, data_root: Path, part: str) -> Split:
    """The train or val part, city by city; every picture must have its mask."""
    root = find_root(data_root, config.path, LAYOUT, config.get)
    chosen, limit = (config.train, config.train_limit) if part == "train" else (config.val, config.val_limit)
    images = sorted((root / "leftImg8bit" / chosen).glob("*/*_leftImg8bit.png"))
    if not images:
        raise UserError(f"{root / 'leftImg8bit' / chosen} holds no <city>/*_leftImg8bit.png", expected=LAYOUT)
    if config.labels == "labelIds":
        meaning = dict.fromkeys(range(IDS), IGNORE) | {number: place for place, number in enumerate(CLASSES)}
        expected = f"label ids 0 … {IDS - 1}, or {VOID}; for files of train ids: labels: labelTrainIds"
    else:
        meaning = {place: place for place in range(len(CLASSES))}
        expected = f"train ids 0 … {len(CLASSES) - 1}, or {VOID}; for files of label ids: labels: labelIds"
    return masked_split(
        name, part, root, [(image, _mask(root, chosen, image, config.labels)) for image in images], limit,
        meaning=meaning | {VOID: IGNORE}, classes=list(CLASSES.values()), expected=expected, layout=LAYOUT,
    )  # fmt: skip


def _mask(root: Path, folder: str, image: Path, labels: str) -> Path:
    scene = image.name.removesuffix("_leftImg8bit.png")
    return root / "gtFine" / folder / image.parent.name / f"{scene}_gtFine_{labels}.png"
