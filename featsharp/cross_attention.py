"""Queries of a fine map, keys and values of a coarse one → a fine map, each cell a weighted mean of the coarse cells.

The values are never projected and all heads' weights are averaged before they are used: what comes out stays in the
space of what went in, and no channel is treated unlike another.

Shapes: B images, D channels of queries and keys, C of values, h w coarse cells, f factor, H = f·h, W = f·w.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

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
) -> Tensor:
    """Queries B×D×H×W, keys B×D×h×w, values B×C×h×w → B×C×H×W.

    Args:
        radius: a query sees the (2·radius+1)² coarse cells around its own, cut off at the borders; None: all of them.
        sigma: one number; scores fall with the distance d in coarse cells by d²/2σ². None: they do not.
        most: fine cells worked on at a time, their scores made again in the backward pass; None: all at once, kept.
    """
    q, k, v = (x.permute(0, 2, 3, 1) for x in (queries, keys, values))
    if radius is None:
        return _everywhere(q, k, v, factor, heads, sigma, most).permute(0, 3, 1, 2)
    return _nearby(q, k, v, factor, heads, radius, sigma, most).permute(0, 3, 1, 2)


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
    """Every fine cell looks at every coarse one; in strips of whole rows where there is a `most`."""
    b, height, width, _ = q.shape
    rows, columns = (_fall(factor, n, _count(n, q), sigma) for n in k.shape[1:3])
    strip = height if most is None else max(1, most // (b * width))
    k, v = k.flatten(1, 2), v.flatten(1, 2)
    parts = []
    for i in range(0, height, strip):
        bias = None if sigma is None else _outer(rows[i : i + strip], columns)[None]
        parts.append(_attend_lean(most, q[:, i : i + strip].flatten(1, 2), k, v, bias, heads))
    return torch.cat(parts, 1).unflatten(1, (height, width))


def _nearby(
    q: Tensor, k: Tensor, v: Tensor, factor: int, heads: int, radius: int, sigma: Tensor | None, most: int | None
) -> Tensor:
    """Every fine cell looks at the coarse ones around its own: in tiles of 8×8 fine cells, about, with the coarse
    cells that any of them sees."""
    b, height, width, _ = q.shape
    h, w = k.shape[1:3]
    t = max(1, round(TILE / factor))  # coarse cells along a tile's side
    rows, columns = (halo(n, t, radius, q.device) for n in (h, w))
    inside = ((rows >= 0) & (rows < h))[:, None, :, None] & ((columns >= 0) & (columns < w))[None, :, None, :]
    beyond = (NEVER * ~inside).flatten(2).flatten(0, 1).repeat(b, 1)  # n×K
    rows, columns = rows.clamp(0, h - 1), columns.clamp(0, w - 1)
    seen = _count(t + 2 * radius, q) - radius
    own = _count(t * factor, q) // factor
    axis = _fall(factor, t, seen, sigma) + NEVER * ((own[:, None] - seen).abs() > radius)
    bias = _outer(axis, axis)  # Q×K
    parts = (split(q, t * factor), gather(k, rows, columns), gather(v, rows, columns), beyond)
    tiles = len(beyond) if most is None else max(1, most // (t * factor) ** 2)
    out = [
        _attend_lean(most, *part, bias + outside[:, None], heads)
        for *part, outside in zip(*(part.split(tiles) for part in parts))
    ]
    return join(torch.cat(out), t * factor, (height, width))


def _attend_lean(most: int | None, *arguments: Tensor | int | None) -> Tensor:
    """`attend`; of a part of the map only what goes in is kept for the backward pass."""
    if most is None or not torch.is_grad_enabled():
        return attend(*arguments)
    return checkpoint(attend, *arguments, use_reentrant=False, preserve_rng_state=False)


def _fall(factor: int, n: int, seen: Tensor, sigma: Tensor | None) -> Tensor:
    """(f·n)×K: −d²/2σ² along an axis, from the centres of the fine cells of n coarse ones to those `seen`."""
    place = (_count(n * factor, seen) + 0.5) / factor - 0.5
    squares = (place[:, None] - seen).square()
    if sigma is None:
        return torch.zeros_like(squares)
    sigma = sigma.to(torch.promote_types(sigma.dtype, torch.float32))
    return -squares.to(sigma.dtype) / (2 * sigma.square().clamp_min(1e-4))


def _outer(rows: Tensor, columns: Tensor) -> Tensor:
    """H×h and W×w → (H·W)×(h·w), the sums."""
    return (rows[:, None, :, None] + columns[None, :, None, :]).flatten(2).flatten(0, 1)


def _count(n: int, like: Tensor) -> Tensor:
    return torch.arange(n, device=like.device)
