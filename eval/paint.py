"""Truths and answers → pictures that a person can read, H×W×3 uint8: the same colours for every model."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from eval.datasets.split import IGNORE, Split

GREY = 90  # of what is unknown


def picture(split: Split, index: int) -> np.ndarray:
    """A test picture as it is."""
    return split.image(index).permute(1, 2, 0).numpy()


def paint_classes(mask: Tensor) -> np.ndarray:
    """Class numbers H×W → a colour a class (the first twenty differ clearly), `IGNORE` dark grey."""
    from matplotlib import colormaps

    numbers = mask.cpu().numpy().astype(np.int64)
    colours = (colormaps["tab20"].colors + colormaps["tab20b"].colors) * 7
    palette = np.round(255 * np.array(colours[:256])).astype(np.uint8)
    painted = palette[numbers % 256]
    painted[numbers == IGNORE] = GREY
    return painted


def paint_depth(depth: Tensor, low: float, high: float) -> np.ndarray:
    """Metres H×W → near bright, far dark, between `low` and `high` (those of the truth, so that models compare)."""
    from matplotlib import colormaps

    values = depth.cpu().numpy().astype(np.float64)
    shares = 1 - np.clip((values - low) / max(high - low, 1e-9), 0, 1)
    painted = np.round(255 * colormaps["magma"](np.nan_to_num(shares))[..., :3]).astype(np.uint8)
    painted[~np.isfinite(values)] = GREY
    return painted


def paint_normals(normals: Tensor) -> np.ndarray:
    """Unit vectors 3×H×W, camera frame (x right, y down, z forward) → x red, up green, towards the camera blue."""
    values = normals.cpu().numpy().astype(np.float64).transpose(1, 2, 0) * (1, -1, -1)
    painted = np.round(255 * np.clip(np.nan_to_num(values) / 2 + 0.5, 0, 1)).astype(np.uint8)
    painted[~np.isfinite(values).all(axis=2)] = GREY
    return painted


def paint_share(share: Tensor) -> np.ndarray:
    """Numbers in [0, 1] H×W → grey: black 0, white 1."""
    values = np.round(255 * share.clamp(0, 1).cpu().numpy()).astype(np.uint8)
    return np.repeat(values[..., None], 3, axis=2)
