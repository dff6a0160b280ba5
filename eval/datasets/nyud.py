"""NYUDv2 as multi-task papers use it (NYUD_MT, NYUDv2): rooms with classes, depth, normals and boundaries.

Read off the loaders of MTI-Net, ATRC and InvPT, which agree: `gt_sets/{train,val}.txt` hold 795 and 654 IDs;
`segmentation/ID.png` 0 = unlabelled, 1 … 40 the classes (the 40-class task ignores 0); `depth/ID.npy` metres, 0 =
unknown; `normals/ID.npy` H×W×3, (0, 0, 0) = unknown; `edge/ID.npy` 0 or 1. ASTMT's older package of the same name keeps
.mat and .png files instead and cannot be read here. Not verified: the frame of the normals. Errors do not depend on it,
the colours in which the report shows normals do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from eval.datasets.label_masks import read_mask
from eval.datasets.split import IGNORE, Split, choose, dated_identity, files_identity, find_root, read_image
from eval.datasets.truth_files import files_of, listed, read_npy
from teachers.errors import UserError
from teachers.section import Section

LAYOUT = (
    "images/ID.jpg (or .png), gt_sets/{train,val}.txt (an ID a line), and any of segmentation/ID.png, depth/ID.npy, "
    "normals/ID.npy, edge/ID.npy"
)
NAMES = (  # Gupta, Arbeláez, Malik 2013
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture", "counter",
    "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat", "clothes", "ceiling", "books",
    "refrigerator", "television", "paper", "towel", "shower curtain", "box", "whiteboard", "person", "night stand",
    "toilet", "sink", "lamp", "bathtub", "bag", "other structure", "other furniture", "other prop",
)  # fmt: skip
UNLABELLED, IGNORED = 0, 255


class Config(Section):
    """NYUDv2, several truths of every pixel."""

    kind: Literal["nyud"]
    path: str = Field(description="its folder (NYUD_MT, NYUDv2), below data_root")
    train: str = Field("train", description="list of the training pictures (795)")
    val: str = Field("val", description="list of the test pictures (654)")
    train_limit: Annotated[int, Field(ge=1)] | None = Field(None, description="use so many pictures, drawn once")
    val_limit: Annotated[int, Field(ge=1)] | None = Field(None, description="the same of the test pictures")
    get: str = Field(
        "NYUDv2 for multi-task learning is at https://data.vision.ee.ethz.ch/brdavid/atrc/NYUDv2.tar.gz",
        description="where to get it",
    )


def open_split(name: str, config: Config, data_root: Path, part: str) -> Split:
    """The train or val part, in its list's order; truths whose folder is absent are not offered."""
    root = find_root(data_root, config.path, LAYOUT, config.get)
    chosen, limit = (config.train, config.train_limit) if part == "train" else (config.val, config.val_limit)
    numbers = listed(root / "gt_sets" / f"{chosen}.txt", LAYOUT)
    numbers = [numbers[index] for index in choose(len(numbers), limit, name, part)]
    suffix = ".jpg" if (root / "images" / f"{numbers[0]}.jpg").is_file() else ".png"
    images = files_of(root / "images", numbers, suffix, LAYOUT)
    if images is None:
        raise UserError(f"no folder {root / 'images'}", expected=LAYOUT)
    masks = files_of(root / "segmentation", numbers, ".png", LAYOUT)
    depths, normals, edges = (
        files_of(root / folder, numbers, ".npy", LAYOUT) for folder in ("depth", "normals", "edge")
    )
    truths = [file for files in (masks, depths, normals, edges) for file in files or []]
    return Split(
        data=name, part=part, count=len(images), source=f"{root} ({chosen})",
        identity=files_identity([*images, *truths], root), truth_identity=dated_identity(truths, root),
        image=lambda index: read_image(images[index]),
        mask=masks and (lambda index: _mask(masks[index], images[index])),
        depth=depths and (lambda index: _depth(depths[index], images[index])),
        normals=normals and (lambda index: _normals(normals[index], images[index])),
        boundary=edges and (lambda index: _edges(edges[index], images[index])),
        mask_names=NAMES if masks else (),
    )  # fmt: skip


def _mask(path: Path, image: Path) -> Tensor:
    meaning = {number + 1: number for number in range(len(NAMES))} | {UNLABELLED: IGNORE, IGNORED: IGNORE}
    return read_mask(path, image, meaning, f"classes 1 … {len(NAMES)}, or {UNLABELLED} or {IGNORED}, which are ignored")


def _depth(path: Path, image: Path) -> Tensor:
    depth = torch.from_numpy(read_npy(path, image).astype(np.float32))
    return depth.masked_fill(~(depth > 0), torch.nan)


def _normals(path: Path, image: Path) -> Tensor:
    return unit_normals(read_npy(path, image, (3,)))


def _edges(path: Path, image: Path) -> Tensor:
    return torch.from_numpy(read_npy(path, image) > 0).long()


def unit_normals(values: np.ndarray) -> Tensor:
    """Vectors H×W×3 → normals 3×H×W of length 1; NaN where a vector has none, or is none."""
    vectors = torch.from_numpy(values.astype(np.float32)).movedim(-1, 0)
    known = vectors.isfinite().all(dim=0) & (vectors != 0).any(dim=0)
    return F.normalize(vectors, dim=0).masked_fill(~known, torch.nan)
