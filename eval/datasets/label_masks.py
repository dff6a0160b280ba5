"""Mask files (a label number a pixel) beside picture files → a split with masks of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eval.datasets.split import Split, choose, dated_identity, files_identity, read_image
from eval.datasets.upright import size_of, turn_of, turned
from teachers.errors import UserError

UNKNOWN = -1


def masked_split(
    name: str,
    part: str,
    root: Path,
    pairs: Sequence[tuple[Path, Path]],
    limit: int | None,
    *,
    meaning: Mapping[int, int],
    classes: Sequence[str],
    expected: str,
    layout: str,
) -> Split:
    """Pictures with a class for every pixel; `UserError` where a file is absent.

    Args:
        pairs: (picture, mask); `limit` of them are used.
        meaning: number in the files → class, or `IGNORE`.
        classes: their names.
        expected: the numbers in words.
        layout: of the whole data set, in words.
    """
    pairs = [pairs[index] for index in choose(len(pairs), limit, name, part)]
    images, masks = [image for image, _ in pairs], [mask for _, mask in pairs]
    for files, complaint in ((images, "pictures are not there"), (masks, "pictures have no mask")):
        absent = [file for file in files if not file.is_file()]
        if absent:
            raise UserError(f"{len(absent)} {complaint}; the first: {absent[0]} is not there", expected=layout)

    def mask(index: int) -> Tensor:
        return read_mask(masks[index], images[index], meaning, expected)

    return Split(
        data=name, part=part, count=len(pairs), source=f"{root} ({part})", identity=files_identity(images, root),
        truth_identity=dated_identity(masks, root), image=lambda index: read_image(images[index]), mask=mask,
        mask_names=tuple(classes),
    )  # fmt: skip


def read_mask(path: Path, image: Path, meaning: Mapping[int, int], expected: str) -> Tensor:
    """A mask file as classes and `IGNORE`, H×W long; of a palette picture the palette's numbers count.

    One that fits only the stored pixels of its picture is turned as the picture is. Raises `UserError` for a file that
    cannot be decoded, is not of its picture's size, or holds a number that `meaning` lacks.
    """
    try:
        with Image.open(path) as file:
            raw = np.array(file)
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{path} cannot be decoded: {error}", todo="replace the file") from None
    if raw.ndim != 2:
        raise UserError(f"{path} has {raw.shape[-1]} channels", expected="one channel of label numbers")
    turn = turn_of(image, raw.shape)
    if turn is None:
        raise UserError("{} is {}×{}, its picture {}×{}".format(path, *raw.shape, *size_of(image)))
    raw = turned(raw, turn).astype(np.int64)
    table = np.full(max(meaning) + 2, UNKNOWN)  # the last place is for all numbers beyond
    table[list(meaning)] = list(meaning.values())
    labels = table[np.where((raw < 0) | (raw > max(meaning)), len(table) - 1, raw)]
    wrong = raw[labels == UNKNOWN]
    if wrong.size:
        raise UserError(f"{path} holds the label {wrong[0]}", expected=expected)
    return torch.from_numpy(labels)
