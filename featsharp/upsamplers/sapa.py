"""SAPA: enlarges a map by asking, for every fine cell, which of the coarse cells around it it is most like.

Lu et al., arXiv 2209.12866, the gated variant. A fine cell's query comes from the image, and from the coarse cell that
it lies in where a learned gate trusts the image less; its weights are the softmax of the query's similarity with the
k×k coarse cells around it (k = 5), which are also what is averaged. One level a prime of the factor, each reading the
map that the previous one made.

Shapes: B images, C channels, E of the embedding, h w coarse cells, s factor of a level, H = s·h, W = s·w.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featsharp.config import SapaConfig, SharpenerConfig
from featsharp.jbu import prime_factors
from featsharp.patches import gather, halo, join, split
from featsharp.upsamplers.base import Upsampler, enlarge

TILE = 8  # fine cells along the side of a tile, about


def affiliate(queries: Tensor, keys: Tensor, values: Tensor, factor: int, radius: int) -> Tensor:
    """Queries B×E×H×W look at the (2·radius+1)² coarse cells around their own: keys B×E×h×w, values B×C×h×w → B×C×H×W.

    The border cells are repeated outwards. Queries go in tiles, all with the keys of the tile and its halo, in one
    fused call that hides those outside each query's window.
    """
    t = max(1, round(TILE / factor))
    rows, columns = (halo(n, t, radius, keys.device).clamp(0, n - 1) for n in keys.shape[-2:])
    keys, values = (gather(x.permute(0, 2, 3, 1), rows, columns)[:, None] for x in (keys, values))
    tiles = split(queries.permute(0, 2, 3, 1), t * factor)[:, None]
    out = F.scaled_dot_product_attention(tiles, keys, values, attn_mask=window(t, factor, radius, queries.device))
    return join(out[:, 0], t * factor, tuple(queries.shape[-2:])).permute(0, 3, 1, 2)


def window(t: int, factor: int, radius: int, device: torch.device | str) -> Tensor:
    """(ts)²×(t+2r)²: whether a tile's fine cell may look at a coarse cell of the tile and its halo."""
    query = torch.arange(t * factor, device=device) // factor + radius
    near = (query[:, None] - torch.arange(t + 2 * radius, device=device)).abs() <= radius
    return (near[:, None, :, None] & near[None, :, None, :]).flatten(2).flatten(0, 1)


class SapaLevel(nn.Module):
    """One enlargement by a factor: map B×C×h×w, guidance B×3×H×W → B×C×H×W."""

    def __init__(self, width: int, factor: int, config: SapaConfig):
        super().__init__()
        self.factor, self.radius = factor, config.window // 2
        self.look = nn.Sequential(
            nn.Conv2d(3, config.width, 3, padding=1, padding_mode="replicate"),
            nn.GELU(),
            nn.Conv2d(config.width, config.width, 1),
        )
        self.norm = nn.LayerNorm(width)
        self.key = nn.Conv2d(width, config.width, 1, bias=False)
        self.query = nn.Conv2d(width, config.width, 1, bias=False)
        self.gate = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor, guidance: Tensor) -> Tensor:
        content = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        gate = self.gate(content).sigmoid()
        own = enlarge((1 - gate) * self.query(content), self.factor, "nearest")
        queries = enlarge(gate, self.factor, "nearest") * self.look(guidance) + own
        return affiliate(queries, self.key(content), x, self.factor, self.radius)


class Sapa(Upsampler):
    """Levels of similarity-aware affiliation. 2·E·C + 3·C + 1 + 29·E + E² parameters a level, E = 32."""

    needs_tiles = False
    keeps_constants = True

    def __init__(self, width: int, config: SharpenerConfig):
        super().__init__(width, config)
        self.levels = nn.ModuleList(SapaLevel(width, s, config.sapa) for s in prime_factors(config.factor))

    def forward(self, low: Tensor, tiles: Tensor | None, image: Tensor) -> Tensor:
        for level in self.levels:
            low = level(low, F.adaptive_avg_pool2d(image, [n * level.factor for n in low.shape[-2:]]))
        return low
