"""Turns places in a picture into dots that a person can tell apart at the size at which reports show examples.

A point has the same colour in every picture; a ring says whether a match is right: green, or red.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

POINTS = 8  # shown of a pair
SIDE = 320  # pixels of the longer side: twice what the report shows, so that its shrinking smooths the dots
RADIUS, RING = 7, 4
WHITE, GREEN, RED = (255, 255, 255), (40, 190, 60), (225, 30, 30)


def paint_places(pixels: np.ndarray, places: Tensor, right: Tensor | None = None) -> np.ndarray:
    """A picture H×W×3 uint8 with the places K×E×2 (x, y in its pixels; NaN: none) of K ≤ 8 points.

    Args:
        right: K, whether each is where it should be; None rings all in white.
    """
    assert len(places) <= POINTS, "more points than colours"
    scale = SIDE / max(pixels.shape[:2])
    size = max(round(pixels.shape[1] * scale), 1), max(round(pixels.shape[0] * scale), 1)
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for number, alike in enumerate(places.cpu()):
        ring = WHITE if right is None else GREEN if right[number] else RED
        for x, y in (scale * alike[alike.isfinite().all(dim=1)]).tolist():
            for radius, colour in ((RADIUS + RING, ring), (RADIUS, _colours()[number])):
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return np.asarray(image)


def _colours() -> list[tuple[int, int, int]]:
    """Eight colours, none of them the green or the red of the rings."""
    from matplotlib import colormaps

    ten = colormaps["tab10"].colors
    return [tuple(round(255 * value) for value in colour) for i, colour in enumerate(ten) if i not in (2, 3)]
