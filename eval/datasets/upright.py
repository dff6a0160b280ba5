"""A picture's EXIF tag → its size as it is shown, and truths drawn on the stored pixels turned as the picture is.

Cameras store a picture as the sensor saw it, with a tag that says how to hold it. `read_image` heeds the tag; tools
that do not draw on the stored pixels. The two differ in size where the tag swaps height and width and the picture is no
square: only there can a truth that fits the stored pixels be told, and turned. All others are of the picture as shown.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from radio_distill.views import orientation
from teachers.errors import UserError
from teachers.features import Size

UPRIGHT = 1  # of EXIF's orientations; 5 (mirrored), 6, 7 (mirrored) and 8 lie on their sides
DOWNWARDS, LEFTWARDS = (7, 8), (6, 7)  # where stored columns and rows, the axes swapped, have to be reversed


def size_of(image: Path) -> Size:
    """Height and width of a picture file as it is shown."""
    return _header(image)[0]


def turn_of(image: Path, size: Size) -> int | None:
    """The EXIF orientation by which a truth of `size` has to be turned to lie on its picture; None: it fits neither."""
    shown, tag = _header(image)
    if tuple(size) == shown:
        return UPRIGHT
    return tag if tag > 4 and tuple(size) == shown[::-1] else None


def turned(values: np.ndarray, turn: int) -> np.ndarray:
    """What lies on the stored pixels, H×W×..., on those that are shown (`turn_of`)."""
    if turn == UPRIGHT:
        return values
    swapped = values.swapaxes(0, 1)[:: _step(turn in DOWNWARDS), :: _step(turn in LEFTWARDS)]
    return np.ascontiguousarray(swapped)


def turned_boxes(boxes: Tensor, size: Size, turn: int) -> Tensor:
    """The same of boxes n×4 (x0, y0, x1, y1) in a picture whose stored pixels are `size`."""
    if turn == UPRIGHT:
        return boxes
    columns, rows = boxes[:, [1, 3]], boxes[:, [0, 2]]
    columns = size[0] - columns.flip(1) if turn in LEFTWARDS else columns
    rows = size[1] - rows.flip(1) if turn in DOWNWARDS else rows
    return torch.stack([columns[:, 0], rows[:, 0], columns[:, 1], rows[:, 1]], dim=1)


def _step(backwards: bool) -> int:
    return -1 if backwards else 1


def _header(image: Path) -> tuple[Size, int]:
    """The size as shown, and the EXIF orientation."""
    try:
        with Image.open(image) as file:
            size, tag = (file.height, file.width), orientation(file)
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{image} cannot be decoded: {error}", todo="replace the file") from None
    return (size[::-1] if tag > 4 else size), tag
