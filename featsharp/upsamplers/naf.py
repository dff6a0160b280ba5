"""NAF: each sharp cell takes a weighted mean of the teacher's cells around it; the image alone decides the weights.

Chambon et al., arXiv 2511.18452 (neighbourhood attention filtering). A joint bilateral filter across scales, with a
learned likeness: the keys are the queries themselves, averaged over each of the teacher's cells. It never looks at the
teacher's map, so one set of weights is for all teachers. The published one lets each head filter a share of the
channels; here the heads' weights are averaged, and no channel is treated unlike another.

Shapes: B images, C the teacher's width, D of queries and keys, h w the teacher's grid, f factor.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from featsharp.config import SharpenerConfig
from featsharp.cross_attention import cross_attention, start_sigma
from featsharp.guidance import Rotary, encoder, pool
from featsharp.upsamplers.base import Upsampler


class Naf(Upsampler):
    """Window cross attention, image to image. 0.66 M parameters at D = 256, whatever C."""

    needs_tiles = False
    keeps_constants = True
    memory_budget: int | None = None  # bytes of the attention; see `budget.limit`

    def __init__(self, width: int, config: SharpenerConfig):
        super().__init__(width, config)
        self.config, self.most = config.naf, config.max_cells_per_call
        d, blocks = self.config.width, self.config.blocks
        self.pixels = encoder(3, d // 2, blocks)  # colours
        self.surroundings = encoder(3, d // 2, blocks, first=3, inner=3)  # edges and textures
        self.rotary = Rotary(d, self.config.heads)
        self.sigma = start_sigma(self.config)

    def forward(self, low: Tensor, tiles: Tensor | None, image: Tensor) -> Tensor:
        coarse = tuple(low.shape[-2:])
        fine = (coarse[0] * self.factor, coarse[1] * self.factor)
        image = pool(image, fine, self.config.detail)
        seen = torch.cat([self.pixels(image), self.surroundings(image)], 1)
        queries = self.rotary(F.adaptive_avg_pool2d(seen, fine))
        keys = F.adaptive_avg_pool2d(queries, coarse)
        options = {"sigma": self.sigma, "most": self.most, "budget": self.memory_budget}
        radius, heads = self.config.window // 2, self.config.heads
        return cross_attention(queries, keys, low, self.factor, heads, radius=radius, **options)
