"""ReSFU: weighs places around every sharp cell by learned differences between image and map, made alike beforehand.

Zhou et al., arXiv 2407.02283. (1) Query and key are aligned twice: in meaning, as the map's embedding and the same
carried to the image's edges by a guided filter; in detail, as the image's embedding and the same smoothed to the map's
coarseness. (2) Their likeness is no inner product but a convolution over differences of neighbouring keys and the
query in the centre. (3) The neighbours are places of the bilinearly enlarged map, a coarse cell apart, rather than
coarse cells: neighbouring sharp cells see shifted places, and no mosaic appears.

Shapes: B images, C the teacher's width, E of the embeddings, h w coarse cells, f factor, H = f·h, W = f·w, k taps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featsharp.config import SharpenerConfig
from featsharp.guidance import convolution
from featsharp.upsamplers.base import Upsampler, enlarge
from featsharp.upsamplers.carafe import reassemble

SMOOTHING = 1e-2  # variance of the guidance in a neighbourhood below which it is taken for flat


def guided_filter(x: Tensor, guidance: Tensor, factor: int) -> Tensor:
    """B×E×h×w, guidance B×E×H×W → B×E×H×W: in every 3×3 coarse cells, x as a straight line of the guidance's channel.

    He & Sun, Fast Guided Filter, arXiv 1505.00996: slopes and offsets are found on the coarse grid, then enlarged.
    """
    dtype = x.dtype
    x, guidance = (y.to(torch.promote_types(dtype, torch.float32)) for y in (x, guidance))  # differences of squares
    coarse = F.adaptive_avg_pool2d(guidance, x.shape[-2:])
    mean_x, mean = _around(x), _around(coarse)
    slope = (_around(coarse * x) - mean * mean_x) / ((_around(coarse**2) - mean**2).clamp_min(0) + SMOOTHING)
    offset = mean_x - slope * mean
    return (enlarge(_around(slope), factor) * guidance + enlarge(_around(offset), factor)).to(dtype)


def _around(x: Tensor) -> Tensor:
    """The mean of the 3×3 cells around each, cut off at the borders."""
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def smoothed(x: Tensor, factor: int) -> Tensor:
    """Blur a map by a Gaussian as wide as a coarse cell: σ = f/2 cells, cut off at f."""
    tap = torch.arange(-factor, factor + 1, device=x.device, dtype=torch.float32)
    kernel = (-2 * (tap / factor).square()).softmax(0).to(x.dtype).expand(x.shape[1], 1, 1, -1)
    padded = F.pad(x, (factor,) * 4, mode="replicate")
    rows = F.conv2d(padded, kernel, groups=x.shape[1])
    return F.conv2d(rows, kernel.transpose(2, 3), groups=x.shape[1])


class PairedDifference(nn.Module):
    """Query and key B×E×H×W → B×E×H×W: Σ over taps i and channels of w_i · (key a tap away − query)."""

    def __init__(self, width: int, window: int, factor: int):
        super().__init__()
        self.factor, self.reach = factor, window // 2 * factor
        self.taps = nn.Conv2d(width, width, window, dilation=factor)

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        neighbours = self.taps(F.pad(key, (self.reach,) * 4, mode="replicate"))
        return neighbours - F.conv2d(query, self.taps.weight.sum((2, 3), keepdim=True))


def average(low: Tensor, weights: Tensor, factor: int) -> Tensor:
    """B×C×h×w, weights B×k²×H×W → B×C×H×W: the enlarged map at k×k places, f cells apart, weighed and summed.

    Bilinear enlarging is folded into the weights: a place is a mean of 2×2 coarse cells, and k×k places, a coarse cell
    apart, are one of (k+1)×(k+1); the coarse map is read once, and the enlarged one never exists.
    """
    k = int(weights.shape[1] ** 0.5)
    # How far a sharp cell's centre lies from its coarse cell's, and what bilinear then takes of that one's neighbours.
    offset = (torch.arange(factor, device=low.device) + 0.5) / factor - 0.5
    share = torch.stack([(-offset).clamp_min(0), 1 - offset.abs(), offset.clamp_min(0)], 1)  # f×3
    shifted = torch.stack([F.pad(share, (i, k - 1 - i)) for i in range(k)], 1).to(weights.dtype)  # f×k×(k+2)
    weights = weights.unflatten(1, (k, k)).unflatten(4, (-1, factor)).unflatten(3, (-1, factor))
    weights = torch.einsum("bijyaxc,aim,cjn->bacmnyx", weights, shifted, shifted)
    return reassemble(low, weights.flatten(1, 2).flatten(2, 3), factor)


class ReSfu(Upsampler):
    """One enlargement by any factor. (C + 1)·E parameters for the map, 55 k for the rest, E = 32."""

    needs_tiles = False
    keeps_constants = True

    def __init__(self, width: int, config: SharpenerConfig):
        super().__init__(width, config)
        e, k = config.resfu.width, config.resfu.window
        self.look = nn.Sequential(convolution(3, e, 3), nn.GELU(), nn.Conv2d(e, e, 1))
        self.embed = nn.Conv2d(width, e, 1)
        self.meaning, self.detail = (PairedDifference(e, k, config.factor) for _ in range(2))
        self.score = nn.Sequential(nn.GELU(), nn.Conv2d(2 * e, k * k, 1))
        tap = torch.arange(k) - k // 2
        away = (tap[:, None].square() + tap.square()).flatten()
        with torch.no_grad():
            self.score[1].bias.copy_(-away / (2 * config.resfu.sigma**2))

    def forward(self, low: Tensor, tiles: Tensor | None, image: Tensor) -> Tensor:
        f = self.factor
        seen = self.look(F.adaptive_avg_pool2d(image, [n * f for n in low.shape[-2:]]))
        known = self.embed(low)
        alike = [
            self.meaning(guided_filter(known, seen, f), enlarge(known, f)),
            self.detail(seen, smoothed(seen, f)),
        ]
        scores = self.score(torch.cat(alike, 1))
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))  # weights that sum to 1 need the digits
        return average(low, scores.softmax(1), f)
