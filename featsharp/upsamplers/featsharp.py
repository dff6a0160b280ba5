"""FeatSharp: joint bilateral upsampling of the whole, merged with the tiles by a local transformer block.

arXiv 2502.16025, §3. The upsampled map knows the surroundings but not the detail, the tiles know the detail but not
the surroundings; the block starts as the former and learns what to take from the latter.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from featsharp.config import SharpenerConfig
from featsharp.fusion import Fusion
from featsharp.jbu import JbuStack
from featsharp.upsamplers.base import Upsampler


class FeatSharp(Upsampler):
    """JBU + tiles, as in the paper."""

    needs_tiles = True

    def __init__(self, width: int, config: SharpenerConfig):
        super().__init__(width, config)
        self.jbu = JbuStack(config.factor, config.jbu)
        self.fusion = Fusion(width, 2, config.fusion)
        self.tile_position = tile_positions(width, config)

    def forward(self, low: Tensor, tiles: Tensor | None, image: Tensor) -> Tensor:
        return self.fusion(self.jbu(low, image), placed(tiles, self.tile_position))


def tile_positions(width: int, config: SharpenerConfig) -> nn.Parameter | None:
    """One vector a tile, 1×C×f×f, if the recipe wants them."""
    return nn.Parameter(torch.zeros(1, width, config.factor, config.factor)) if config.tile_position else None


def placed(tiles: Tensor, positions: Tensor | None) -> Tensor:
    """Add to every cell of the tiles' map B×C×fh×fw the vector of its tile."""
    if positions is None:
        return tiles
    h, w = (n // f for n, f in zip(tiles.shape[-2:], positions.shape[-2:]))
    return tiles + positions.repeat_interleave(h, 2).repeat_interleave(w, 3)
