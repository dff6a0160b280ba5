"""Joint bilateral upsampling: turns a low-resolution map and the image into a map that follows the image's edges.

Each output cell is a weighted mean of 7×7 neighbours of the bilinearly enlarged map; the weights come from how alike
the guidance is at the two places and how far apart they are (Kopf et al. 2007; learned guidance: FeatUp,
arXiv 2403.10516, §3.2, without its learned corrections of the kernel).

Shapes: B images, C channels, h w source cells, s factor, H = h·s, W = w·s, D = 2·radius + 1 taps along an axis.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featsharp.adaptive import TILE, adaptive_upsample, reflect_pad
from featsharp.budget import by_channels
from featsharp.config import JbuConfig
from featsharp.patches import gather, halo, join, mirrored, near_pairs, split


def prime_factors(n: int) -> list[int]:
    """Ascending primes whose product is n; none for 1."""
    for p in range(2, int(n**0.5) + 1):
        if n % p == 0:
            return [p, *prime_factors(n // p)]
    return [n] if n > 1 else []


# The learned kernel ----------------------------------------------------------------------------------------------


def bilateral_kernel(
    guidance: Tensor, temperature: Tensor, sigma: Tensor, radius: int, implementation: str = "auto"
) -> Tensor:
    """Projected guidance B×P×H×W → the weights B×D²×H×W of each cell's neighbours, summing to 1.

    softmax(τ·⟨q(p+o), q(p)⟩) · exp(−|o|²/2σ²), normalised, is one softmax over the sum of the exponents.
    """
    likeness = shift_likeness if implementation == "shift" else tile_likeness
    alike = likeness(guidance, radius)
    alike = alike.to(torch.promote_types(alike.dtype, torch.float32))  # weights that sum to 1 need the digits
    tap = torch.linspace(-1, 1, 2 * radius + 1, device=alike.device, dtype=alike.dtype)
    distance = (tap[:, None] ** 2 + tap[None, :] ** 2).view(1, -1, 1, 1)
    scores = temperature.exp().clamp(1e-4, 1e4) * alike - distance / (2 * sigma**2)
    return scores.softmax(1)


def shift_likeness(q: Tensor, radius: int) -> Tensor:
    """⟨q(p+o), q(p)⟩ for every cell p and tap o, B×P×H×W → B×D²×H×W: the definition."""
    h, w = q.shape[-2:]
    d = 2 * radius + 1
    padded = reflect_pad(q, radius)
    return torch.stack([(q * padded[:, :, i : i + h, j : j + w]).sum(1) for i in range(d) for j in range(d)], 1)


def tile_likeness(q: Tensor, radius: int) -> Tensor:
    """The same by matrix products: all cells of a tile times all of its halo, of which the near pairs are kept."""
    h, w = q.shape[-2:]
    q = q.permute(0, 2, 3, 1)
    around = gather(q, *(mirrored(halo(n, TILE, radius, q.device), n) for n in (h, w)))
    pairs = torch.bmm(split(q, TILE), around.transpose(1, 2))
    return join(near_pairs(pairs, TILE, 2 * radius + 1), TILE, (h, w)).permute(0, 3, 1, 2)


class JbuLevel(nn.Module):
    """One enlargement by a factor: source B×C×h×w, guidance B×3×H×W → B×C×H×W. 1186 parameters, whatever C."""

    memory_budget: int | None = None  # bytes; see `budget.limit`

    def __init__(self, factor: int, config: JbuConfig):
        super().__init__()
        self.factor, self.radius, self.implementation = factor, config.radius, config.implementation
        # One element each, not none: DeepSpeed cannot broadcast a parameter without dimensions.
        self.temperature = nn.Parameter(torch.zeros(1))  # log τ
        self.sigma = nn.Parameter(torch.full((1,), config.sigma))  # in units of the radius
        self.project = nn.Sequential(nn.Conv2d(3, config.width, 1), nn.GELU(), nn.Conv2d(config.width, config.width, 1))

    def forward(self, source: Tensor, guidance: Tensor) -> Tensor:
        q = self.project(guidance)
        kernel = bilateral_kernel(q, self.temperature, self.sigma, self.radius, self.implementation)
        upsample = partial(adaptive_upsample, factor=self.factor, implementation=self.implementation)
        return by_channels(upsample, source, kernel, self.memory_budget)


class JbuStack(nn.Module):
    """Enlargement by `factor`, one level a prime: source B×C×h×w, image B×3×any size → B×C×(h·factor)×(w·factor)."""

    def __init__(self, factor: int, config: JbuConfig):
        super().__init__()
        self.factor, self.guidance = factor, config.guidance
        self.levels = nn.ModuleList(JbuLevel(prime, config) for prime in prime_factors(factor))

    def forward(self, source: Tensor, image: Tensor) -> Tensor:
        if self.guidance == "bilinear" and self.levels:
            size = [n * self.factor for n in source.shape[-2:]]
            image = F.interpolate(image, size=size, mode="bilinear", align_corners=False)
        for level in self.levels:
            size = [n * level.factor for n in source.shape[-2:]]
            source = level(source, F.adaptive_avg_pool2d(image, size))
        return source
