"""NAVI layout: photographs of scanned objects with depth and cameras → views whose points share the object's frame.

OBJECT/SCENE/ holds annotations.json, images/ and depth/; a SCENE is `wild_set` (one object before many backgrounds) or
begins with `multiview` (one object in one place). An annotation: filename, image_size [height, width], and camera {q:
[w, x, y, z], t: millimetres, focal_length: pixels of that size}, which takes points of the object to the camera's
frame; the principal point is the picture's middle. depth/NAME.png has 16 bits of inverse depth: a pixel v > 0 lies at
65535 · 10 / v millimetres, 0 is off the object. (Read of https://github.com/google/navi, data_util.py.)

As Probe3D (arXiv 2404.08636) sees it: the train part is the multi-view scenes, the val part the wild sets; of each
picture the square around the object; every fourth picture is paired with one of its scene from within 120°.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from eval.datasets.cameras import Camera, normals_of, turn_between
from eval.datasets.lazy import Lazy
from eval.datasets.split import (
    Split,
    ViewPair,
    choose,
    contents_identity,
    dated_identity,
    files_identity,
    find_root,
    read_image,
)
from radio_distill.views import resize
from teachers.errors import UserError
from teachers.features import Size
from teachers.section import Section
from teachers.seeding import numpy_rng

LAYOUT = "OBJECT/{wild_set,multiview*}/{annotations.json,images/NAME.jpg,depth/NAME.png}"
NOTE = "filename, image_size: [height, width], camera: {q: [w, x, y, z], t: [x, y, z], focal_length}"
DISPARITY = 65535 * 10 / 1000  # a pixel of value v lies at DISPARITY / v metres


class Config(Section):
    """Photographs of objects with depth, normals and points, in pairs of views."""

    kind: Literal["navi"]
    path: str = Field(description="its folder, below data_root")
    size: Annotated[int, Field(ge=1)] = Field(512, description="side of the square around the object, pixels")
    train: str = Field("multiview", description="what the scenes of the train part begin with")
    val: str = Field("wild_set", description="the same of the val part")
    train_limit: Annotated[int, Field(ge=1)] | None = Field(None, description="use so many pictures, drawn once")
    val_limit: Annotated[int, Field(ge=1)] | None = Field(None, description="the same of the test pictures")
    every: Annotated[int, Field(ge=1)] = Field(4, description="each so-many-th picture is the first of a pair")
    max_angle: Annotated[float, Field(gt=0, le=180)] = Field(120, description="degrees between the views of a pair")
    get: str = Field("NAVI v1 is at https://github.com/google/navi", description="where to get it")


@dataclass(frozen=True, eq=False)
class Photo:
    """One photograph of an object."""

    scene: Path
    image: Path
    depth: Path
    size: Size  # as annotated; the files may have been shrunk
    focal: float  # pixels of that size
    rotation: Tensor  # 3×3, object → camera
    position: Tensor  # 3, the camera in the object's frame, metres


@dataclass(frozen=True, eq=False)
class Square:
    """The depth of the square around the object, on a grid of size × size."""

    box: tuple[int, int, int]  # top, left and side in the file
    depth: Tensor  # size×size float64, metres, NaN off the object
    local: Tensor  # 3×size×size, in the camera's frame
    full: Size  # of the file


def open_split(name: str, config: Config, data_root: Path, part: str) -> Split:
    """The train or val part, sorted by object, scene and file; depth is read when asked for."""
    root = find_root(data_root, config.path, LAYOUT, config.get)
    prefix, limit = (config.train, config.train_limit) if part == "train" else (config.val, config.val_limit)
    files = sorted(root.glob(f"*/{prefix}*/annotations.json"))
    if not files:
        raise UserError(f"{root} holds no scene that begins with {prefix!r}", expected=LAYOUT)
    photos = [photo for file in files for photo in _read_scene(file)]
    photos = [photos[index] for index in choose(len(photos), limit, name, part)]
    used = [path for photo in photos for path in (photo.image, photo.depth)]
    absent = [path for path in used if not path.is_file()]
    if absent:
        raise UserError(f"{len(absent)} files are not there, such as {absent[0]}", expected=LAYOUT)

    objects = sorted({photo.scene.parent for photo in photos})

    def square(index: int) -> Square:
        return _square(photos[index], config.size)

    def points(index: int) -> Tensor:
        return _camera(photos[index], square(index).full).world(square(index).local).float()

    return Split(
        data=name, part=part, count=len(photos), shape=(config.size, config.size),
        source=f"{root} ({prefix}, {len(files)} scenes)",
        identity=files_identity([*files, *used], root, config.size), truths_crop=True,
        truth_identity=dated_identity([photo.depth for photo in photos], root, contents_identity(files, root)),
        image=lambda index: _image(photos[index], square(index), config.size),
        depth=lambda index: square(index).depth.float(), normals=lambda index: normals_of(square(index).local).float(),
        points=points, view_pairs=Lazy(lambda: _pairs(photos, config)),
        scenes=[objects.index(photo.scene.parent) for photo in photos],
    )  # fmt: skip


def _read_scene(file: Path) -> list[Photo]:
    try:
        notes = json.loads(file.read_text(encoding="utf-8"))
        photos = [_photo(file.parent, note) for note in notes]
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}", expected=LAYOUT) from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file} is not NAVI's: {type(error).__name__} {error}", expected=f"a list of {NOTE}") from None
    return sorted(photos, key=lambda photo: photo.image.name)


def _photo(scene: Path, note: dict[str, Any]) -> Photo:
    from scipy.spatial.transform import Rotation

    camera, name = note["camera"], note["filename"]
    w, x, y, z = camera["q"]
    rotation = torch.from_numpy(Rotation.from_quat((x, y, z, w)).as_matrix())
    position = -rotation.T @ torch.tensor(camera["t"], dtype=torch.float64) / 1000
    height, width = note["image_size"]
    depth = scene / "depth" / f"{Path(name).stem}.png"
    focal = float(camera["focal_length"])
    return Photo(scene, scene / "images" / name, depth, (int(height), int(width)), focal, rotation, position)


def _camera(photo: Photo, full: Size) -> Camera:
    """The camera of a file of size `full`."""
    focal = photo.focal * full[0] / photo.size[0]
    intrinsics = [[focal, 0, full[1] / 2], [0, focal, full[0] / 2], [0, 0, 1]]
    return Camera(torch.tensor(intrinsics, dtype=torch.float64), photo.rotation, photo.position)


@lru_cache(maxsize=32)  # 8 MB each at 512 px; the truths of one picture are asked for one after another
def _square(photo: Photo, size: int) -> Square:
    depth = _read_depth(photo)
    rows, columns = (np.flatnonzero(np.isfinite(depth).any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        raise UserError(f"{photo.depth} is 0 everywhere", expected="inverse depth on the object")
    side = min(max(np.ptp(rows), np.ptp(columns)) + 1, *depth.shape)
    top, left = (_begin(seen, side, whole) for seen, whole in zip((rows, columns), depth.shape))
    steps = (np.arange(size) + 0.5) * side / size  # of the pixel that is nearest, its own centre is used below
    rows, columns = (begin + steps.astype(np.int64) for begin in (top, left))
    grid = torch.from_numpy(depth[np.ix_(rows, columns)])
    local = _camera(photo, depth.shape).local(grid, torch.from_numpy(columns + 0.5), torch.from_numpy(rows + 0.5))
    return Square((top, left, int(side)), grid, local, depth.shape)


def _begin(seen: np.ndarray, side: int, whole: int) -> int:
    """Where a stretch of `side` pixels begins that has the middle of `seen` in its middle, and lies within `whole`."""
    return int(np.clip((seen[0] + seen[-1] + 1 - side) // 2, 0, whole - side))


def _read_depth(photo: Photo) -> np.ndarray:
    """A depth file, metres, NaN off the object."""
    try:
        with Image.open(photo.depth) as file:
            raw = np.array(file)
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{photo.depth} cannot be decoded: {error}", todo="replace the file") from None
    if raw.ndim != 2 or raw.dtype == np.uint8:
        raise UserError(f"{photo.depth} is no 16-bit grey picture", expected="inverse depth in 16 bits")
    _check_aspect(photo, photo.depth, raw.shape)
    return np.divide(DISPARITY, raw, out=np.full(raw.shape, np.nan), where=raw > 0)


def _check_aspect(photo: Photo, path: Path, size: Size) -> None:
    if abs(size[0] * photo.size[1] - size[1] * photo.size[0]) > max(photo.size):  # shrinking rounds by a pixel
        raise UserError(
            "{} is {}×{}, the annotation says {}×{}".format(path, *size, *photo.size),
            expected="files as NAVI has them, or all shrunk alike",
        )


def _image(photo: Photo, square: Square, size: int) -> Tensor:
    """The picture of the square, uint8 3×size×size."""
    image = read_image(photo.image)
    if tuple(image.shape[1:]) != square.full:
        raise UserError(
            "{} is {}×{}, its depth {}×{}".format(photo.image, *image.shape[1:], *square.full),
            expected="both of one size",
        )
    top, left, side = square.box
    return resize(image[:, top : top + side, left : left + side], (size, size))


def _pairs(photos: Sequence[Photo], config: Config) -> list[ViewPair]:
    """Each so-many-th picture with another of its scene from within the largest angle, drawn once."""
    scenes: dict[Path, list[int]] = {}
    for number, photo in enumerate(photos):
        scenes.setdefault(photo.scene, []).append(number)
    pairs = []
    for first in range(0, len(photos), config.every):
        own, here = scenes[photos[first].scene], photos[first]
        turns = {i: turn_between(here.rotation, photos[i].rotation) for i in own if i != first}
        near = [i for i, angle in turns.items() if angle <= config.max_angle]
        if near:
            second = near[numpy_rng("navi pairs", *here.image.parts[-4:]).integers(len(near))]
            pairs.append(ViewPair(first, second, turns[second]))
    return pairs
