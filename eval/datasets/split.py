"""What every data set becomes: a `Split`, numbered pictures with whatever truth comes with them.

Pictures are uint8 tensors 3×H×W, upright as their EXIF tag says; every truth a pixel (mask, depth, ...) has the size of
the picture as it is shown, masks are long tensors H×W. The centre of row i, column j lies at x = j + 0.5, y = i + 0.5.
A truth in a file that fits the stored pixels only is turned as the picture is. Where sizes cannot tell (a square, a
half turn, a mirror) it is taken to be of the picture as shown (eval/datasets/upright.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from radio_distill.views import BadPicture, to_rgb
from teachers.errors import UserError
from teachers.features import Size, identity_of
from teachers.seeding import numpy_rng

IGNORE = 255  # the label of mask pixels that count for nothing
WORDS = {  # a truth → as messages call it
    "label": "labels", "captions": "captions", "questions": "questions", "mask": "masks", "parts": "part masks",
    "saliency": "saliency masks", "boundary": "boundaries", "depth": "depth", "normals": "surface normals",
    "points": "object points", "instances": "instances", "view_pairs": "pairs of views",
    "keypoint_pairs": "pairs with keypoints",
}  # fmt: skip
TRUTHS = tuple(WORDS)
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


class Question(NamedTuple):
    """A question about a picture; any of `answers` (lower case) is right."""

    text: str
    answers: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Instances:
    """The things in one picture, in pixels of the picture itself."""

    boxes: Tensor  # n×4 float: x0, y0, x1, y1 (x1, y1 exclusive)
    classes: Tensor  # n long, indices into `thing_names`
    masks: Callable[[], Tensor]  # n×H×W bool, decoded when asked for
    areas: Tensor  # n float, pixels of the mask: decides small, medium, large
    crowd: Tensor  # n bool: a group that is neither found nor missed
    size: Size | None = None  # of the picture, (height, width), where it is known without decoding the picture


@dataclass(frozen=True, eq=False)
class ViewPair:
    """Two pictures of one thing whose points share a frame."""

    first: int
    second: int  # numbers of pictures
    angle: float  # degrees that turn one camera into the other, roll included; NaN where unknown


@dataclass(frozen=True, eq=False)
class KeypointPair:
    """Two pictures of two things of one class, and points that mean the same on both."""

    first: int
    second: int
    source: Tensor  # K×2 float: x, y in pixels of the first picture
    targets: Tensor  # K×E×2 float in the second: E places that are equally right (symmetry), NaN where there are fewer
    scale: float  # the longer side of the second thing's box, in pixels
    category: str


@dataclass(frozen=True)
class Split:
    """The train or val part of a data set; a truth that it does not have is None."""

    data: str  # its name in the recipe
    part: str  # train or val
    count: int
    identity: str  # changes with the pictures, alike on every machine: the key of features, and what recipes expect
    source: str  # where it comes from, in words
    truth_identity: str = field(default="", kw_only=True)  # changes with the truths, where files of others hold them
    truths_crop: bool = field(default=False, kw_only=True)  # which part of a file is the picture, a truth decides
    image: Callable[[int], Tensor] = field(repr=False)
    label: Callable[[int], int] | None = field(default=None, repr=False)
    captions: Callable[[int], list[str]] | None = field(default=None, repr=False)
    questions: Callable[[int], list[Question]] | None = field(default=None, repr=False)
    mask: Callable[[int], Tensor] | None = field(default=None, repr=False)  # classes, and IGNORE
    parts: Callable[[int], Tensor] | None = field(default=None, repr=False)  # 0 = background, and IGNORE
    saliency: Callable[[int], Tensor] | None = field(default=None, repr=False)  # 0, 1, and IGNORE
    boundary: Callable[[int], Tensor] | None = field(default=None, repr=False)  # 0, 1, and IGNORE
    depth: Callable[[int], Tensor] | None = field(default=None, repr=False)  # H×W float, metres; NaN: unknown
    normals: Callable[[int], Tensor] | None = field(default=None, repr=False)  # 3×H×W float, unit; NaN: unknown
    points: Callable[[int], Tensor] | None = field(default=None, repr=False)  # 3×H×W float, metres; NaN: off the thing
    instances: Callable[[int], Instances] | None = field(default=None, repr=False)
    view_pairs: Sequence[ViewPair] | None = field(default=None, repr=False)
    keypoint_pairs: Sequence[KeypointPair] | None = field(default=None, repr=False)
    scenes: Sequence[int] | None = field(default=None, repr=False)  # of each picture, where a scene has several
    class_names: tuple[str, ...] = ()  # of labels
    mask_names: tuple[str, ...] = ()  # of mask values
    part_names: tuple[str, ...] = ()  # of part values; [0] is the background
    thing_names: tuple[str, ...] = ()  # of instances' classes
    prompts: Mapping[str, Sequence[str]] | None = field(default=None, repr=False)  # class name → texts
    shape: Size | None = None  # of every picture, where they are alike

    def __str__(self) -> str:
        return f"{self.data}/{self.part}"

    def truth(self, kind: str) -> Any:
        """What this data set knows of its pictures (one of `TRUTHS`); raises `UserError` where it does not."""
        if getattr(self, kind) is None:
            has = ", ".join(WORDS[name] for name in TRUTHS if getattr(self, name) is not None) or "pictures only"
            raise UserError(f"data set {self.data!r} has no {WORDS[kind]}", expected=f"it has: {has}")
        return getattr(self, kind)

    def labels(self) -> Tensor:
        """All labels, `count`."""
        label = self.truth("label")
        return torch.tensor([label(index) for index in range(self.count)], dtype=torch.long)


def read_image(path: Path) -> Tensor:
    """A picture file as uint8 3×H×W, upright."""
    try:
        with Image.open(path) as image:
            pixels = np.array(to_rgb(ImageOps.exif_transpose(image)))
    except (OSError, ValueError, SyntaxError, BadPicture) as error:  # Pillow raises any of these on damaged files
        raise UserError(f"{path} cannot be decoded: {error}", todo="replace the file, or remove it") from None
    return torch.from_numpy(pixels).permute(2, 0, 1)


def find_root(data_root: Path, path: str, layout: str, get: str) -> Path:
    """The folder of a data set; where it is absent, says how it should look and where to get it."""
    root = Path(path).expanduser()
    root = root if root.is_absolute() else data_root / root
    if not root.is_dir():
        raise UserError(
            f"no data set at {root}",
            expected=layout,
            todo=f"{get}; put it there, or point --data-root at the folder that holds '{path}'",
        )
    return root


def choose(count: int, limit: int | None, *parts: str | int) -> list[int]:
    """All of `count`, or `limit` of them: the same ones every time, in order."""
    if limit is None or limit >= count:
        return list(range(count))
    return sorted(numpy_rng("subset", *parts).permutation(count)[:limit].tolist())


def files_identity(files: Sequence[Path], root: Path, *notes: object) -> str:
    """A hash of names and sizes of `files` (reading a million pictures would take hours) and of `notes`.

    It is the same on every machine, so `Split.identity` is made of it, which recipes `expect`.
    """
    listing = [(str(file.relative_to(root)), file.stat().st_size) for file in files]
    return identity_of({}, listing, *notes)


def contents_identity(files: Sequence[Path], root: Path, *notes: object) -> str:
    """A hash of names and contents of `files`, and of `notes`: of annotations, which are few and are read anyway."""
    listing = [(str(file.relative_to(root)), hashlib.sha256(file.read_bytes()).hexdigest()) for file in files]
    return identity_of({}, listing, *notes)


def dated_identity(files: Sequence[Path], root: Path, *notes: object) -> str:
    """A hash of names, sizes and times of change of `files`, and of `notes`: of a truth a picture, and of weights.

    An array that is corrected in place keeps its size. Contents would tell, but a run that has nothing to score would
    still read gigabytes, or tens of thousands of small files over a network; times cost nothing. The price: a copy that
    does not keep them (`cp` without `-a`) is scored again. That is why they are no part of `Split.identity`.
    """
    status = [(file, file.stat()) for file in files]
    listing = [(str(file.relative_to(root)), found.st_size, found.st_mtime_ns) for file, found in status]
    return identity_of({}, listing, *notes)


def weights_identity(folder: Path) -> str:
    """`dated_identity` of a folder of weights; hidden files, such as downloads are noted down in, do not count."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    shown = [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
    return dated_identity(shown, folder)


def list_images(folder: Path) -> list[Path]:
    """The picture files right inside `folder`, sorted."""
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
