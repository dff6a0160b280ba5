"""Pascal Context as multi-task papers use it (PASCAL_MT): classes, parts of people, saliency, normals and boundaries.

Read off the loaders of ASTMT, MTI-Net, ATRC and InvPT, which agree: `ImageSets/Context/{train,val}.txt` hold 4998 and
5105 IDs. Semantic classes are VOC's 21, `semseg/VOC12/ID.png` if it is there, else `semseg/pascal-context/ID.png`; 255
is ignored. `human_parts/ID.mat` is PASCAL-Part's: anno.objects with class_ind (15 = person), mask and parts, each a
part_name and a mask; the later cover the earlier. A picture without any part of a person counts for nothing.
`sal_distill/ID.png` is salient above 127. `normals_distill/ID.png` holds 255 · (n + 1) / 2; the network that it was
distilled from knows rooms only, so normals count where `pascal-context/trainval/ID.mat` (LabelMap, 459 classes) has a
class that NYUDv2 has too. Boundaries are where the Laplacian of LabelMap is not 0, thinned.

Not verified, as no copy of the package was at hand: that the classes of `semseg/pascal-context` are numbered like VOC's
(all loaders treat them alike); the frame of the normals, on which errors do not depend, but the report's colours do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from eval.datasets.label_masks import read_mask
from eval.datasets.nyud import unit_normals
from eval.datasets.split import IGNORE, Split, choose, dated_identity, files_identity, find_root, read_image
from eval.datasets.truth_files import checked, files_of, listed, read_mat, read_png
from eval.datasets.upright import size_of
from eval.datasets.voc import NAMES
from teachers.errors import UserError
from teachers.section import Section

LAYOUT = (
    "JPEGImages/ID.jpg, ImageSets/Context/{train,val}.txt (an ID a line), and any of semseg/{VOC12,pascal-context}/"
    "ID.png, human_parts/ID.mat, sal_distill/ID.png, pascal-context/trainval/ID.mat, normals_distill/ID.png"
)
IGNORED = 255
PERSON = 15
PART_NAMES = ("background", "head", "torso", "upper arm", "lower arm", "upper leg", "lower leg")
PARTS = {  # PASCAL-Part's name → the part
    **dict.fromkeys(("hair", "head", "lear", "rear", "lebrow", "rebrow", "leye", "reye", "mouth", "nose"), 1),
    **dict.fromkeys(("neck", "torso"), 2),
    **dict.fromkeys(("luarm", "ruarm"), 3),
    **dict.fromkeys(("llarm", "rlarm", "lhand", "rhand"), 4),
    **dict.fromkeys(("luleg", "ruleg"), 5),
    **dict.fromkeys(("llleg", "rlleg", "lfoot", "rfoot"), 6),
}
# Classes of LabelMap whose normals count: those that have a namesake among NYUDv2's 894 labels, and tvmonitor (427).
INDOOR = (
    3, 4, 6, 9, 10, 11, 13, 15, 17, 18, 22, 23, 29, 30, 33, 34, 36, 37, 38, 39, 41, 43, 46, 49, 50, 51, 53, 55, 56, 59,
    61, 62, 65, 66, 68, 69, 72, 73, 78, 83, 84, 85, 87, 88, 94, 96, 101, 104, 105, 107, 111, 113, 115, 122, 124, 135,
    141, 142, 143, 146, 150, 154, 157, 158, 159, 165, 172, 174, 181, 183, 184, 191, 193, 195, 197, 199, 202, 213, 215,
    216, 219, 220, 223, 225, 228, 230, 232, 233, 238, 239, 242, 243, 246, 250, 251, 252, 255, 260, 261, 263, 269, 272,
    273, 275, 281, 283, 284, 285, 286, 287, 288, 290, 291, 292, 293, 295, 304, 307, 309, 310, 314, 315, 319, 323, 328,
    330, 331, 336, 342, 345, 349, 350, 351, 352, 355, 357, 368, 370, 371, 374, 378, 379, 382, 384, 397, 401, 403, 405,
    407, 408, 411, 412, 413, 414, 417, 419, 421, 423, 427, 429, 430, 432, 440, 441, 442, 443, 444, 446, 454, 457,
)  # fmt: skip


class Config(Section):
    """Pascal Context, several truths of every pixel."""

    kind: Literal["pascal_context"]
    path: str = Field(description="its folder (PASCAL_MT, PASCALContext), below data_root")
    train: str = Field("train", description="list of the training pictures (4998)")
    val: str = Field("val", description="list of the test pictures (5105)")
    train_limit: Annotated[int, Field(ge=1)] | None = Field(None, description="use so many pictures, drawn once")
    val_limit: Annotated[int, Field(ge=1)] | None = Field(None, description="the same of the test pictures")
    get: str = Field(
        "PASCAL-Context for multi-task learning is at https://data.vision.ee.ethz.ch/brdavid/atrc/PASCALContext.tar.gz",
        description="where to get it",
    )


def open_split(name: str, config: Config, data_root: Path, part: str) -> Split:
    """The train or val part, in its list's order; truths whose folder is absent are not offered."""
    root = find_root(data_root, config.path, LAYOUT, config.get)
    chosen, limit = (config.train, config.train_limit) if part == "train" else (config.val, config.val_limit)
    numbers = listed(root / "ImageSets" / "Context" / f"{chosen}.txt", LAYOUT)
    numbers = [numbers[index] for index in choose(len(numbers), limit, name, part)]
    images = files_of(root / "JPEGImages", numbers, ".jpg", LAYOUT)
    if images is None:
        raise UserError(f"no folder {root / 'JPEGImages'}", expected=LAYOUT)
    masks = _mask_files(root / "semseg", numbers)
    people = files_of(root / "human_parts", numbers, ".mat", LAYOUT)
    salient = files_of(root / "sal_distill", numbers, ".png", LAYOUT)
    labels = files_of(root / "pascal-context" / "trainval", numbers, ".mat", LAYOUT)
    normals = files_of(root / "normals_distill", numbers, ".png", LAYOUT) if labels else None
    truths = [file for files in (masks, people, salient, labels, normals) for file in files or []]
    return Split(
        data=name, part=part, count=len(images), source=f"{root} ({chosen})",
        identity=files_identity([*images, *truths], root), truth_identity=dated_identity(truths, root),
        image=lambda index: read_image(images[index]),
        mask=masks and (lambda index: _mask(masks[index], images[index])),
        parts=people and (lambda index: _parts(people[index], images[index])),
        saliency=salient and (lambda index: _saliency(salient[index], images[index])),
        normals=normals and (lambda index: _normals(normals[index], labels[index], images[index])),
        boundary=labels and (lambda index: _boundary(labels[index], images[index])),
        mask_names=NAMES if masks else (), part_names=PART_NAMES if people else (),
    )  # fmt: skip


