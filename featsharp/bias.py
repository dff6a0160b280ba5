"""Learns the noise that a teacher adds at fixed positions, so that it can be taken out of its maps.

FeatSharp (arXiv 2502.16025), §3.4: the same table is added to what is sharpened and to what views are compared with.
Noise that sticks to the grid cannot agree between views that move, so the table learns its negative.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from teachers.features import Size


class PositionBias(nn.Module):
    """A learned C×h×w table in PHI-S space, resized for maps of another grid.

    Only its differences between places count: a channel's mean cancels between the two sides, so nothing would hold
    it, and sharpened maps would drift away from the teacher's own.
    """

    def __init__(self, width: int, grid: Size):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(1, width, *grid))

    def forward(self, x: Tensor, tiles: int = 1) -> Tensor:
        """Add the table to B×C×H×W, or to each of the tiles×tiles maps of which it is stitched."""
        table, grid = self.table - self.table.mean((2, 3), keepdim=True), (x.shape[-2] // tiles, x.shape[-1] // tiles)
        if table.shape[-2:] != grid:
            table = F.interpolate(table, size=grid, mode="bilinear", align_corners=False)
        return x + table.repeat(1, 1, tiles, tiles)
