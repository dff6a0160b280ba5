"""Each cell attends to the cells of a window around it: queries, keys and values B×h×w×heads×e → the same shape.

Exact for any h×w; windows are cut off at the borders. Queries go in tiles, whose keys are those of the tile and its
halo: many tiles a fused call, or on a CPU one after the other (`tile_attention`).

Shapes: B images, h w cells, n heads of width e, r radius of the window.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from featsharp.patches import Seen, add_seen, join, seen, split
from featsharp.tile_attention import TILE, tile_by_tile
from teachers.features import has_values

CHUNK = 2**29  # bytes of keys and values cut out of the map at a time
Form = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]
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


def window_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, radius: int, planned: Form | None = None
) -> Tensor:
    """Each cell attends to the (2·radius+1)² cells around it, cut off at the borders; exact; any h×w.

    `q`, `k`, `v` and the result are B×h×w×heads×e; `bias` is `score_bias` of the heads. On the meta device, which has
    no form of its own, a plan says by `planned` what another device would compute with.
    """
    if q.is_meta:
        form = planned or form_for(q.device)
    else:  # of what has no values (a rehearsal) as on a GPU: tile by tile takes minutes there, and gives nothing
        form = form_for(q.device) if has_values(q) else many_tiles
    return form(q, k, v, bias, radius)


def form_for(device: torch.device) -> Form:
    """What computes `window_attention` on a device."""
    return tile_by_tile if device.type == "cpu" else many_tiles


def many_tiles(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, radius: int) -> Tensor:
    """`window_attention` for queries in tiles of 8×8, whose keys are those of the tile and its halo: (8+2r)² scores a
    query instead of h·w, in one fused call, or some for large maps."""
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
    rows = max(1, CHUNK // row)
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
            known = _tile_gradients(*(x.unflatten(2, (heads, -1)).transpose(1, 2) for x in tiles), bias)
            gradients = [x.transpose(1, 2).flatten(2) for x in known]
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
