"""Draws views of an image that differ by homographies, and moves maps from one view into another.

A homography is a 3×3 matrix between normalised coordinates (x, y, 1) in which −1 and 1 are the *edges* of a view, so
the same matrix holds for its pixels and for its coarser and finer grids (`align_corners=False` throughout).

Shapes: B images, J jitters, H W pixels or cells.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from featsharp.config import ViewsConfig
from teachers.features import Size


class Views(NamedTuple):
    """Where views look."""

    base: Tensor  # B×3×3, base view → image
    jitters: Tensor  # J×B×3×3, jittered view → base view


def cell_centres(size: Size, device: torch.device | str = "cpu") -> Tensor:
    """H×W×3: the homogeneous normalised coordinates (x, y, 1) of the centres of a grid's cells."""
    y, x = ((2 * torch.arange(n, device=device) + 1) / n - 1 for n in size)
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([x, y, torch.ones_like(x)], -1)


def look_up(homography: Tensor, size: Size) -> Tensor:
    """B×3×3 → B×H×W×2: where each cell of a view falls, as `grid_sample` takes it."""
    points = torch.einsum("bij,hwj->bhwi", homography, cell_centres(size, homography.device))
    return points[..., :2] / points[..., 2:]


def warp(maps: Tensor, where: Tensor, mode: str = "bilinear", padding: str = "reflection") -> Tensor:
    """Sample `maps` B×C×h×w at `where` B×H×W×2 → B×C×H×W."""
    return F.grid_sample(maps, where.to(maps.dtype), mode=mode, padding_mode=padding, align_corners=False)


def sample_view(images: Tensor, to_image: Tensor, size: Size) -> Tensor:
    """One bicubic look at images B×3×H×W through homographies B×3×3 → B×3×size in [0, 1]; mirrored beyond the edges."""
    return warp(images, look_up(to_image, size), mode="bicubic").clamp(0, 1)


def fully_inside(to_base: Tensor, size: Size) -> Tensor:
    """B×1×H×W: which cells of a view lie wholly, up to the tilt, inside the base view."""
    edge = torch.tensor([1 - 1 / size[1], 1 - 1 / size[0]], device=to_base.device)
    return (look_up(to_base, size).abs() <= edge + 1e-4).all(-1)[:, None]


def draw_views(config: ViewsConfig, batch: int, size: Size, generator: torch.Generator) -> Views:
    """Random views of `batch` images: a zoom and crop a base view, small changes of it for each jitter."""
    zoom = _uniform(config.zoom, (batch,), generator)
    room = 1 - 1 / zoom
    centre = _uniform((-1, 1), (batch, 2), generator) * room[:, None]
    base = _affine(1 / zoom, 1 / zoom, centre[:, 0], centre[:, 1])
    n = config.jitters * batch
    aspect = size[1] / size[0]
    mirror = 1 - 2 * (torch.rand(n, generator=generator) < config.flip).float()
    shrink = config.jitter_zoom ** _uniform((-1, 1), (n,), generator)
    shift = _uniform((-2 * config.shift, 2 * config.shift), (n, 2), generator)
    jitters = (
        _affine(torch.ones(n), torch.ones(n), shift[:, 0], shift[:, 1])
        @ _rotation(math.radians(config.rotation) * _uniform((-1, 1), (n,), generator), aspect)
        @ _perspective(config.perspective, n, generator)
        @ _affine(shrink * mirror, shrink, torch.zeros(n), torch.zeros(n))
    )
    return Views(base, jitters.unflatten(0, (config.jitters, batch)))


def _uniform(bounds: tuple[float, float], shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * torch.rand(shape, generator=generator)


def _affine(sx: Tensor, sy: Tensor, tx: Tensor, ty: Tensor) -> Tensor:
    zero, one = torch.zeros_like(sx), torch.ones_like(sx)
    return torch.stack([sx, zero, tx, zero, sy, ty, zero, zero, one], -1).unflatten(-1, (3, 3))


def _rotation(angle: Tensor, aspect: float) -> Tensor:
    """A turn in pixels, in coordinates that are normalised along each axis on its own (aspect = W / H)."""
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos, -sin / aspect, zero, sin * aspect, cos, zero, zero, zero, one], -1).unflatten(-1, (3, 3))


def _perspective(spread: tuple[float, float], n: int, generator: torch.Generator) -> Tensor:
    """The homographies that move the four corners by Gaussian offsets of `spread` (in shares of the side)."""
    scale = _uniform(spread, (n, 1, 1), generator)
    offset = (scale * torch.randn(n, 4, 2, generator=generator)).clamp(-0.45, 0.45)
    corners = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]).expand(n, -1, -1)
    return from_corners(corners, corners + 2 * offset)


def from_corners(source: Tensor, target: Tensor) -> Tensor:
    """N×4×2 points → the N×3×3 homographies (last entry 1) that take `source` to `target`."""
    x, y = source.double().unbind(-1)
    u, v = target.double().unbind(-1)
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    rows_u = torch.stack([x, y, one, zero, zero, zero, -u * x, -u * y], -1)
    rows_v = torch.stack([zero, zero, zero, x, y, one, -v * x, -v * y], -1)
    solved = torch.linalg.solve(torch.cat([rows_u, rows_v], 1), torch.cat([u, v], 1))
    return F.pad(solved, (0, 1), value=1.0).unflatten(-1, (3, 3)).float()
