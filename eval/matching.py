"""Turns feature maps and places in two pictures into matches: what both correspondence tasks share.

Shapes: D width, h w grid of the map, H W grid that is matched, P points.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from eval.datasets.split import Split
from teachers.features import Size


def scaled(size: Size, scale: float) -> Size:
    """The grid that is matched: `scale` of a picture's own size, whatever the model's."""
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


def enlarged(features: Tensor, size: Size, mode: str) -> Tensor:
    """A map D×h×w brought to D×H×W (bilinear or bicubic), every vector of unit length."""
    large = F.interpolate(features[None], size, mode=mode, align_corners=False)[0]
    return F.normalize(large, dim=0)


def sampled(features: Tensor, places: Tensor, size: Size) -> Tensor:
    """Unit features P×D of a map D×h×w at places P×2 (x, y in pixels of a picture of `size`), bilinear."""
    height, width = size
    shares = places / places.new_tensor([width, height])
    grid = (2 * shares - 1)[None, None].to(features)
    found = F.grid_sample(features[None], grid, mode="bilinear", padding_mode="border", align_corners=False)
    return F.normalize(found[0, :, 0].T, dim=1)


def centres(grid: Size, size: Size, device: torch.device | str = "cpu") -> Tensor:
    """The middles of a grid's cells H×W×2 (x, y) in pixels of a picture of `size`."""
    y = (torch.arange(grid[0], device=device) + 0.5) * (size[0] / grid[0])
    x = (torch.arange(grid[1], device=device) + 0.5) * (size[1] / grid[1])
    return torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)


def spread(points: Tensor, count: int) -> Tensor:
    """Up to `count` of P points P×N that lie far from each other (farthest-point sampling), as indices."""
    chosen = [int((points - points.mean(dim=0)).norm(dim=1).argmax())]
    distances = (points - points[chosen[0]]).norm(dim=1)
    while len(chosen) < min(count, len(points)):
        chosen.append(int(distances.argmax()))
        distances = torch.minimum(distances, (points - points[chosen[-1]]).norm(dim=1))
    return torch.tensor(chosen)


def sizes(split: Split) -> Callable[[int], Size]:
    """The pictures' own sizes; each is decoded once where the split does not know them."""

    @cache
    def size(index: int) -> Size:
        return split.shape or tuple(split.image(index).shape[1:])

    return size
