"""ADE20K layout: `images/{training,validation}/*.jpg`, `annotations/.../*.png` → pictures with masks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from eval.datasets.split import IGNORE, Split, choose, files_identity, find_root, list_images, read_image
from radio_distill.documents import Section
from teachers.errors import UserError

LAYOUT = "images/{training,validation}/NAME.jpg and annotations/{training,validation}/NAME.png (a label number a pixel)"


class Config(Section):
    """Pictures with a class for every pixel."""

    kind: Literal["masks"]
    path: str = Field(description="its folder, below data_root")
    classes: Annotated[int, Field(ge=2, le=255)] = Field(description="number of classes that count")
    reduce_zero_label: bool = Field(False, description="0 = unlabelled, classes from 1 (ADE20K); else classes from 0")
    ignore: list[int] = Field([255], description="label numbers in the files that count for nothing")
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
    limit = config.train_limit if part == "train" else config.val_limit
    images = [images[index] for index in choose(len(images), limit, name, part)]
    masks = [root / "annotations" / folder / f"{image.stem}.png" for image in images]
    absent = [mask for mask in masks if not mask.is_file()]
    if absent:
        raise UserError(f"{len(absent)} pictures have no mask; the first: {absent[0]} is not there", expected=LAYOUT)
    return Split(
        data=name, part=part, count=len(images), source=f"{root} ({folder})", identity=files_identity(images, root),
        image=lambda index: read_image(images[index]), mask=lambda index: _read(masks[index], images[index], config),
        mask_names=tuple(config.names or map(str, range(config.classes))),
    )  # fmt: skip


def _read(path: Path, image: Path, config: Config) -> Tensor:
    """A mask file as labels 0 … classes − 1, and `IGNORE`."""
    try:
        with Image.open(path) as file:
            raw = np.array(file)
            expected_size = _size_of(image)
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{path} cannot be decoded: {error}", todo="replace the file") from None
    if raw.ndim != 2:
        raise UserError(f"{path} has {raw.shape[-1]} channels", expected="one channel of label numbers")
    if raw.shape != expected_size:
        raise UserError(f"{path} is {raw.shape[0]}×{raw.shape[1]}, its picture {expected_size[0]}×{expected_size[1]}")
    labels = torch.from_numpy(raw.astype(np.int64))
    ignored = torch.isin(labels, torch.tensor(config.ignore)) | (labels == 0 if config.reduce_zero_label else False)
    labels = labels - 1 if config.reduce_zero_label else labels
    wrong = labels[~ignored & ((labels < 0) | (labels >= config.classes))]
    if wrong.numel():
        number = int(wrong[0]) + config.reduce_zero_label
        raise UserError(
            f"{path} holds the label {number}",
            expected=f"{config.classes} classes from {int(config.reduce_zero_label)}, or one of ignore {config.ignore}",
        )
    return labels.masked_fill(ignored, IGNORE)


def _size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.height, image.width
