"""A list of IDs and a folder for each truth → the files of a split, and what .npy, .mat and .png files hold.

What multi-task packages have in common. Nothing in a file is executed: .npy files with pickled objects are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eval.datasets.upright import UPRIGHT, size_of, turn_of, turned
from teachers.errors import UserError


def listed(path: Path, layout: str) -> list[str]:
    """The IDs in a list, one a line."""
    try:
        numbers = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the list {path} cannot be read: {error}", expected=layout) from None
    if not numbers:
        raise UserError(f"the list {path} is empty", expected="an ID a line")
    return numbers


def files_of(folder: Path, numbers: Sequence[str], suffix: str, layout: str) -> list[Path] | None:
    """A file for every ID; None where the folder itself is not there (that truth was not fetched)."""
    if not folder.is_dir():
        return None
    files = [folder / f"{number}{suffix}" for number in numbers]
    absent = [file for file in files if not file.is_file()]
    if absent:
        raise UserError(f"{len(absent)} files are not there; the first: {absent[0]}", expected=layout)
    return files


def read_npy(path: Path, image: Path, channels: tuple[int, ...] = ()) -> np.ndarray:
    """An array H×W×channels of numbers, H×W being the size of the picture `image`; a last axis of 1 is dropped."""
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read: {error}", todo="replace the file") from None
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.dtype.kind not in "buif":
        raise UserError(f"{path} holds {values.dtype}", expected="numbers")
    return checked(values, path, image, channels)


def read_png(path: Path, image: Path, channels: tuple[int, ...] = ()) -> np.ndarray:
    """A picture file's numbers, H×W×channels uint8."""
    try:
        with Image.open(path) as file:
            values = np.array(file)
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{path} cannot be decoded: {error}", todo="replace the file") from None
    return checked(values, path, image, channels)


def read_mat(path: Path, name: str) -> Any:
    """A variable of a MATLAB file, structures as dicts and lists of them."""
    from scipy.io import loadmat

    try:
        found = loadmat(path, simplify_cells=True)
    except Exception as error:  # scipy raises many kinds for files that are none of MATLAB's
        raise UserError(f"{path} cannot be read: {error}", expected="a MATLAB file (version 7 or older)") from None
    if name not in found:
        has = ", ".join(key for key in found if not key.startswith("__")) or "nothing"
        raise UserError(f"{path} has no {name}", expected=f"it has {has}")
    return found[name]


def checked(values: np.ndarray, path: Path, image: Path, channels: tuple[int, ...] = ()) -> np.ndarray:
    """`values`, which came from `path`, if their shape is H×W×channels for the picture `image`.

    Those that fit its stored pixels only are turned as the picture is. Vectors are not: each would have to be turned
    too, in a frame that files do not name.
    """
    turn = turn_of(image, values.shape[:2]) if values.shape[2:] == channels else None
    if turn is None:
        sizes = ["×".join(map(str, shape)) for shape in (values.shape, (*size_of(image), *channels))]
        raise UserError(f"{path} is {sizes[0]}, its picture asks for {sizes[1]}")
    if turn != UPRIGHT and channels:
        raise UserError(
            f"{path} holds vectors on the stored pixels of {image}, whose EXIF tag turns it",
            expected="vectors of the picture as it is shown",
            todo="store the picture upright, without the tag, and its truths with it",
        )
    return turned(values, turn)
