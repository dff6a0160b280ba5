"""Joint bilateral upsampling: turns a low-resolution map and the image into a map that follows the image's edges.

Each output cell is a weighted mean of 7×7 neighbours of the bilinearly enlarged map; the weights come from how alike
the guidance is at the two places and how far apart they are (Kopf et al. 2007; learned guidance: FeatUp,
arXiv 2403.10516, §3.2, without its learned corrections of the kernel).

Shapes: B images, C channels, h w source cells, s factor, H = h·s, W = w·s, D = 2·radius + 1 taps along an axis.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featsharp.config import JbuConfig
from featsharp.patches import gather, halo, join, mirrored, near_pairs, split

TILE = 8  # output cells along the side of a tile, about


def prime_factors(n: int) -> list[int]:
    """Ascending primes whose product is n; none for 1."""
    for p in range(2, int(n**0.5) + 1):
        if n % p == 0:
            return [p, *prime_factors(n // p)]
    return [n] if n > 1 else []


def reflect_pad(x: Tensor, radius: int) -> Tensor:
    """`…×H×W` → `…×(H+2·radius)×(W+2·radius)`, also where the radius is larger than the map."""
    rows, columns = (mirrored(torch.arange(-radius, n + radius, device=x.device), n) for n in x.shape[-2:])
    return x.index_select(-2, rows).index_select(-1, columns)


# The adaptive filter, in two forms -------------------------------------------------------------------------------


def adaptive_upsample(source: Tensor, kernel: Tensor, factor: int, implementation: str = "auto") -> Tensor:
    """Enlarge `source` B×C×h×w bilinearly by `factor`, then filter each cell with its own `kernel` B×D²×H×W.

    The borders are mirrored. `implementation`: "shift" is the definition, "composed" the fast form, equal up to
    rounding, forward and backward; "auto" picks one.
    """
    upsample = shift_upsample if implementation == "shift" else composed_upsample
    return upsample(source, kernel, factor)


def shift_upsample(source: Tensor, kernel: Tensor, factor: int) -> Tensor:
    """The definition, one pass over the enlarged map a tap: the reference that the fast form is tested against."""
    d = int(kernel.shape[1] ** 0.5)
    h, w = kernel.shape[-2:]
    large = F.interpolate(source, size=(h, w), mode="bilinear", align_corners=False)
    large = reflect_pad(large, d // 2)
    kernel = kernel.to(source.dtype)
    return sum(kernel[:, i * d + j, None] * large[:, :, i : i + h, j : j + w] for i in range(d) for j in range(d))


def composed_upsample(source: Tensor, kernel: Tensor, factor: int) -> Tensor:
    """Fold enlarging and mirroring into the weights, tile by tile, and apply those to the source itself.

    Enlarging, mirroring and filtering are all linear in the source. An 8×8 tile of output (at factor 2) depends on 8×8
    source cells only, so its 64 kernels become one 64×64 matrix: the filter runs at the speed of matrix products, and
    the enlarged map never exists.
    """
    b, _, h, w = source.shape
    d = int(kernel.shape[1] ** 0.5)
    rows, row_start, t = _axis(h, factor, d // 2)
    columns, column_start, _ = _axis(w, factor, d // 2)
    rows, columns = rows.to(kernel), columns.to(kernel)  # (tiles·t)×D×K, (tiles·t)×D×L
    k, l = rows.shape[-1], columns.shape[-1]
    ny, nx = len(rows) // t, len(columns) // t
    kernel = F.pad(kernel, (0, nx * t - kernel.shape[-1], 0, ny * t - kernel.shape[-2]))
    kernel = kernel.unflatten(1, (d, d))
    weights = torch.einsum("bijyx,xjl->bixyl", kernel, columns)  # taps along x → source columns
    weights = torch.einsum("bixyl,yik->byxkl", weights, rows)  # taps along y → source rows
    weights = weights.unflatten(2, (nx, t)).unflatten(1, (ny, t)).permute(0, 1, 3, 2, 4, 5, 6)
    weights = weights.reshape(b * ny * nx, t * t, k * l).to(source.dtype)
    patches = gather(source.permute(0, 2, 3, 1), row_start + _count(k), column_start + _count(l))
    return join(torch.bmm(weights, patches), t, (h * factor, w * factor)).permute(0, 3, 1, 2)


def _count(n: int) -> Tensor:
    return torch.arange(n, device="cpu")  # whatever the default device: positions are worked out on the CPU


@lru_cache(maxsize=64)
def _axis(n: int, factor: int, radius: int) -> tuple[Tensor, Tensor, int]:
    """Along one axis: output cell × tap → the weights on its tile's source cells, fp64; each tile's first; tile size.

    Made by pushing the identity through the very enlarging and mirroring that they replace: exact at the borders too.
    """
    t = factor * max(1, round(TILE / factor))
    enlarge = F.interpolate(
        torch.eye(n, dtype=torch.float64, device="cpu")[None], size=n * factor, mode="linear", align_corners=False
    )[0].T  # H×n
    tiles = -(-n * factor // t)
    enlarge = enlarge[mirrored(_count(n * factor + 2 * radius) - radius, n * factor)]
    enlarge = F.pad(enlarge, (0, 0, 0, tiles * t + 2 * radius - len(enlarge)))
    taps = enlarge.unfold(0, 2 * radius + 1, 1).transpose(1, 2).reshape(tiles, t, 2 * radius + 1, n)
    used = (taps != 0).flatten(1, 2).any(1)  # tiles×n
    first = used.int().argmax(1)
    last = n - 1 - used.flip(1).int().argmax(1)
    width = int((last - first).max()) + 1
    first = first.clamp(max=n - width)
    index = (first[:, None] + _count(width))[:, None, None].expand(-1, t, 2 * radius + 1, -1)
    return taps.gather(3, index).flatten(0, 1), first[:, None], t


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
        return adaptive_upsample(source, kernel, self.factor, self.implementation)


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
