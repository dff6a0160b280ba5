"""FeatSharp with a fusion block of a third of the size: both maps are projected to one map's width first.

With C the teacher's width, the paper's block (arXiv 2502.16025, §3) has 42.7 C² weights in its matrices, because it
works on 2C channels; this one 2 C² for the projection, 4 C² for attention and 8 C² for SwiGLU: 14 C².
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from featsharp.config import FusionConfig, SharpenerConfig
from featsharp.fusion import Fusion
from featsharp.jbu import JbuStack
from featsharp.upsamplers.base import Upsampler
from featsharp.upsamplers.featsharp import placed, tile_positions


class SlimFusion(Fusion):
    """Two maps B×C×h×w, the residual carrier first → B×C×h×w. With its scales at zero: the first map exactly.

    A block of one map's width, in which the carrier's place is taken by what both maps are projected to.
    """

    def __init__(self, width: int, config: FusionConfig):
        super().__init__(width, 1, config)
        self.merge = nn.Linear(2 * width, width)

    def _band(self, maps: Sequence[Tensor], top: int, bottom: int) -> Tensor:
        reach, h = self.attention.radius, maps[0].shape[-2]
        start, end = max(0, top - reach), min(h, bottom + reach)
        inner = slice(top - start, bottom - start)
        merged = self.merge(torch.cat([m[:, :, start:end].permute(0, 2, 3, 1) for m in maps], -1))
        seen = self.gamma1 * self.attention(self.norm1(merged), start)[:, inner]
        found = self.gamma2 * self.ffn(self.norm2(merged[:, inner] + seen))
        return maps[0][:, :, top:bottom] + (seen + found).permute(0, 3, 1, 2)


class FeatSharpSlim(Upsampler):
    """JBU + tiles, as in the paper, with the small block; without `fusion.hidden` its SwiGLU is 8/3 · C wide."""

    needs_tiles = True

    def __init__(self, width: int, config: SharpenerConfig):
        super().__init__(width, config)
        self.jbu = JbuStack(config.factor, config.jbu)
        self.fusion = SlimFusion(width, config.fusion)
        self.tile_position = tile_positions(width, config)

    def forward(self, low: Tensor, tiles: Tensor | None, image: Tensor) -> Tensor:
        return self.fusion(self.jbu(low, image), placed(tiles, self.tile_position))
