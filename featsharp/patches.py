"""Cuts a channels-last map into square tiles, each with the halo of cells around it that local operators look at.

Shapes: B images, H W cells, C channels, t cells along a tile's side, ny nx tiles.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def mirrored(position: Tensor, n: int) -> Tensor:
    """For any integer positions the one of 0 … n−1 that mirrors at both borders show (the border is not repeated)."""
    if n == 1:
        return torch.zeros_like(position)
    position = position % (2 * n - 2)
    return torch.minimum(position, 2 * n - 2 - position)


def halo(n: int, t: int, radius: int, device: torch.device | str = "cpu") -> Tensor:
    """Positions that each tile along an axis of n cells sees, tiles×(t+2·radius); some lie outside 0 … n−1."""
    first = torch.arange(0, n, t, device=device)
    return first[:, None] + torch.arange(-radius, t + radius, device=device)


def gather(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """B×H×W×C, positions ny×K and nx×L → (B·ny·nx)×(K·L)×C: a patch a tile, whole rows of C numbers copied."""
    b, h, w, c = x.shape
    index = (rows[:, None, :, None] * w + columns[None, :, None, :]).flatten().to(x.device)
    return x.reshape(b, h * w, c).index_select(1, index).view(-1, rows.shape[1] * columns.shape[1], c)


def split(x: Tensor, t: int) -> Tensor:
    """B×H×W×C → (B·ny·nx)×t²×C, the last tiles filled with zeros."""
    b, h, w, c = x.shape
    x = F.pad(x, (0, 0, 0, -w % t, 0, -h % t))
    return x.unflatten(2, (-1, t)).unflatten(1, (-1, t)).transpose(2, 3).reshape(-1, t * t, c)


def join(tiles: Tensor, t: int, size: tuple[int, int]) -> Tensor:
    """The inverse of `split`: (B·ny·nx)×t²×C → B×H×W×C."""
    h, w = size
    ny, nx, c = -(-h // t), -(-w // t), tiles.shape[-1]
    x = tiles.view(-1, ny, nx, t, t, c).transpose(2, 3).reshape(-1, ny * t, nx * t, c)
    return x[:, :h, :w]


def near_pairs(pairs: Tensor, t: int, d: int) -> Tensor:
    """All pairs n×t²×K² of a tile's cells and its halo's → n×t²×d²: of each cell those d×d around it; K = t+d−1."""
    return pairs.contiguous().as_strided(*_band(len(pairs), t, d, 1)).reshape(-1, t * t, d * d)


def spread(weights: Tensor, t: int, d: int, stride: int) -> Tensor:
    """Each cell's d×d weights, n×t²×d² → n×t²×K² over what its tile sees, zeros elsewhere; K = (t−1)·stride+d."""
    shape, strides = _band(len(weights), t, d, stride)
    empty = weights.new_zeros(len(weights), t * t, ((t - 1) * stride + d) ** 2)
    return torch.as_strided_scatter(empty, weights.view(shape), shape, strides)


def _band(n: int, t: int, d: int, stride: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and strides that show, in n×t²×K², cell (a, b) with tap (i, j): column (a·stride+i, b·stride+j)."""
    k = (t - 1) * stride + d
    return (n, t, t, d, d), (t * t * k * k, t * k * k + stride * k, k * k + stride, k, 1)


def seen(x: Tensor, stride: int, reach: int, ny: int, nx: int) -> Tensor:
    """What ny×nx tiles see of B×H×W×C, windows of reach×reach cells that begin every `stride`: (B·ny·nx)×reach²×C."""
    x = x[:, : (ny - 1) * stride + reach, : (nx - 1) * stride + reach]
    windows = x.unfold(1, reach, stride).unfold(2, reach, stride)  # B×ny×nx×C×reach×reach
    return windows.permute(0, 1, 2, 4, 5, 3).reshape(-1, reach * reach, x.shape[-1])


def add_seen(x: Tensor, windows: Tensor, stride: int, reach: int, ny: int, nx: int) -> None:
    """The transpose of `seen`: adds to x B×H×W×C, H and W at least (ny or nx + ⌈reach / stride⌉ − 1)·stride.

    Pieces of the windows as large as the stride do not overlap, so one is added for all tiles at once.
    """
    windows = windows.view(len(x), ny, nx, reach, reach, -1).transpose(2, 3)  # B×ny×reach×nx×reach×C
    pieces = [(first, min(stride, reach - first)) for first in range(0, reach, stride)]
    for i, high in pieces:
        for j, wide in pieces:
            place = x[:, i : i + ny * stride, j : j + nx * stride]
            place = place.unflatten(2, (nx, stride)).unflatten(1, (ny, stride))
            place[:, :, :high, :, :wide] += windows[:, :, i : i + high, :, j : j + wide]


class Seen(torch.autograd.Function):
    """`seen` with its transpose as the backward, which is several times faster than adding indexed rows."""

    @staticmethod
    def forward(ctx, x: Tensor, stride: int, reach: int, ny: int, nx: int) -> Tensor:
        ctx.shape, ctx.geometry = x.shape, (stride, reach, ny, nx)
        return seen(x, *ctx.geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradient = upstream.new_zeros(ctx.shape)
        add_seen(gradient, upstream, *ctx.geometry)
        return gradient, None, None, None, None
