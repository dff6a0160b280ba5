"""Merges several maps of one size into a sharper one: local attention, then SwiGLU, added to the first of the maps.

FeatSharp (arXiv 2502.16025), §3: the first C channels carry the upsampled map through the residual path, the rest
(the tiles) only inform it. With the layer scales at zero the block returns the first map exactly.

Shapes: B images, h w cells, C the teacher's width, E = inputs·C, n heads of width e = E / n, r = window // 2.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featsharp.budget import on_meta, peak_bytes
from featsharp.config import FusionConfig
from featsharp.tile_attention import TILE
from featsharp.window_attention import Form, alibi_slopes, form_for, score_bias, window_attention
from teachers.errors import UserError


def rotate(x: Tensor, top: int = 0, base: float = 50000.0) -> Tensor:
    """Rotary positions on B×h×w×Q, rows counted from `top`: half of the channels turn with the row, half with the
    column."""
    _, h, w, q = x.shape
    half = q // 2
    frequency = base ** (-2 * torch.arange(half // 2, device=x.device) / half)
    rows, columns = torch.arange(top, top + h, device=x.device), torch.arange(w, device=x.device)
    angles = [place[:, None] * frequency for place in (rows, columns)]
    angle = torch.cat([angles[0][:, None].expand(-1, w, -1), angles[1][None].expand(h, -1, -1)], 2)  # h×w×Q/2
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


class WindowAttention(nn.Module):
    """Multi-head self-attention in a window: B×h×w×E → B×h×w×E."""

    planned: Form | None = None  # what a plan on the meta device computes with

    def __init__(self, width: int, config: FusionConfig):
        super().__init__()
        if width % (4 * config.heads if config.position == "rope" else config.heads):
            raise UserError(
                f"fusion.heads is {config.heads}, which does not suit a block of {width} channels",
                expected="a divisor of it" + (" by 4, because of rope" if config.position == "rope" else ""),
                todo="set fusion.heads in the sharpener's recipe",
            )
        self.heads, self.radius, self.rope = config.heads, config.window // 2, config.position == "rope"
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)
        slopes = alibi_slopes(config.heads) * (config.position == "alibi")
        self.register_buffer("bias", score_bias(slopes, self.radius), persistent=False)

    def forward(self, x: Tensor, top: int = 0) -> Tensor:
        """`top`: which row of a larger map the first row is."""
        q, k, v = self.qkv(x).chunk(3, -1)
        if self.rope:  # on the whole vectors, before they are cut into heads
            q, k = rotate(q, top), rotate(k, top)
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in (q, k, v))
        return self.proj(window_attention(q, k, v, self.bias, self.radius, self.planned).flatten(-2))


class SwiGLU(nn.Module):
    """silu(a)·b, projected: …×E → …×C."""

    def __init__(self, width: int, hidden: int, out: int):
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.w12(x).chunk(2, -1)
        return self.w3(F.silu(a) * b)


class Fusion(nn.Module):
    """Maps B×C×h×w, the residual carrier first → B×C×h×w; in inference by bands of rows, under a `memory_budget`."""

    memory_budget: int | None = None  # bytes; see `budget.limit`

    def __init__(self, width: int, inputs: int, config: FusionConfig):
        super().__init__()
        e = width * inputs
        hidden = config.hidden or 8 * -(-(4 * e * 2 // 3) // 8)
        self.width = width
        self.norm1 = nn.LayerNorm(e) if config.layer_norm else nn.Identity()
        self.attention = WindowAttention(e, config)
        self.gamma1 = nn.Parameter(torch.full((e,), config.layer_scale))
        self.norm2 = nn.LayerNorm(e) if config.layer_norm else nn.Identity()
        self.ffn = SwiGLU(e, hidden, width)
        self.gamma2 = nn.Parameter(torch.full((width,), config.layer_scale))

    def forward(self, *maps: Tensor) -> Tensor:
        h, rows = maps[0].shape[-2], self._rows_at_once(maps)
        if rows >= h:
            return self._band(maps, 0, h)
        out = None
        for top in range(0, h, rows):
            band = self._band(maps, top, min(top + rows, h))
            out = band.new_empty(*band.shape[:2], *maps[0].shape[-2:]) if out is None else out
            out[:, :, top : top + rows] = band
            del band  # or it would be there beside the next one
        return out

    def _band(self, maps: Sequence[Tensor], top: int, bottom: int) -> Tensor:
        """The rows `top` … `bottom` − 1 of the result, from these and from what their windows reach."""
        reach, h = self.attention.radius, maps[0].shape[-2]
        start, end = max(0, top - reach), min(h, bottom + reach)
        x = torch.cat([m[:, :, start:end].permute(0, 2, 3, 1) for m in maps], -1)
        attended = self.attention(self.norm1(x), start)[:, top - start : bottom - start]
        x = x[:, top - start : bottom - start] + self.gamma1 * attended
        x = x[..., : self.width] + self.gamma2 * self.ffn(self.norm2(x))
        return x.permute(0, 3, 1, 2)

    def _rows_at_once(self, maps: Sequence[Tensor]) -> int:
        """As many as `memory_budget` lets be worked on, in whole tiles of queries."""
        b, _, h, w = maps[0].shape
        if self.memory_budget is None or torch.is_grad_enabled() or maps[0].is_meta:
            return h

        self.attention.planned = form_for(maps[0].device)  # what is counted below, on the meta device

        def needed(rows: int) -> int:
            seen = min(h, rows + 2 * self.attention.radius)
            return peak_bytes(on_meta(self), *(m.new_empty(b, m.shape[1], seen, w, device="meta") for m in maps))

        if needed(h) <= self.memory_budget:
            return h
        return TILE * max(1, bisect_right(range(TILE, h, TILE), self.memory_budget, key=needed))
