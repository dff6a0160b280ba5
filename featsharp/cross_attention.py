"""Queries of a fine map, keys and values of a coarse one → a fine map, each cell a weighted mean of the coarse cells.

The values are never projected and all heads' weights are averaged before they are used: what comes out stays in the
space of what went in, and no channel is treated unlike another.

Shapes: B images, D channels of queries and keys, C of values, h w coarse cells, f factor, H = f·h, W = f·w.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from featsharp.budget import fitting, peak_bytes
from featsharp.config import AttentionConfig
from featsharp.patches import gather, halo, join, split

TILE = 8  # fine cells along the side of a tile, about
NEVER = -1e4  # a score that no key survives, with which a row of nothing else has gradients still


def cross_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    factor: int,
    heads: int,
    *,
    radius: int | None = None,
    sigma: Tensor | None = None,
    most: int | None = None,
    budget: int | None = None,
) -> Tensor:
    """Queries B×D×H×W, keys B×D×h×w, values B×C×h×w → B×C×H×W.

    Args:
        radius: a query sees the (2·radius+1)² coarse cells around its own, cut off at the borders; None: all of them.
        sigma: one number; scores fall with the distance d in coarse cells by d²/2σ². None: they do not.
        most: fine cells worked on at a time, in whole rows (of tiles, with a radius), their scores made again in the
            backward pass; None: all at once, their scores kept.
        budget: in inference without a `most`, bytes that all of it may use, the result included.
    """
    if most is None and budget is not None and not torch.is_grad_enabled() and not queries.is_meta:
        most = cells_at_once(budget, (queries, keys, values), factor, heads, radius, sigma)
    q, k, v = (x.permute(0, 2, 3, 1) for x in (queries, keys, values))
    if radius is None:
        return _everywhere(q, k, v, factor, heads, sigma, most).permute(0, 3, 1, 2)
    return _nearby(q, k, v, factor, heads, radius, sigma, most).permute(0, 3, 1, 2)


def cells_at_once(
    budget: int, maps: tuple[Tensor, ...], factor: int, heads: int, radius: int | None, sigma: Tensor | None
) -> int:
    """As many as `budget` bytes let be worked on, in whole rows, or rows of tiles; see `featsharp.budget`."""
    b, _, height, width = maps[0].shape
    side = _tile(factor) * factor
    step = b * width if radius is None else b * -(-width // side) * side**2
    sigma = None if sigma is None else sigma.to("meta")

    def cost(most: int) -> int:
        whole = partial(cross_attention, factor=factor, heads=heads, radius=radius, sigma=sigma, most=most)
        return peak_bytes(whole, *(x.to("meta") for x in maps))

    return fitting(budget, cost(step), cost(2 * step), step, b * height * width)


def start_sigma(config: AttentionConfig) -> nn.Parameter | None:
    """The learned `sigma` of `cross_attention`, where the recipe wants distances to count from the start."""
    return None if config.sigma is None else nn.Parameter(torch.full((1,), config.sigma))


def attend(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, heads: int) -> Tensor:
    """n×Q×D, n×K×D, n×K×C, bias broadcastable to n×Q×K → n×Q×C: a softmax a head, the mean of these, the values."""
    q, k = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (queries, keys))  # n×heads×…×D/heads
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))  # weights that sum to 1 need the digits
    if bias is not None:
        scores = scores + bias.unsqueeze(1)
    return scores.softmax(-1).mean(1).to(values.dtype) @ values


def _everywhere(
    q: Tensor, k: Tensor, v: Tensor, factor: int, heads: int, sigma: Tensor | None, most: int | None
) -> Tensor:
    """Every fine cell looks at every coarse one."""
    b, height, width, _ = q.shape
    rows, columns = (_fall(factor, n, _count(n, q), sigma) for n in k.shape[1:3])
    k, v = k.flatten(1, 2), v.flatten(1, 2)

    def strip(top: int, bottom: int) -> Tensor:
        bias = None if sigma is None else _outer(rows[top:bottom], columns)[None]
        return attend(q[:, top:bottom].flatten(1, 2), k, v, bias, heads).unflatten(1, (-1, width))

    return _by_strips(strip, height, 1, b * width, most)


def _nearby(
    q: Tensor, k: Tensor, v: Tensor, factor: int, heads: int, radius: int, sigma: Tensor | None, most: int | None
) -> Tensor:
    """Every fine cell looks at the coarse ones around its own: in tiles of 8×8 fine cells, about, with the coarse
    cells that any of them sees."""
    b, height, width, _ = q.shape
    h, w = k.shape[1:3]
    t = _tile(factor)
    rows, columns = (halo(n, t, radius, q.device) for n in (h, w))
    inside = ((rows >= 0) & (rows < h))[:, None, :, None] & ((columns >= 0) & (columns < w))[None, :, None, :]
    beyond = (NEVER * ~inside).flatten(2)  # ny×nx×K
    rows, columns = rows.clamp(0, h - 1), columns.clamp(0, w - 1)
    near = _count(t + 2 * radius, q) - radius
    own = _count(t * factor, q) // factor
    axis = _fall(factor, t, near, sigma) + NEVER * ((own[:, None] - near).abs() > radius)
    bias = _outer(axis, axis)  # Q×K

    def strip(top: int, bottom: int) -> Tensor:
        part = slice(top // (t * factor), -(-bottom // (t * factor)))
        keys, values = (gather(x, rows[part], columns) for x in (k, v))
        outside = beyond[part].flatten(0, 1).repeat(b, 1)[:, None]
        out = attend(split(q[:, top:bottom], t * factor), keys, values, bias + outside, heads)
        return join(out, t * factor, (bottom - top, width))

    return _by_strips(strip, height, t * factor, b * len(columns) * t * factor, most)


def _by_strips(
    strip: Callable[[int, int], Tensor], height: int, step: int, row: int, most: int | None
) -> Tensor:
    """B×H×W×C from strips of whole steps of rows, of at most `most` cells where a step has no more; `row` cells each.

    While training, nothing that a strip makes is kept for the backward pass.
    """
    if most is None:
        return strip(0, height)
    rows = step * max(1, most // (row * step))
    ends = [(top, min(top + rows, height)) for top in range(0, height, rows)]
    if torch.is_grad_enabled():
        return torch.cat([checkpoint(strip, *x, use_reentrant=False, preserve_rng_state=False) for x in ends], 1)
    return torch.cat([strip(*x) for x in ends], 1)


def _fall(factor: int, n: int, seen: Tensor, sigma: Tensor | None) -> Tensor:
    """(f·n)×K: −d²/2σ² along an axis, from the centres of the fine cells of n coarse ones to those `seen`."""
    place = (_count(n * factor, seen) + 0.5) / factor - 0.5
    squares = (place[:, None] - seen).square()
    if sigma is None:
        return torch.zeros_like(squares)
    sigma = sigma.to(torch.promote_types(sigma.dtype, torch.float32))
    return -squares.to(sigma.dtype) / (2 * sigma.square().clamp_min(1e-4))


def _tile(factor: int) -> int:
    """Coarse cells along a tile's side."""
    return max(1, round(TILE / factor))


def _outer(rows: Tensor, columns: Tensor) -> Tensor:
    """H×h and W×w → (H·W)×(h·w), the sums."""
    return (rows[:, None, :, None] + columns[None, :, None, :]).flatten(2).flatten(0, 1)


def _count(n: int, like: Tensor) -> Tensor:
    return torch.arange(n, device=like.device)
