"""What every data set becomes: a `Split`, numbered pictures with whatever truth comes with them.

Pictures are uint8 tensors 3×H×W; a mask is a long tensor H×W of the picture's own size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from radio_distill.views import BadPicture, to_rgb
from teachers.errors import UserError
from teachers.features import Size, identity_of
from teachers.seeding import numpy_rng

IGNORE = 255  # the label of mask pixels that count for nothing
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


@dataclass(frozen=True)
class Split:
    """The train or val part of a data set; a truth that it does not have is None."""

    data: str  # its name in the recipe
    part: str  # train or val
    count: int
    identity: str  # changes with the pictures: the key of cached features
    source: str  # where it comes from, in words
    image: Callable[[int], Tensor] = field(repr=False)
    label: Callable[[int], int] | None = field(default=None, repr=False)
    captions: Callable[[int], list[str]] | None = field(default=None, repr=False)
    mask: Callable[[int], Tensor] | None = field(default=None, repr=False)
    class_names: tuple[str, ...] = ()  # of labels
    mask_names: tuple[str, ...] = ()  # of mask values
    prompts: Mapping[str, Sequence[str]] | None = field(default=None, repr=False)  # class name → texts
    shape: Size | None = None  # of every picture, where they are alike

    def __str__(self) -> str:
        return f"{self.data}/{self.part}"

    def truth(self, kind: str) -> Callable:
        """`label`, `captions` or `mask`; raises `UserError` where this data set has none."""
        known = {"label": self.label, "captions": self.captions, "mask": self.mask}
        if known[kind] is None:
            has = ", ".join(name for name, value in known.items() if value is not None) or "pictures only"
            raise UserError(f"data set {self.data!r} has no {kind}s".replace("ss ", "s "), expected=f"it has: {has}")
        return known[kind]

    def labels(self) -> Tensor:
        """All labels, `count`."""
        label = self.truth("label")
        return torch.tensor([label(index) for index in range(self.count)], dtype=torch.long)


def read_image(path: Path) -> Tensor:
    """A picture file as uint8 3×H×W."""
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
    """A hash of names and sizes of `files` (reading a million pictures would take hours) and of `notes`."""
    listing = [(str(file.relative_to(root)), file.stat().st_size) for file in files]
    return identity_of({}, listing, *notes)


def list_images(folder: Path) -> list[Path]:
    """The picture files right inside `folder`, sorted."""
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
