"""CARAFE: enlarges a map by kernels predicted from the map itself, one for every fine cell; the image is not used.

Wang et al., arXiv 1905.02188. A fine cell is a weighted mean of the k×k coarse cells around the one that it lies in
(k = 5); a 1×1 and a 3×3 convolution of the coarse map give the logarithms of the weights, up to their sum. One level a
prime of the factor, each reading the map that the previous one made.

Shapes: B images, C channels, h w coarse cells, s factor of a level, k taps along an axis.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from featsharp.config import CarafeConfig, SharpenerConfig
from featsharp.jbu import prime_factors
from featsharp.patches import gather, halo, join, split, spread
from featsharp.upsamplers.base import Upsampler

TILE = 4  # coarse cells along the side of a tile


def reassemble(source: Tensor, weights: Tensor, factor: int) -> Tensor:
    """B×C×h×w, weights B×s²×k²×h×w → B×C×sh×sw: fine cell (p, q) of a coarse one takes the weights of place p·s+q.

    The border cells are repeated outwards. By tiles, as in `downsample.weighted_cells`: a tile's weights spread into
    one matrix, times the patch of coarse cells that it sees; neither an enlarged nor a k²-fold map is made.
    """
    h, w = source.shape[-2:]
    k = int(weights.shape[2] ** 0.5)
    cells = split(weights.flatten(1, 2).permute(0, 2, 3, 1), TILE).unflatten(2, (factor**2, k**2)).transpose(1, 2)
    matrix = spread(cells.flatten(0, 1), TILE, k, 1)
    matrix = rearrange(matrix, "(n p q) (a b) k -> n (a p b q) k", p=factor, q=factor, a=TILE)
    rows, columns = (halo(n, TILE, k // 2, source.device).clamp(0, n - 1) for n in (h, w))
    patches = gather(source.permute(0, 2, 3, 1), rows, columns)
    fine = torch.bmm(matrix.to(source.dtype), patches)
    return join(fine, TILE * factor, (h * factor, w * factor)).permute(0, 3, 1, 2)


def distances(factor: int, k: int) -> Tensor:
    """s²×k²: squares of the distances from a fine cell's centre to those of its taps, in coarse cells."""
    place = (torch.arange(factor) + 0.5) / factor - 0.5
    along = (torch.arange(k) - k // 2 - place[:, None]).square()  # s×k
    return (along[:, None, :, None] + along[None, :, None, :]).flatten(2).flatten(0, 1)


class CarafeLevel(nn.Module):
    """One enlargement by a factor: B×C×h×w → B×C×sh×sw."""

    def __init__(self, width: int, factor: int, config: CarafeConfig):
        super().__init__()
        self.factor, taps = factor, config.window**2
        self.compress = nn.Conv2d(width, config.width, 1)
        reach = config.context // 2
        self.score = nn.Conv2d(
            config.width, factor**2 * taps, config.context, padding=reach, padding_mode="replicate"
        )
        nn.init.normal_(self.score.weight, std=0.001)  # the content speaks up as it is learned
        with torch.no_grad():
            self.score.bias.copy_(-distances(factor, config.window).flatten() / (2 * config.sigma**2))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.score(self.compress(x)).unflatten(1, (self.factor**2, -1))
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))  # weights that sum to 1 need the digits
        return reassemble(x, scores.softmax(2), self.factor)


class Carafe(Upsampler):
    """Levels of content-aware reassembly. 64·(C + 1) + 577·25·s² parameters a level of factor s, as published."""

    needs_tiles = False
    keeps_constants = True

    def __init__(self, width: int, config: SharpenerConfig):
        super().__init__(width, config)
        self.levels = nn.Sequential(*(CarafeLevel(width, s, config.carafe) for s in prime_factors(config.factor)))

    def forward(self, low: Tensor, tiles: Tensor | None, image: Tensor) -> Tensor:
        return self.levels(low)
