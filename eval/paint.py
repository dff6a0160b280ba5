"""Truths and answers → pictures that a person can read, H×W×3 uint8: the same colours for every model."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from eval.datasets.split import IGNORE, Split

GREY = 90  # of what is unknown


def picture(split: Split, index: int) -> np.ndarray:
    """A test picture as it is."""
    return split.image(index).permute(1, 2, 0).numpy()


def palette() -> np.ndarray:
    """A colour a class, 256×3 uint8; the first twenty differ clearly."""
    from matplotlib import colormaps

    colours = (colormaps["tab20"].colors + colormaps["tab20b"].colors) * 7
    return np.round(255 * np.array(colours[:256])).astype(np.uint8)


def paint_classes(mask: Tensor) -> np.ndarray:
    """Class numbers H×W → a colour a class, `IGNORE` dark grey."""
    numbers = mask.cpu().numpy().astype(np.int64)
    painted = palette()[numbers % 256]
    painted[numbers == IGNORE] = GREY
    return painted


def paint_boxes(pixels: np.ndarray, boxes: Tensor, classes: Tensor) -> np.ndarray:
    """Boxes n×4 (x0, y0, x1, y1 in pixels) on a picture H×W×3, a colour a class."""
    from torchvision.utils import draw_bounding_boxes

    if not len(boxes):
        return pixels
    colours = [tuple(colour) for colour in palette()[classes.cpu().numpy() % 256].tolist()]
    picture = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
    width = max(round(max(pixels.shape) / 100), 1)
    return draw_bounding_boxes(picture, boxes.cpu(), colors=colours, width=width).permute(1, 2, 0).numpy()


def paint_things(pixels: np.ndarray, masks: Tensor) -> np.ndarray:
    """Masks n×H×W bool over a picture H×W×3, a colour each; small ones lie on large ones."""
    painted, colours = pixels.astype(np.float64), palette()
    for number in masks.flatten(1).sum(dim=1).argsort(descending=True).tolist():
        inside = masks[number].cpu().numpy()
        painted[inside] = 0.4 * pixels[inside] + 0.6 * colours[number % 256]
    return np.round(painted).astype(np.uint8)


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