def _mask_files(folder: Path, numbers: list[str]) -> list[Path] | None:
    """VOC's own mask of each picture where there is one, else the one made of Pascal Context's."""
    if not folder.is_dir():
        return None
    places = [[folder / source / f"{number}.png" for source in ("VOC12", "pascal-context")] for number in numbers]
    absent = [second for first, second in places if not first.is_file() and not second.is_file()]
    if absent:
        raise UserError(f"{len(absent)} pictures have no mask; the first: {absent[0]} is not there", expected=LAYOUT)
    return [first if first.is_file() else second for first, second in places]


def _mask(path: Path, image: Path) -> Tensor:
    meaning = {number: number for number in range(len(NAMES))} | {IGNORED: IGNORE}
    return read_mask(path, image, meaning, f"classes 0 … {len(NAMES) - 1}, or {IGNORED}")


def _saliency(path: Path, image: Path) -> Tensor:
    return torch.from_numpy(read_png(path, image) > 127).long()


def _parts(path: Path, image: Path) -> Tensor:
    """Parts of all people, later ones over earlier ones; a picture without any is ignored."""
    annotation, target = read_mat(path, "anno"), np.zeros(size_of(image), np.int64)
    try:
        people = [thing for thing in _several(annotation["objects"]) if int(thing["class_ind"]) == PERSON]
        parts = [(part["part_name"], part["mask"]) for person in people for part in _several(person["parts"])]
    except (KeyError, TypeError, IndexError) as error:
        raise UserError(
            f"{path} is not PASCAL-Part's: {type(error).__name__} {error}",
            expected="anno.objects with class_ind and parts, each with part_name and mask",
        ) from None
    for name, mask in parts:
        if name not in PARTS:
            raise UserError(f"{path} names the part {name!r} of a person", expected=f"one of {', '.join(PARTS)}")
        target[checked(np.asarray(mask), path, image).astype(bool)] = PARTS[name]
    return torch.from_numpy(target if target.any() else np.full_like(target, IGNORE))


def _several(structures: Any) -> list[dict]:
    """MATLAB's structure arrays, of which one alone is read as a dict and none as an empty array."""
    return [structures] if isinstance(structures, dict) else list(structures)


def _label_map(path: Path, image: Path) -> np.ndarray:
    return checked(np.asarray(read_mat(path, "LabelMap")).astype(np.int64), path, image)


def _normals(path: Path, labels: Path, image: Path) -> Tensor:
    vectors = 2 * read_png(path, image, (3,)).astype(np.float32) / 255 - 1
    vectors[~np.isin(_label_map(labels, image), INDOOR)] = np.nan
    return unit_normals(vectors)


def _boundary(labels: Path, image: Path) -> Tensor:
    from scipy.ndimage import laplace
    from skimage.morphology import thin

    return torch.from_numpy(thin(laplace(_label_map(labels, image), mode="mirror") != 0)).long()
