"""What the writers of all layouts share: which scene is a picture, and how files of each format are written.

Every byte is a function of the plan: no time, no user and no order of workers goes into a file.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from eval.tabletop.layout import main_thing
from eval.tabletop.render import Scene, render
from eval.tabletop.shards import encode

MAT_HEADER = b"MATLAB 5.0 MAT-file, written by eval.tabletop".ljust(116)  # scipy's own has the time in it


class Plan(NamedTuple):
    """What is written."""

    seed: int
    scenes: int  # pictures of a part, about; each data set says how many of which


class Item(NamedTuple):
    """One piece of work: mostly a picture."""

    part: str
    number: int  # within the part, from 0
    key: str = ""  # a class, an object


def split_of(data: str, part: str) -> str:
    """The split of scenes that a part of a data set shows: no two parts share one."""
    return f"layout-{data}-{part}"


def scene(plan: Plan, data: str, part: str, index: int, size: tuple[int, int], view: int = 0) -> Scene:
    """A scene of `size` (height, width) pixels that belongs to this part of this data set."""
    return render(plan.seed, split_of(data, part), index, size, view)


def indices(plan: Plan, data: str, part: str, **looks: str) -> Iterator[int]:
    """The scenes, in order, whose main thing looks so: `kind="ball", colour="orange"`."""
    for index in itertools.count():
        thing = main_thing(plan.seed, split_of(data, part), index)
        if all(getattr(thing, key) == value for key, value in looks.items()):
            yield index


def index_of(plan: Plan, data: str, part: str, number: int, **looks: str) -> int:
    """The `number`-th of them."""
    return next(itertools.islice(indices(plan, data, part, **looks), number, None))


def parts_of(*counts: tuple[str, int]) -> list[Item]:
    """(part, pictures) → an item a picture."""
    return [Item(part, number) for part, count in counts for number in range(count)]


def save_jpeg(path: Path, pixels: np.ndarray) -> None:
    """H×W×3 uint8."""
    save_bytes(path, encode(pixels, "jpg"))


def save_png(path: Path, values: np.ndarray, palette: Sequence[int] | None = None) -> None:
    """H×W uint8 or uint16, or H×W×3 uint8; with a palette (3 numbers a colour) the values are its places."""
    picture, buffer = Image.fromarray(values), io.BytesIO()
    if palette is not None:
        picture = picture.convert("P")
        picture.putdata(values.ravel().tolist())
        picture.putpalette(palette)
    picture.save(buffer, "PNG")
    save_bytes(path, buffer.getvalue())


def save_npy(path: Path, values: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, values)
    save_bytes(path, buffer.getvalue())


def save_mat(path: Path, variables: dict[str, Any]) -> None:
    """A MATLAB 5 file, compressed as MATLAB's own are."""
    from scipy.io import savemat

    buffer = io.BytesIO()
    savemat(buffer, variables, do_compression=True)
    save_bytes(path, MAT_HEADER + buffer.getvalue()[len(MAT_HEADER) :])


def save_json(path: Path, document: Any) -> None:
    save_bytes(path, json.dumps(document).encode())


def save_lines(path: Path, lines: Sequence[str]) -> None:
    save_bytes(path, "".join(f"{line}\n" for line in lines).encode())


def save_bytes(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def polygons(mask: np.ndarray) -> list[list[float]]:
    """H×W bool → its outlines as COCO has them, [x, y, x, y, ...] in pixels, three points or more each.

    They go through the middles of the pixels' outer sides, so a rasterised outline is the mask but for corners.
    """
    from skimage.measure import approximate_polygon, find_contours

    found = []
    for line in find_contours(np.pad(mask, 1).astype(np.float32), 0.5):
        points = approximate_polygon(line, 0.3)[:-1, ::-1] - 0.5  # row, column, of pixel middles, padded by one
        if len(points) >= 3:
            found.append([round(float(value), 2) for value in points.clip(0, mask.shape[::-1]).ravel()])
    return found
