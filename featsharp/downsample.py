"""Turns a sharp map into the low-resolution one that the teacher would give: what makes sharp maps comparable.

FeatUp (arXiv 2403.10516), §3.3. A low-resolution cell is a weighted mean of its own s×s sharp cells and of `reach`
more on each side, so taps are centred for even factors too; at the borders the taps that exist are renormalised.

Shapes: B images, C channels, h w low-resolution cells, s factor, H = h·s, W = w·s, K = s + 2·reach.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from featsharp.config import DownsamplerConfig
from featsharp.patches import gather, join, split, spread

TILE = 4  # low-resolution cells along the side of a tile
START = 0.25  # σ of the Gaussian that both downsamplers start from, in low-resolution cells: about a cell's own square


def weighted_cells(x: Tensor, weights: Tensor, factor: int) -> Tensor:
    """B×C×H×W, weights B×K²×h×w → B×C×h×w: each low-resolution cell's own weighted sum of the K×K cells around it.

    By tiles, like `jbu.composed_upsample`: a tile's weights spread into one matrix, times the patch of cells it sees.
    """
    h, w = weights.shape[-2:]
    k = int(weights.shape[1] ** 0.5)
    seen = torch.arange((TILE - 1) * factor + k, device=x.device) - (k - factor) // 2
    first = [torch.arange(0, n, TILE, device=x.device)[:, None] * factor for n in (h, w)]
    rows, columns = ((start + seen).clamp(0, n * factor - 1) for start, n in zip(first, (h, w)))
    matrix = spread(split(weights.permute(0, 2, 3, 1), TILE), TILE, k, factor)
    patches = gather(x.permute(0, 2, 3, 1), rows, columns)
    return join(torch.bmm(matrix, patches), TILE, (h, w)).permute(0, 3, 1, 2)


def gaussian_logits(k: int, sigma: float) -> Tensor:
    """K²: the log of a Gaussian about the centre, σ in sharp cells."""
    away = torch.arange(k) - (k - 1) / 2
    return -(away[:, None] ** 2 + away[None, :] ** 2).flatten() / (2 * sigma**2)


class Downsampler(nn.Module):
    """B×C×H×W → B×C×h×w, by weights that a subclass scores: `logits` B×K²×h×w, one a tap."""

    def __init__(self, width: int, factor: int, config: DownsamplerConfig):
        super().__init__()
        self.factor, self.k = factor, factor + 2 * config.reach

    def logits(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def taps_inside(self, h: int, w: int, device: torch.device | str = "cpu") -> Tensor:
        """K²×h×w: whether a low-resolution cell's tap falls on the map."""
        tap = torch.arange(self.k, device=device) - (self.k - self.factor) // 2
        rows, columns = (torch.arange(n, device=device) * self.factor + tap[:, None] for n in (h, w))
        rows, columns = (rows >= 0) & (rows < h * self.factor), (columns >= 0) & (columns < w * self.factor)
        return (rows[:, None, :, None] & columns[None, :, None, :]).flatten(0, 1)

    def weights(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """B×K²×h×w, summing to 1 over the taps that lie on the map and are not dropped."""
        logits = self.logits(x)
        usable = self.taps_inside(*logits.shape[-2:], x.device)
        usable = usable if keep is None else usable & keep
        return logits.masked_fill(~usable, -torch.inf).softmax(1)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """`keep` B×K²×h×w: the taps that are not dropped (training only), see `draw_keep`."""
        return weighted_cells(x, self.weights(x, keep), self.factor)


class SimpleDownsampler(Downsampler):
    """One learned K×K kernel for all channels and places."""

    def __init__(self, width: int, factor: int, config: DownsamplerConfig):
        super().__init__(width, factor, config)
        self.kernel = nn.Parameter(gaussian_logits(self.k, START * factor))

    def logits(self, x: Tensor) -> Tensor:
        size = [n // self.factor for n in x.shape[-2:]]
        return self.kernel.view(1, -1, 1, 1).expand(len(x), -1, *size)


class AttentionDownsampler(Downsampler):
    """Weights from the content: a strided convolution scores the K² taps of each cell."""

    def __init__(self, width: int, factor: int, config: DownsamplerConfig):
        super().__init__(width, factor, config)
        # Thousands of inputs a score: without the division one step of Adam, which moves every weight alike, would move
        # a score by tens.
        self.score = nn.Conv2d(width, self.k**2, self.k, stride=factor, padding=config.reach, bias=False)
        self.fan_in = width * self.k**2
        nn.init.normal_(self.score.weight, std=0.1)
        self.prior = nn.Parameter(gaussian_logits(self.k, START * factor))

    def logits(self, x: Tensor) -> Tensor:
        return self.score(x) / self.fan_in**0.5 + self.prior.view(1, -1, 1, 1)


def draw_keep(config: DownsamplerConfig, shape: tuple[int, ...], factor: int, generator: torch.Generator) -> Tensor:
    """A mask …×K²×h×w that leaves out `config.drop` of the taps at random, but never a cell's central ones."""
    k = factor + 2 * config.reach
    *lead, h, w = shape
    keep = torch.rand(*lead, k * k, h, w, generator=generator) >= config.drop
    keep[..., k // 2 * k + k // 2, :, :] = True
    return keep


def build_downsampler(config: DownsamplerConfig, width: int, factor: int) -> Downsampler:
    """The downsampler that `config.kind` names, for maps of `width` channels."""
    kinds = {"attention": AttentionDownsampler, "simple": SimpleDownsampler}
    return kinds[config.kind](width, factor, config)
