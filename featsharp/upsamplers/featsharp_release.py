"""FeatSharp as its public configurations have it: JAFAR instead of joint bilateral upsampling, no LayerNorm.

The paper (arXiv 2502.16025) describes `featsharp`; what was released under its name differs from it in these two.
"""

from __future__ import annotations

from torch import Tensor

from featsharp.config import SharpenerConfig
from featsharp.fusion import Fusion
from featsharp.upsamplers.base import Upsampler
from featsharp.upsamplers.featsharp import placed, tile_positions
from featsharp.upsamplers.jafar import Jafar


class FeatSharpRelease(Upsampler):
    """JAFAR + tiles; `fusion.layer_norm` does not count."""

    needs_tiles = True

    def __init__(self, width: int, config: SharpenerConfig):
        super().__init__(width, config)
        self.jafar = Jafar(width, config)
        self.fusion = Fusion(width, 2, config.fusion.model_copy(update={"layer_norm": False}))
        self.tile_position = tile_positions(width, config)

    def forward(self, low: Tensor, tiles: Tensor | None, image: Tensor) -> Tensor:
        return self.fusion(self.jafar(low, None, image), placed(tiles, self.tile_position))
