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
        self.tile_position = None
        if config.tile_position:  # one vector a tile, the same for all of its cells
            self.tile_position = nn.Parameter(torch.zeros(1, width, config.factor, config.factor))

    def forward(self, low: Tensor, tiles: Tensor | None, image: Tensor) -> Tensor:
        if self.tile_position is not None:
            h, w = low.shape[-2:]
            tiles = tiles + self.tile_position.repeat_interleave(h, 2).repeat_interleave(w, 3)
        return self.fusion(self.jbu(low, image), tiles)
