"""JAFAR: every sharp cell looks, from the image, at all of the teacher's cells and takes a weighted mean of them.

Couairon et al., arXiv 2506.11136, §3. Queries come from the image at the sharp map's size; keys from the image at the
teacher's, modulated by the teacher's map (spatial feature transform); the values are the teacher's map, untouched.

Shapes: B images, C the teacher's width, D of queries and keys, h w the teacher's grid, f factor.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from featsharp.config import SharpenerConfig
from featsharp.cross_attention import cross_attention, start_sigma
from featsharp.guidance import ChannelNorm, Guide, encoder
from featsharp.upsamplers.base import Upsampler


class Jafar(Upsampler):
    """Global cross attention, image to map. 0.53 M parameters at C = 384, D = 128."""

    needs_tiles = False
    keeps_constants = True
    memory_budget: int | None = None  # bytes of the attention; see `budget.limit`

    def __init__(self, width: int, config: SharpenerConfig):
        super().__init__(width, config)
        self.config, self.most = config.jafar, config.max_cells_per_call
        d = self.config.width
        self.guide = Guide(self.config)
        self.content = encoder(width, d, self.config.blocks)
        self.scale, self.shift = nn.Conv2d(d, d, 1), nn.Conv2d(d, d, 1)
        self.query_norm, self.key_norm = ChannelNorm(d), ChannelNorm(d)
        self.sigma = start_sigma(self.config)

    def forward(self, low: Tensor, tiles: Tensor | None, image: Tensor) -> Tensor:
        queries, keys = self.guide(image, tuple(low.shape[-2:]), self.factor)
        content = self.content(F.normalize(low, dim=1))
        keys = self.scale(content) * keys + self.shift(content)
        queries, keys = self.query_norm(queries), self.key_norm(keys)
        options = {"sigma": self.sigma, "most": self.most, "budget": self.memory_budget}
        return cross_attention(queries, keys, low, self.factor, self.config.heads, **options)
