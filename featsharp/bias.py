"""Learns the noise that a teacher adds at fixed positions, so that it can be taken out of its maps.

FeatSharp (arXiv 2502.16025), §3.4: the same table is added to what is sharpened and to what views are compared with.
Noise that sticks to the grid cannot agree between views that move, so the table learns its negative.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PositionBias(nn.Module):
    """Adds a learned C×h×w table to maps in PHI-S space, resized where their grid is another: B×C×h×w → the same."""

    def __init__(self, width: int, grid: tuple[int, int]):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(1, width, *grid))

    def forward(self, x: Tensor) -> Tensor:
        table = self.table
        if table.shape[-2:] != x.shape[-2:]:
            table = F.interpolate(table, size=x.shape[-2:], mode="bilinear", align_corners=False)
        return x + table
