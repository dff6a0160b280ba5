"""An image → features of its cells, at the sharp map's size and at the teacher's, which attention upsamplers compare.

Shapes: B images, D channels, h w the teacher's grid, f factor, G = (f·h, f·w) the sharp map's size.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featsharp.config import AttentionConfig

GROUPS = 8  # of every group normalisation


class Residual(nn.Module):
    """x + two rounds of normalisation, SiLU and a convolution: B×D×h×w → the same."""

    def __init__(self, width: int, kernel: int):
        super().__init__()
        layers = [(nn.GroupNorm(GROUPS, width), nn.SiLU(), convolution(width, width, kernel)) for _ in range(2)]
        self.layers = nn.Sequential(*(layer for round_ in layers for layer in round_))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def convolution(channels: int, width: int, kernel: int, bias: bool = True) -> nn.Conv2d:
    """One that keeps the size: the border is repeated outwards, so that maps of one row or column pass too."""
    return nn.Conv2d(channels, width, kernel, padding=kernel // 2, padding_mode="replicate", bias=bias)


def encoder(channels: int, width: int, blocks: int, first: int = 1, inner: int = 1) -> nn.Sequential:
    """B×channels×h×w → B×width×h×w: a convolution of size `first`, then residual blocks of size `inner`."""
    blocks = [Residual(width, inner) for _ in range(blocks)]
    return nn.Sequential(convolution(channels, width, first, bias=False), *blocks)


def pool(image: Tensor, size: tuple[int, int], detail: int) -> Tensor:
    """Average an image down to at most `detail` pixels along each side of a cell of a map of `size`."""
    wanted = [min(n, detail * cells) for n, cells in zip(image.shape[-2:], size)]
    return F.adaptive_avg_pool2d(image, wanted)


class Rotary(nn.Module):
    """Turns pairs of channels by angles that grow along the image: B×D×h×w → the same.

    An image is 1 high and 1 wide, whatever its size, and a cell is at its centre. At first half of the pairs turn with
    the row, half with the column, by 1 to 1/100 turns an image; the frequencies are learned (JAFAR, §3.2).
    """

    def __init__(self, width: int, heads: int = 1):
        super().__init__()
        pairs = width // heads // 2
        turns = 100.0 ** -torch.linspace(0, 1, pairs // 2)
        frequency = torch.zeros(2, pairs)
        frequency[0, : pairs // 2], frequency[1, pairs // 2 :] = turns, turns
        self.frequency = nn.Parameter(2 * math.pi * frequency)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        # Angles in fp32 at least, only their cosines and sines in the dtype of the features: bf16 has no digits for it.
        frequency = self.frequency.to(torch.promote_types(self.frequency.dtype, torch.float32))
        y, x_ = ((torch.arange(n, device=x.device, dtype=frequency.dtype) + 0.5) / n for n in (h, w))
        angle = frequency[0, :, None, None] * y[:, None] + frequency[1, :, None, None] * x_
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)  # pairs×h×w
        even, odd = x.unflatten(1, (self.heads, -1, 2)).unbind(3)  # B×heads×pairs×h×w
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], 3).flatten(1, 3)


class Guide(nn.Module):
    """An image → queries B×D×G and, before they know the map, keys B×D×h×w (JAFAR, arXiv 2506.11136, §3.2)."""

    def __init__(self, config: AttentionConfig):
        super().__init__()
        d, self.detail = config.width, config.detail
        self.look = encoder(3, d, config.blocks, first=3)
        self.rotary = Rotary(d)
        self.query, self.key = encoder(d, d, config.blocks), encoder(d, d, config.blocks)
        self.norm = nn.GroupNorm(GROUPS, d, affine=False)
        self.mix = convolution(d, d, 3)

    def forward(self, image: Tensor, coarse: tuple[int, int], factor: int) -> tuple[Tensor, Tensor]:
        fine = (coarse[0] * factor, coarse[1] * factor)
        seen = self.rotary(self.look(pool(image, fine, self.detail)))
        queries = self.mix(self.norm(F.adaptive_avg_pool2d(self.query(seen), fine)))
        return queries, self.norm(F.adaptive_avg_pool2d(self.key(seen), coarse))


class ChannelNorm(nn.Module):
    """RMSNorm over the channels of B×D×h×w."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.to(x.dtype)  # autocast leaves it in fp32
        return F.rms_norm(x.permute(0, 2, 3, 1), weight.shape, weight, 1e-6).permute(0, 3, 1, 2)
