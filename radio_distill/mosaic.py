"""Small images → what a teacher of a fixed size says of each: several share its canvas, cut back cell by cell.

Enlarging a small picture to SAM's 1024 pixels costs a whole forward pass for it and blurs it; k×k pictures beside each
other cost one pass for all and keep their pixels (RADIOv2.5, arXiv 2412.07679, finding 3). Cells never straddle two
pictures, as every picture begins on a cell; but attention sees the neighbours, as it does in the paper.

Shapes: B images, P the encoder's patch, h w a picture's grid, C the encoder's width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from teachers.features import Encoder, Size


def fits(encoder: Encoder, grid: Size) -> bool:
    """Whether a picture of `grid` cells fits into the canvas, the encoder's native size."""
    canvas = encoder.grid(encoder.native_size)
    return grid[0] <= canvas[0] and grid[1] <= canvas[1]


def pictures_a_canvas(encoder: Encoder, grid: Size, several: bool) -> int:
    """How many pictures of `grid` cells one canvas takes; 0 where not even one fits."""
    if not fits(encoder, grid):
        return 0
    canvas = encoder.grid(encoder.native_size)
    return (canvas[0] // grid[0]) * (canvas[1] // grid[1]) if several else 1


def seen_in_canvases(encoder: Encoder, images: Tensor, several: bool) -> Tensor:
    """Images B×3×(h·P)×(w·P) → B×C×h×w; `several` to a canvas as often as they fit, else one each, in its corner.

    What no picture covers is black. Pictures fill a canvas row by row; the last canvas may be part empty.
    """
    p, (height, width) = encoder.patch_size, encoder.native_size
    h, w = images.shape[-2] // p, images.shape[-1] // p
    canvas_h, canvas_w = encoder.grid(encoder.native_size)
    down, right = (canvas_h // h, canvas_w // w) if several else (1, 1)
    canvases = images.new_zeros(-(-len(images) // (down * right)), 3, height, width)
    places = [(i // (down * right), i // right % down * h, i % right * w) for i in range(len(images))]
    for image, (canvas, top, left) in zip(images, places):
        canvases[canvas, :, top * p : (top + h) * p, left * p : (left + w) * p] = image
    maps = encoder(canvases).spatial
    return torch.stack([maps[canvas, :, top : top + h, left : left + w] for canvas, top, left in places])
