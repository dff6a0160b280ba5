"""Progressive: one sharpening after another, a level for each prime of the factor, each with weights of its own.

FeatSharp (arXiv 2502.16025), §3. A level starts from what the last one made, so none has far to go; for upsamplers
that look at tiles the teacher sees Σ (factor so far)² of them instead of factor².
"""

from __future__ import annotations

from itertools import accumulate
from operator import mul

from torch import Tensor, nn

from featsharp.config import SharpenerConfig
from featsharp.jbu import prime_factors
from featsharp.tiles import Tiled
from featsharp.upsamplers.base import Upsampler


class Progressive(Upsampler):
    """An upsampler of one `kind` a level; takes one map of tiles a level, from coarse to fine."""

    def __init__(self, width: int, config: SharpenerConfig, kind: type[Upsampler]):
        super().__init__(width, config)
        self.factors = prime_factors(config.factor) or [1]
        self.stages = nn.ModuleList(
            kind(width, config.model_copy(update={"factor": factor})) for factor in self.factors
        )
        self.needs_tiles = self.stages[0].needs_tiles

    @property
    def tile_levels(self) -> tuple[int, ...]:
        return tuple(accumulate(self.factors, mul)) if self.needs_tiles else ()

    def forward(self, low: Tensor, tiles: Tiled, image: Tensor) -> Tensor:
        maps = tiles if isinstance(tiles, tuple) else (tiles,) * len(self.stages)
        for stage, seen in zip(self.stages, maps, strict=True):
            low = stage(low, seen, image)
        return low
