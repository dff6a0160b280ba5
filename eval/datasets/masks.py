"""ADE20K layout: `images/{training,validation}/*.jpg`, `annotations/.../*.png` → pictures with masks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from eval.datasets.label_masks import masked_split
from eval.datasets.split import IGNORE, Split, find_root, list_images
from teachers.errors import UserError
from teachers.section import Section

LAYOUT = "images/{training,validation}/NAME.jpg and annotations/{training,validation}/NAME.png (a label number a pixel)"


class Config(Section):
    """Pictures with a class for every pixel."""

    kind: Literal["masks"]
    path: str = Field(description="its folder, below data_root")
    classes: Annotated[int, Field(ge=2, le=255)] = Field(description="number of classes that count")
    reduce_zero_label: bool = Field(False, description="0 = unlabelled, classes from 1 (ADE20K); else classes from 0")
    ignore: list[Annotated[int, Field(ge=0)]] = Field(
        [255], description="label numbers in the files that count for nothing"
    )
    names: list[str] | None = Field(None, description="the classes in words")
    train: str = Field("training", description="sub-folder of the training pictures")
    val: str = Field("validation", description="sub-folder of the test pictures")
    train_limit: Annotated[int, Field(ge=1)] | None = Field(None, description="use so many pictures, drawn once")
    val_limit: Annotated[int, Field(ge=1)] | None = Field(None, description="the same of the test pictures")
    get: str = Field("ADE20K (SceneParse150) is at http://sceneparsing.csail.mit.edu", description="where to get it")


def open_split(name: str, config: Config, data_root: Path, part: str) -> Split:
    """The train or val part; every picture must have its mask."""
    root = find_root(data_root, config.path, LAYOUT, config.get)
    if config.names and len(config.names) != config.classes:
        raise UserError(f"data.{name}.names holds {len(config.names)} names", expected=f"{config.classes}, one a class")
    folder = config.train if part == "train" else config.val
    if not (root / "images" / folder).is_dir():
        raise UserError(f"no folder {root / 'images' / folder}", expected=LAYOUT)
    images = list_images(root / "images" / folder)
    if not images:
        raise UserError(f"{root / 'images' / folder} holds no picture", expected=LAYOUT)
    first = int(config.reduce_zero_label)
    meaning = {number + first: number for number in range(config.classes)} | dict.fromkeys(config.ignore, IGNORE)
    if config.reduce_zero_label:
        meaning[0] = IGNORE
    return masked_split(
        name, part, root, [(image, root / "annotations" / folder / f"{image.stem}.png") for image in images],
        config.train_limit if part == "train" else config.val_limit,
        meaning=meaning, classes=config.names or [str(number) for number in range(config.classes)],
        expected=f"{config.classes} classes from {first}, or one of ignore {config.ignore}", layout=LAYOUT,
    )  # fmt: skip
