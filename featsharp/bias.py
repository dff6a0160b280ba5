"""Learns the noise that a teacher adds at fixed positions, so that it can be taken out of its maps.

FeatSharp (arXiv 2502.16025), §3.4: the same is added to what is sharpened and to what views are compared with.
Noise that sticks to the grid cannot agree between views that move, so the table learns its negative. What depends on
the content as well is left to the conditional variant, a transformer block over the map.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from teachers.features import Size

LAYER_SCALE = 1e-8  # of the conditional block's branches at first: it begins as nothing


class PositionBias(nn.Module):
    """A learned C×h×w table in PHI-S space, resized for maps of another grid; `conditional`: and a block after it.

    Only the table's differences between places count: a channel's mean cancels between the two sides, so nothing would
    hold it, and sharpened maps would drift away from the teacher's own.
    """

    def __init__(self, width: int, grid: Size, conditional: bool = False):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(1, width, *grid))
        self.block = ConditionalBias(width) if conditional else None

    def forward(self, x: Tensor, tiles: int = 1) -> Tensor:
        """Take the noise out of B×C×H×W, or of each of the tiles×tiles maps of which it is stitched."""
        x = self.fixed(x, tiles)
        return x if self.block is None else self.block(x, tiles)

    def fixed(self, x: Tensor, tiles: int = 1) -> Tensor:
        """The table's part of it."""
        table, grid = self.table - self.table.mean((2, 3), keepdim=True), (x.shape[-2] // tiles, x.shape[-1] // tiles)
        if table.shape[-2:] != grid:
            table = F.interpolate(table, size=grid, mode="bilinear", align_corners=False)
        return x + table.repeat(1, 1, tiles, tiles)


class ConditionalBias(nn.Module):
    """A standard ViT block over the cells of one teacher pass, which sees all of them; begins as the identity."""

    def __init__(self, width: int):
        super().__init__()
        self.heads = math.gcd(width, 16)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.gamma1, self.gamma2 = (nn.Parameter(torch.full((width,), LAYER_SCALE)) for _ in range(2))

    def forward(self, x: Tensor, tiles: int = 1) -> Tensor:
        """B×C×H×W → the same, each of its tiles×tiles parts on its own."""
        h, w = (n // tiles for n in x.shape[-2:])
        tokens = rearrange(x, "b c (i h) (j w) -> (b i j) (h w) c", h=h, w=w)
        tokens = tokens + self.gamma1 * self._attention(self.norm1(tokens))
        tokens = tokens + self.gamma2 * self.mlp(self.norm2(tokens))
        return rearrange(tokens, "(b i j) (h w) c -> b c (i h) (j w)", i=tiles, j=tiles, h=h)

    def _attention(self, tokens: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(tokens), "n l (qkv heads e) -> qkv n heads l e", qkv=3, heads=self.heads)
        return self.proj(rearrange(F.scaled_dot_product_attention(q, k, v), "n heads l e -> n l (heads e)"))


def change_penalty(change: Tensor, differences: Tensor, valid: Tensor) -> Tensor:
    """Mean square of what the conditional bias changes, counted more where the views agreed without it.

    FeatSharp: weight = 1 + Σ_views exp(−‖difference‖² / variance) where the view sees the cell, divided by its mean.

    Args:
        change: B×C×h×w, out − in.
        differences: J×B×C×h×w, of each view's map to this one.
        valid: J×B×1×h×w, whether the view sees the cell.
    """
    apart = differences.square().mean(2, keepdim=True)
    spread = (apart * valid).sum() / valid.sum().clamp(min=1)
    weight = 1 + ((-apart / spread.clamp(min=1e-12)).exp() * valid).sum(0)
    return (weight / weight.mean() * change.square()).mean()
