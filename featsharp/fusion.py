"""Merges several maps of one size into a sharper one: local attention, then SwiGLU, added to the first of the maps.

FeatSharp (arXiv 2502.16025), §3: the first C channels carry the upsampled map through the residual path, the rest
(the tiles) only inform it. With the layer scales at zero the block returns the first map exactly.

Shapes: B images, h w cells, C the teacher's width, E = inputs·C, n heads of width e = E / n, r = window // 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from featsharp.budget import fitting, on_meta, peak_bytes
from featsharp.config import FusionConfig
from featsharp.patches import Seen, add_seen, join, seen, split
from teachers.errors import UserError

TILE = 8  # queries along the side of a tile
CHUNK = {"cpu": 2**24, "cuda": 2**29}  # bytes of keys and values cut out of the map at a time
NEVER = -1e4  # a score that no key survives: e^-10000 is 0 in every dtype


def alibi_slopes(heads: int) -> Tensor:
    """Score lost a cell of distance, heads×2 along (rows, columns): even heads look along rows, odd ones columns."""
    head = torch.arange(heads)
    slope = 2.0 ** -((head + 2) // 2)
    return torch.stack([slope * (head % 2 == 0), slope * (head % 2 == 1)], 1)


def score_bias(slopes: Tensor, radius: int, t: int = TILE) -> Tensor:
    """heads×t²×(t+2r)²: the ALiBi penalty between a tile's queries and its halo's keys, −∞ outside the window."""
    query, key = torch.arange(t) + radius, torch.arange(t + 2 * radius)
    away = (query[:, None] - key[None, :]).abs()  # t×(t+2r)
    rows, columns = away[:, None, :, None].float(), away[None, :, None, :].float()
    penalty = slopes[:, 0, None, None, None, None] * rows + slopes[:, 1, None, None, None, None] * columns
    outside = (rows > radius) | (columns > radius)
    return (-penalty).masked_fill(outside, -torch.inf).flatten(3).flatten(1, 2)


def window_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, radius: int) -> Tensor:
    """Each cell attends to the (2·radius+1)² cells around it, cut off at the borders; exact; any h×w.

    `q`, `k`, `v` and the result are B×h×w×heads×e; `bias` is `score_bias` of the heads. Queries go in tiles of 8×8,
    whose keys are those of the tile and its halo: (8+2r)² scores a query instead of h·w, in one fused call.
    """
    b, h, w, heads, e = q.shape
    ny, nx, reach = -(-h // TILE), -(-w // TILE), TILE + 2 * radius
    # Keys beyond the border get one more coordinate, which lowers their score with any query: a mask a tile would
    # repeat `bias` for every tile and image. Fused kernels want widths in steps of 8, and a bias of 4 dimensions.
    spare = 8 - e % 8
    around = [radius, (nx + reach // TILE) * TILE - radius - w, radius, (ny + reach // TILE) * TILE - radius - h]
    keys, values = (F.pad(x, (0, spare, 0, 0, *around)) for x in (k, v))
    beyond = F.pad(q.new_zeros(h, w), around, value=NEVER * e**0.5)
    keys[..., e] = beyond[..., None]
    row = 2 * b * nx * reach**2 * heads * (e + spare) * q.element_size()  # bytes that a row of tiles sees
    rows = max(1, CHUNK.get(q.device.type, CHUNK["cuda"]) // row)
    if rows >= ny:
        return _attend(q, keys, values, bias)
    return _Strips.apply(q, keys, values, bias, rows)


def _attend(q: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """Queries B×h×w×heads×e; keys and values with the halo around the map and spare coordinates, as the queries get."""
    h, w, heads, e = q.shape[1:]
    reach, ny, nx = round(bias.shape[-1] ** 0.5), -(-h // TILE), -(-w // TILE)
    queries = split(F.pad(q, (0, keys.shape[-1] - e), value=1.0).flatten(3), TILE)
    tiles = queries, *(Seen.apply(x.flatten(3), TILE, reach, ny, nx) for x in (keys, values))
    queries, keys, values = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in tiles)
    out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias[None].to(q.dtype), scale=e**-0.5)
    return join(out.transpose(1, 2).flatten(2), TILE, (h, w)).unflatten(3, (heads, -1))[..., :e]


class _Strips(torch.autograd.Function):
    """`_attend` by some rows of tiles at a time, computed again in the backward: what tiles see is 3 × the map."""

    @staticmethod
    def forward(ctx, q: Tensor, keys: Tensor, values: Tensor, bias: Tensor, rows: int) -> Tensor:
        ctx.strips = [slice(top, top + rows * TILE) for top in range(0, q.shape[1], rows * TILE)]
        out = torch.empty_like(q)
        for strip in ctx.strips:
            here = slice(strip.start, None)
            out[:, strip] = _attend(q[:, strip], keys[:, here], values[:, here], bias)
        ctx.save_for_backward(q, keys, values, bias, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor) -> tuple[Tensor | None, ...]:
        q, keys, values, bias, out = ctx.saved_tensors
        of_q, of_keys, of_values = torch.empty_like(q), torch.zeros_like(keys), torch.zeros_like(values)
        (heads, e), nx, reach = q.shape[-2:], -(-q.shape[2] // TILE), round(bias.shape[-1] ** 0.5)
        for strip in ctx.strips:
            part, up, here = q[:, strip], upstream[:, strip], slice(strip.start, None)
            window = TILE, reach, -(-part.shape[1] // TILE), nx
            part = F.pad(part, (0, keys.shape[-1] - e), value=1.0) * e**-0.5
            mean = (up * out[:, strip]).sum(-1, keepdim=True)  # of a query's score gradients, before they are centred
            tiles = [split(x.flatten(3), TILE) for x in (mean, F.pad(up, (0, values.shape[-1] - e)), part)]
            tiles += [seen(x[:, here].flatten(3), *window) for x in (keys, values)]
            gradients = [torch.empty_like(x) for x in tiles[2:]]
            # A tile at a time on a CPU: its scores stay in a core's cache.
            step = 1 if q.device.type == "cpu" else len(tiles[0])
            for first in range(0, len(tiles[0]), step):
                few = slice(first, first + step)
                known = _tile_gradients(*(x[few].unflatten(2, (heads, -1)).transpose(1, 2) for x in tiles), bias)
                for gradient, mine in zip(gradients, known):
                    gradient[few].unflatten(2, (heads, -1)).copy_(mine.transpose(1, 2))
            of_q[:, strip] = join(gradients[0], TILE, up.shape[1:3]).unflatten(3, (heads, -1))[..., :e] * e**-0.5
            add_seen(of_keys[:, here].flatten(3), gradients[1], *window)
            add_seen(of_values[:, here].flatten(3), gradients[2], *window)
        return of_q, of_keys, of_values, None, None


def _tile_gradients(
    mean: Tensor, upstream: Tensor, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of scaled queries, keys and values …×heads×cells×e, from the attention's definition."""
    precise = torch.promote_types(queries.dtype, torch.float32)
    weights = (queries @ keys.transpose(-2, -1)).to(precise).add_(bias.to(precise)).softmax(-1)
    of_scores = (upstream @ values.transpose(-2, -1)).to(precise).sub_(mean).mul_(weights).to(queries.dtype)
    weights = weights.to(queries.dtype)
    return of_scores @ keys, of_scores.transpose(-2, -1) @ queries, weights.transpose(-2, -1) @ upstream


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
        return self.proj(window_attention(q, k, v, self.bias, self.radius).flatten(-2))


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

        def needed(rows: int) -> int:
            rows += 2 * self.attention.radius
            return peak_bytes(on_meta(self), *(m.new_empty(b, m.shape[1], rows, w, device="meta") for m in maps))

        return fitting(self.memory_budget, needed(TILE), needed(2 * TILE), TILE, h)
