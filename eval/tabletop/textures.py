"""Photographs that scikit-image bundles → linear-light texture pyramids that tile by mirroring."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy import ndarray
from PIL import Image

from teachers.errors import UserError

# All are PNG files inside the scikit-image wheel (no download), so that every machine decodes the same pixels.
PHOTOS = (
    "astronaut", "brick", "camera", "cell", "chelsea", "coffee", "coins", "grass", "gravel", "ihc", "moon",
    "motorcycle_left", "page",
)  # fmt: skip
SIDE = 256

_TO_LINEAR = (np.arange(256) / 255.0) ** 2.2
_TO_SRGB = np.round((np.arange(4096) / 4095.0) ** (1 / 2.2) * 255).astype(np.uint8)


def to_linear(srgb: ndarray) -> ndarray:
    """uint8 sRGB → linear light in [0, 1] (a plain 2.2 gamma)."""
    return _TO_LINEAR[srgb].astype(np.float32)


def to_srgb(linear: ndarray) -> ndarray:
    """Linear light → uint8 sRGB, clipped."""
    return _TO_SRGB[np.clip(linear * 4095 + 0.5, 0, 4095).astype(np.int16)]


@cache
def pyramid(photo: str) -> tuple[ndarray, ...]:
    """A photograph's central square at 256, 128, ... 16 texels a side: `side×side×3` float32, of mean 0.4."""
    folder = Path(find_spec("skimage").submodule_search_locations[0]) / "data"
    path = folder / f"{photo}.png"
    if not path.exists():
        raise UserError(
            f"the tabletop's texture {path} is missing",
            expected="a scikit-image whose wheel bundles its photographs (0.22 to 0.26 do)",
            todo="pip install --force-reinstall 'scikit-image>=0.22'",
        )
    picture = Image.open(path).convert("RGB")
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.resize((SIDE, SIDE), Image.Resampling.BOX, box=(left, top, left + side, top + side))
    level = to_linear(np.asarray(square))
    level = np.clip(level * (0.4 / level.mean()), 0, 1)
    levels = [level]
    while len(levels[-1]) > 16:
        half = len(levels[-1]) // 2
        levels.append(levels[-1].reshape(half, 2, half, 2, 3).mean((1, 3)))
    return tuple(levels)


def look_up(photo: str, level: int, u: ndarray, v: ndarray) -> ndarray:
    """Bilinear texels `3×N` at coordinates `u`, `v` (N each; one unit = the whole photograph, mirrored beyond it)."""
    texels = _padded(photo)[level]
    row = len(texels)
    side = row - 2
    x, y = (np.abs((w + 1) % 2 - 1) * np.float32(side) for w in (u, v))
    left, top = x.astype(np.int32), y.astype(np.int32)
    corner = top * row + left
    fx, fy = (x - left)[:, None], (y - top)[:, None]
    flat = texels.reshape(-1, 4)
    upper, lower = flat.take(corner, 0), flat.take(corner + row, 0)
    upper += fx * (flat.take(corner + 1, 0) - upper)
    lower += fx * (flat.take(corner + row + 1, 0) - lower)
    upper += fy * (lower - upper)
    return upper.T[:3]


@cache
def _padded(photo: str) -> tuple[ndarray, ...]:
    """The pyramid's levels with two repeated rows and columns for the interpolation, and a fourth channel for speed."""
    return tuple(np.pad(level, ((0, 2), (0, 2), (0, 0)), "edge")[..., [0, 1, 2, 2]].copy() for level in pyramid(photo))
