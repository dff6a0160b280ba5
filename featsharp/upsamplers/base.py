"""What every upsampler is: a teacher's map, where it asks for them the map of the tiles, and the image → a sharper map.

Shapes: B images, C the teacher's width, h w its grid, f factor, H W pixels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from featsharp.config import SharpenerConfig


class Upsampler(nn.Module):
    """Maps are in PHI-S space (unit variance a channel); the image is about whitened and at full resolution."""

    needs_tiles: bool
    keeps_constants: bool = False  # every cell of the result is a weighted mean of the maps' cells, whatever it learns

    def __init__(self, width: int, config: SharpenerConfig):
        super().__init__()
        self.factor = config.factor

    @property
    def tile_levels(self) -> tuple[int, ...]:
        """For each map of tiles that `forward` takes: into how many tiles along each axis the image is cut."""
        return (self.factor,) if self.needs_tiles else ()

    def forward(self, low: Tensor, tiles: Tensor | None, image: Tensor) -> Tensor:
        """B×C×h×w, B×C×fh×fw (or None), B×3×H×W → B×C×fh×fw."""
        raise NotImplementedError


def enlarge(low: Tensor, factor: int, mode: str = "bilinear") -> Tensor:
    """B×C×h×w → B×C×fh×fw, by plain interpolation."""
    if factor == 1:
        return low
    corners = {} if mode == "nearest" else {"align_corners": False}
    return F.interpolate(low, scale_factor=factor, mode=mode, **corners)
